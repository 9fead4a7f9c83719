"""Serving beside ``mlflow models serve``, MLServer, BentoML and the bare HTTP server: the same HistGradientBoosting, one worker each, 16 clients; and its
look-ups beside ``feast serve``.

    python -m bench.bench_serving [--rounds 3] [--seconds 5]

All run at once and are asked in turn, round after round, so that whatever else the machine does hits all. A ratio is that of the medians.
With more than one core the servers have one and the load generator another. What look-ups cost is told at half of the most that the service
reaches with them, beside the same service at the same rate without them.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import result, serving_features, serving_model, serving_peers, serving_swaps
from bench.load import Figures
from bench.serving_peers import Server

CLIENTS, WARM = 16, 1.0
PACKAGES = ("mlflow", "feast", "onnxruntime", "uvicorn", "uvloop", "httptools", "orjson", "scikit-learn", "numpy")
AIMS = {"rps_ratio_mlflow": 10, "p99_ratio_mlflow": 0.1, "rps_ratio_mlserver": 1, "rps_ratio_bentoml": 1, "rps_share_of_bare": 0.6, "swap_p99_ratio": 1.5}


class Turns:
    """The servers, and what each gave in each round."""

    def __init__(self, servers: list[Server], *, seconds: float) -> None:
        self.servers, self.seconds = servers, seconds
        self.server_core, self.load_core = serving_peers.two_cores()
        self.found: dict[str, list[tuple[Figures, float]]] = {server.name: [] for server in servers}

    def start(self) -> None:
        for server in self.servers:
            server.start(self.server_core)
            server.wait(600)

    def take(self, server: Server, *, rate: float | None = None) -> Figures:
        before = server.cpu()
        figures = server.load(self.load_core, seconds=self.seconds, warm=WARM, clients=CLIENTS, rate=rate)
        # With its first second, which is not among the requests: of use beside the others' figures only.
        micros = (server.cpu() - before) / max(1.0, figures.rps * (self.seconds + WARM)) * 1e6
        if figures.errors:
            raise RuntimeError(f"{server.name}: {figures.errors} of {figures.requests} requests failed: {figures.first_error}")
        self.found[server.name].append((figures, micros))
        return figures

    def summary(self, name: str) -> dict[str, Any]:
        taken = self.found[name]
        parts = {part: round(statistics.median(getattr(figures, part) for figures, _ in taken), 3) for part in ("rps", "p50_ms", "p99_ms")}
        return parts | {"cpu_us_per_request": round(statistics.median(micros for _, micros in taken), 1), "rounds": len(taken)}

    def end(self) -> None:
        for server in self.servers:
            server.end()


def throughput(model: Any, folder: Path, environments: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    servers = [
        serving_peers.bare(folder), serving_peers.airloop(folder, model), serving_peers.mlflow(folder, model),
        serving_peers.mlserver(folder, model, environments), serving_peers.bentoml(folder, model, environments),
    ]  # fmt: skip
    turns = Turns(servers, seconds=seconds)
    try:
        turns.start()
        for _ in range(rounds):
            for server in servers:
                turns.take(server)
        found = {server.name: turns.summary(server.name) for server in servers}
    finally:
        turns.end()
    ours = found["airloop"]
    ratios = {f"rps_ratio_{name}": round(ours["rps"] / found[name]["rps"], 2) for name in ("mlflow", "mlserver", "bentoml")}
    ratios |= {f"p99_ratio_{name}": round(ours["p99_ms"] / found[name]["p99_ms"], 3) for name in ("mlflow", "mlserver", "bentoml")}
    return {**ratios, "rps_share_of_bare": round(ours["rps"] / found["bare"]["rps"], 3), "servers": found}


def lookups(model: Any, folder: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """p99 with look-ups beside p99 without them, both at half of the most that the service reaches with them; and beside Feast's own server."""
    with serving_features.redis(folder / "redis") as redis:
        stores = {"sqlite": "sqlite"} | ({"redis": redis} if redis else {})
        plain = serving_peers.airloop(folder, model, "no_lookup")
        looking_up = {}
        said = ""
        for name, online in stores.items():
            said = serving_features.fill(folder / f"features-{name}", online)
            looking_up[name] = serving_peers.airloop(
                folder, model, name, feature_store=said, body=serving_features.body, join_keys=("customer",), looked_up=serving_features.LOOKED_UP
            )
        turns = Turns([plain, *looking_up.values()], seconds=seconds)
        try:
            turns.start()
            found = {}
            for name, server in looking_up.items():
                most = statistics.median(turns.take(server).rps for _ in range(rounds))
                turns.found[name].clear()
                turns.found[plain.name].clear()
                for _ in range(rounds):
                    for one in (plain, server):
                        turns.take(one, rate=most / 2)
                found[name] = {"most_rps": round(most, 1), "rate_rps": round(most / 2, 1), "without": turns.summary(plain.name), "with": turns.summary(name)}
            # Feast's server, on the store that was filled last, beside ours on the same: both at half of what Feast reaches.
            feast, ours = serving_peers.feast(folder, said, serving_features.body_for_feast), server
            turns.servers.append(feast)
            turns.found |= {feast.name: [], ours.name: []}
            feast.start(turns.server_core)
            feast.wait(600)
            feasts_most = turns.take(feast).rps
            turns.found[feast.name].clear()
            for _ in range(rounds):
                for server in (feast, ours):
                    turns.take(server, rate=feasts_most / 2)
            beside_feast = {server.name: turns.summary(server.name) for server in (feast, ours)}
        finally:
            turns.end()
    return {
        "lookup_p99_ms": {name: figures["with"]["p99_ms"] for name, figures in found.items()},
        "lookup_p99_ratio": {name: round(figures["with"]["p99_ms"] / figures["without"]["p99_ms"], 2) for name, figures in found.items()},
        "lookups": found,
        # Feast's answers hold features only; ours the prediction made of them, too.
        "lookup_p99_ratio_feast": round(beside_feast[ours.name]["p99_ms"] / beside_feast["feast"]["p99_ms"], 3),
        "beside_feast": {"store": ours.name, "rate_rps": round(feasts_most / 2, 1), "feast_most_rps": round(feasts_most, 1), **beside_feast},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_serving")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument(
        "--environments", type=Path, default=result.REPOSITORY / "data" / "cache" / "bench-serving", help="where the peers' environments are kept"
    )
    given = parser.parse_args()
    console = Console()
    given.environments.mkdir(parents=True, exist_ok=True)
    model = serving_model.fit()
    with tempfile.TemporaryDirectory() as folder:
        found = throughput(model, Path(folder), given.environments, rounds=given.rounds, seconds=given.seconds)
        found |= lookups(model, Path(folder), rounds=given.rounds, seconds=given.seconds)
        found |= serving_swaps.swaps(model, Path(folder) / "swaps", rounds=given.rounds, seconds=max(given.seconds, 10 * serving_swaps.EVERY))
    found |= {"clients": CLIENTS, "rounds": given.rounds, "seconds": given.seconds, "aims": AIMS, "peers": serving_peers.ENVIRONMENTS}
    target = result.write("serving", found, PACKAGES)
    table = Table("server", "requests/s", "p50 ms", "p99 ms", "CPU us/request")
    beside = {f"{name}, {how} look-ups": figures[how] for name, figures in found["lookups"].items() for how in ("without", "with")}
    for name, figures in (found["servers"] | beside).items():
        table.add_row(name, *(f"{figures[part]:,.1f}" for part in ("rps", "p50_ms", "p99_ms", "cpu_us_per_request")))
    console.print(table)
    for name, aim in AIMS.items():
        console.print(f"{name}: {found[name]} (aim: {'at most' if 'p99' in name else 'at least'} {aim})")
    console.print(f"lookup_p99_ratio_feast: {found['lookup_p99_ratio_feast']}, with the prediction and at the same rate (aim: under 1)")
    console.print(f"lookup_p99_ratio: {found['lookup_p99_ratio']} (aim: under 3)\n{target.relative_to(result.REPOSITORY)}")


if __name__ == "__main__":
    main()
