"""Measure the parse time of each DAG file against a file that only imports ``airflow.sdk``.

    python bench/bench_parse.py [--pairs 15]

Each sample is a new interpreter that runs one file and ends, like parsing in a separate process:
importing the file creates its DAGs. DAG file and peer take turns, so that other load on the machine
affects both. The ratio is that of the medians of wall time. The same ratio of CPU time is also
reported, because it hardly depends on other load. Training steps run as child processes
(``AIRLOOP_COMPUTE=process``).

Then the same files are parsed with 1 and with 101 projects (``bench.parse_many``), in CPU seconds.
``idle_cores`` is the share of a core that an idle stack needs to parse all files again and again.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from bench import parse_many, result
from include.stack.environment import parse_interval

PEER = "from airflow.sdk import dag, task\n"
AIM = 1.15
PACKAGES = ("apache-airflow", "apache-airflow-task-sdk", "pydantic", "pydantic-settings")
# Number of packages in the import profile. An entry is a top-level package that the peer does not
# import, with the number of its modules and the seconds that they take in a new interpreter.
PROFILE_LINES = 6
# Numbers of projects, and measurements of each file.
MANY, MANY_ROUNDS = (1, 101), 5
IDLE_AIM = 0.2


class Sample(NamedTuple):
    """One run of a file, in seconds of wall time and of CPU time (user and system)."""

    wall: float
    cpu: float


def run_file(file: Path, environment: dict[str, str]) -> Sample:
    """Run a file in a new interpreter and return its times.

    Raises:
        RuntimeError: The file failed, so there is no measurement.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(file)], env=environment, cwd=environment["HOME"], capture_output=True, text=True
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{file.name} does not parse:\n{done.stderr[-2000:]}")
    return Sample(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def compare(file: Path, peer: Path, pairs: int, run: Callable[[Path], Sample]) -> dict[str, float]:
    """Time a file and its peer in turn. The file that runs first alternates."""
    ours: list[Sample] = []
    theirs: list[Sample] = []
    for number in range(pairs):
        for which, samples in ((file, ours), (peer, theirs)) if number % 2 else ((peer, theirs), (file, ours)):
            samples.append(run(which))
    median_s, peer_median_s = (statistics.median(s.wall for s in samples) for samples in (ours, theirs))
    cpu_s, peer_cpu_s = (statistics.median(s.cpu for s in samples) for samples in (ours, theirs))
    return {
        "ratio": round(median_s / peer_median_s, 3),
        "median_s": round(median_s, 3),
        "peer_median_s": round(peer_median_s, 3),
        "cpu_ratio": round(cpu_s / peer_cpu_s, 3),
        "cpu_median_s": round(cpu_s, 3),
        "peer_cpu_median_s": round(peer_cpu_s, 3),
        "paired_excess_s": round(statistics.median(o.wall - t.wall for o, t in zip(ours, theirs, strict=True)), 3),
    }


def excess(file: Path, peer: Path, environment: dict[str, str]) -> list[dict[str, object]]:
    """Return the packages that the file imports in addition to its peer.

    Each entry is a top-level package (or ``airflow.providers.<name>``), with the number of its
    modules and the seconds that they take themselves.
    """
    theirs = _import_times(peer, environment)
    by_package: dict[str, list[float]] = {}
    for module, seconds in _import_times(file, environment).items():
        if module not in theirs:
            parts = module.split(".")
            by_package.setdefault(".".join(parts[: 3 if parts[:2] == ["airflow", "providers"] else 1]), []).append(
                seconds
            )
    spent = sorted(((name, sum(s), len(s)) for name, s in by_package.items()), key=lambda entry: -entry[1])
    return [
        {"package": name, "seconds": round(seconds, 3), "modules": modules}
        for name, seconds, modules in spent[:PROFILE_LINES]
    ]


def _import_times(file: Path, environment: dict[str, str]) -> dict[str, float]:
    """Return the seconds of each module's own import, from ``python -X importtime``."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(file)],
        env=environment,
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = (
        line.removeprefix("import time:").split("|")
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    )
    return {name.strip(): int(own) / 1e6 for own, _, name in rows if own.strip().isdigit()}


def environment_of(home: Path) -> dict[str, str]:
    """Return an environment with a new home.

    It excludes the settings, plugins and databases of this machine.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "AIRLOOP")) and k != "PYTHONPATH"}
    ours = {
        "HOME": str(home),
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRLOOP_HOME": str(home / "airloop"),
        "AIRLOOP_COMPUTE": "process",
    }
    return {
        **kept,
        **ours,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(result.REPOSITORY),
        "PYTHONWARNINGS": "ignore",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs a file (default: 15)")
    parser.add_argument("--only", help="only this DAG file, e.g. train; nothing is written")
    arguments = parser.parse_args()
    files = sorted(f for f in (result.REPOSITORY / "dags").glob("*.py") if arguments.only in (None, f.stem))
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        environment, peer = environment_of(Path(folder)), Path(folder) / "peer.py"
        peer.write_text(PEER)
        for file in (peer, *files):
            # The first run writes the .pyc files, warms the disk cache, and creates Airflow's home.
            run_file(file, environment)
        comparisons = {}
        for file in files:
            with console.status(f"{file.name}: {arguments.pairs} pairs"):
                comparisons[file.stem] = compare(file, peer, arguments.pairs, lambda f: run_file(f, environment)) | {
                    "excess": excess(file, peer, environment)
                }
        with console.status("1 and 101 projects"):
            many = {count: parse_many.measure(count, Path(folder), environment, rounds=MANY_ROUNDS) for count in MANY}
    console.print(table(comparisons))
    projects = {str(count): summary(count, files) for count, files in many.items()}
    for count, figures in projects.items():
        print(
            f"{count} projects: at most {figures['worst_s']} s of CPU for a file (aim {parse_many.AIM_S} s), idle"
            f" {figures['idle_cores']} cores (aim {IDLE_AIM})"
        )
    if arguments.only is None:
        worst = max(figures["ratio"] for figures in comparisons.values())
        how = (
            f"fresh interpreter a sample, {arguments.pairs} interleaved pairs, wall time, ratio of medians;"
            " AIRLOOP_COMPUTE=process"
        )
        print(
            result.write(
                "parse",
                {
                    "aim": AIM,
                    "peer": PEER.strip(),
                    "how": how,
                    "pairs": arguments.pairs,
                    "worst_ratio": worst,
                    "files": comparisons,
                    "projects": projects,
                    "projects_aims": {"worst_s": parse_many.AIM_S, "idle_cores": IDLE_AIM},
                },
                PACKAGES,
            ).name
        )
    else:
        print(json.dumps(comparisons, indent=1))
    return 0


def summary(projects: int, files: dict[str, dict]) -> dict[str, object]:
    """Return the figures of all files, the slowest file, and the cores of an idle stack."""
    seconds = {name: of["parse_s"] + of["serialize_s"] for name, of in files.items()}
    return {
        "worst_s": round(max(seconds.values()), 2),
        "idle_cores": round(sum(seconds.values()) / parse_interval(projects), 3),
        "interval_s": parse_interval(projects),
        "files": files,
    }


def table(comparisons: dict[str, dict]) -> Table:
    made = Table(title=f"Parsing a DAG file beside `{PEER.strip()}` (aim: ratio {AIM})")
    for heading in ("file", "ratio", "median s", "peer s", "CPU ratio", "CPU s", "what it imports beyond the peer (s)"):
        made.add_column(heading, justify="left" if heading[0] in "fw" else "right")
    for name, figures in comparisons.items():
        colour = "green" if figures["ratio"] <= AIM else "yellow"
        beyond = ", ".join(f"{e['package']} {e['seconds']:.2f}" for e in figures["excess"][:4])
        made.add_row(
            name,
            f"[{colour}]{figures['ratio']:.2f}[/{colour}]",
            f"{figures['median_s']:.2f}",
            f"{figures['peer_median_s']:.2f}",
            f"{figures['cpu_ratio']:.2f}",
            f"{figures['cpu_median_s']:.2f}",
            beyond,
        )
    return made


if __name__ == "__main__":
    sys.exit(main())
