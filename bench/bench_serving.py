"""Compare serving with other model servers, and its lookups with ``feast serve``.

    python -m bench.bench_serving [--rounds 3] [--seconds 5]

The other servers are ``mlflow models serve``, MLServer, BentoML and the bare HTTP server. All serve
the same HistGradientBoosting model with one worker each, for 16 clients.

All servers run concurrently and are measured in turn, round after round. So other load on the
machine affects all of them. A ratio is the ratio of the medians. With more than one core, the
servers use one core and the load generator another. The cost of lookups is measured at half of the
maximum rate with lookups. The reference is the same service at the same rate without lookups.
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
AIMS = {
    "rps_ratio_mlflow": 10,
    "p99_ratio_mlflow": 0.1,
    "rps_ratio_mlserver": 1,
    "rps_ratio_bentoml": 1,
    "rps_share_of_bare": 0.6,
    "swap_p99_ratio": 1.5,
}


class Turns:
    """The servers, and the measurements of each in each round."""

    def __init__(self, servers: list[Server], *, seconds: float) -> None:
        self.servers, self.seconds = servers, seconds
        self.server_core, self.load_core = serving_peers.two_cores()
        self.measurements: dict[str, list[tuple[Figures, float]]] = {server.name: [] for server in servers}

    def start(self) -> None:
        for server in self.servers:
            server.start(self.server_core)
            server.wait(600)

    def take(self, server: Server, *, rate: float | None = None) -> Figures:
        before = server.cpu()
        figures = server.load(self.load_core, seconds=self.seconds, warm=WARM, clients=CLIENTS, rate=rate)
        # The CPU time includes the warm-up second, whose requests are not counted. So this value is
        # only useful for comparison with the other servers.
        micros = (server.cpu() - before) / max(1.0, figures.rps * (self.seconds + WARM)) * 1e6
        if figures.errors:
            raise RuntimeError(
                f"{server.name}: {figures.errors} of {figures.requests} requests failed: {figures.first_error}"
            )
        self.measurements[server.name].append((figures, micros))
        return figures

    def summary(self, name: str) -> dict[str, Any]:
        taken = self.measurements[name]
        parts = {
            part: round(statistics.median(getattr(figures, part) for figures, _ in taken), 3)
            for part in ("rps", "p50_ms", "p99_ms")
        }
        return parts | {
            "cpu_us_per_request": round(statistics.median(micros for _, micros in taken), 1),
            "rounds": len(taken),
        }

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
        summaries = {server.name: turns.summary(server.name) for server in servers}
    finally:
        turns.end()
    ours = summaries["airloop"]
    ratios = {
        f"rps_ratio_{name}": round(ours["rps"] / summaries[name]["rps"], 2)
        for name in ("mlflow", "mlserver", "bentoml")
    }
    ratios |= {
        f"p99_ratio_{name}": round(ours["p99_ms"] / summaries[name]["p99_ms"], 3)
        for name in ("mlflow", "mlserver", "bentoml")
    }
    return {**ratios, "rps_share_of_bare": round(ours["rps"] / summaries["bare"]["rps"], 3), "servers": summaries}


def lookups(model: Any, folder: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure the p99 with lookups, and compare it with two references.

    The first reference is the same service without lookups, both at half of the maximum rate with
    lookups. The second is Feast's own server.
    """
    with serving_features.redis(folder / "redis") as redis:
        stores = {"sqlite": "sqlite"} | ({"redis": redis} if redis else {})
        plain = serving_peers.airloop(folder, model, "no_lookup")
        looking_up = {}
        feature_store = ""
        for name, online in stores.items():
            feature_store = serving_features.fill(folder / f"features-{name}", online)
            looking_up[name] = serving_peers.airloop(
                folder,
                model,
                name,
                feature_store=feature_store,
                body=serving_features.body,
                join_keys=("customer",),
                looked_up=serving_features.LOOKED_UP,
            )
        turns = Turns([plain, *looking_up.values()], seconds=seconds)
        try:
            turns.start()
            summaries = {}
            for name, server in looking_up.items():
                most = statistics.median(turns.take(server).rps for _ in range(rounds))
                turns.measurements[name].clear()
                turns.measurements[plain.name].clear()
                for _ in range(rounds):
                    for one in (plain, server):
                        turns.take(one, rate=most / 2)
                summaries[name] = {
                    "most_rps": round(most, 1),
                    "rate_rps": round(most / 2, 1),
                    "without": turns.summary(plain.name),
                    "with": turns.summary(name),
                }
            # Feast's server and ours use the store that was filled last. Both run at half of the
            # maximum rate of Feast's server.
            feast, ours = serving_peers.feast(folder, feature_store, serving_features.body_for_feast), server
            turns.servers.append(feast)
            turns.measurements |= {feast.name: [], ours.name: []}
            feast.start(turns.server_core)
            feast.wait(600)
            feasts_most = turns.take(feast).rps
            turns.measurements[feast.name].clear()
            for _ in range(rounds):
                for server in (feast, ours):
                    turns.take(server, rate=feasts_most / 2)
            beside_feast = {server.name: turns.summary(server.name) for server in (feast, ours)}
        finally:
            turns.end()
    return {
        "lookup_p99_ms": {name: figures["with"]["p99_ms"] for name, figures in summaries.items()},
        "lookup_p99_ratio": {
            name: round(figures["with"]["p99_ms"] / figures["without"]["p99_ms"], 2)
            for name, figures in summaries.items()
        },
        "lookups": summaries,
        # Feast's answers contain only features. Ours also contain the prediction.
        "lookup_p99_ratio_feast": round(beside_feast[ours.name]["p99_ms"] / beside_feast["feast"]["p99_ms"], 3),
        "beside_feast": {
            "store": ours.name,
            "rate_rps": round(feasts_most / 2, 1),
            "feast_most_rps": round(feasts_most, 1),
            **beside_feast,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_serving")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument(
        "--environments",
        type=Path,
        default=result.REPOSITORY / "data" / "cache" / "bench-serving",
        help="where the peers' environments are kept",
    )
    arguments = parser.parse_args()
    console = Console()
    arguments.environments.mkdir(parents=True, exist_ok=True)
    model = serving_model.fit()
    with tempfile.TemporaryDirectory() as folder:
        document = throughput(
            model, Path(folder), arguments.environments, rounds=arguments.rounds, seconds=arguments.seconds
        )
        document |= lookups(model, Path(folder), rounds=arguments.rounds, seconds=arguments.seconds)
        document |= serving_swaps.swaps(
            model,
            Path(folder) / "swaps",
            rounds=arguments.rounds,
            seconds=max(arguments.seconds, 10 * serving_swaps.EVERY),
        )
    document |= {
        "clients": CLIENTS,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "aims": AIMS,
        "peers": serving_peers.ENVIRONMENTS,
    }
    target = result.write("serving", document, PACKAGES)
    table = Table("server", "requests/s", "p50 ms", "p99 ms", "CPU us/request")
    beside = {
        f"{name}, {how} look-ups": figures[how]
        for name, figures in document["lookups"].items()
        for how in ("without", "with")
    }
    for name, figures in (document["servers"] | beside).items():
        table.add_row(name, *(f"{figures[part]:,.1f}" for part in ("rps", "p50_ms", "p99_ms", "cpu_us_per_request")))
    console.print(table)
    for name, aim in AIMS.items():
        console.print(f"{name}: {document[name]} (aim: {'at most' if 'p99' in name else 'at least'} {aim})")
    console.print(
        f"lookup_p99_ratio_feast: {document['lookup_p99_ratio_feast']}, with the prediction and at the same rate (aim:"
        " under 1)"
    )
    console.print(
        f"lookup_p99_ratio: {document['lookup_p99_ratio']} (aim: under 3)\n{target.relative_to(result.REPOSITORY)}"
    )


if __name__ == "__main__":
    main()
