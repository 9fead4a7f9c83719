"""Measure the overhead of Airflow and Kubernetes for a training pod.

    KUBECONFIG=... AIRLOOP_TEST_IMAGE=... python -m bench.bench_pods [--runs 20]

The image is already on the pod's node. The benchmark starts a separate stack. Its runs are
consecutive, and each has one step whose pod only writes its manifest. ``to_user_code`` is the time
from the task's start, as Airflow recorded it, to the step's first line. The pod's own clock on the
same machine measures the latter. It includes the start of Python in the pod. ``to_task_end`` is the
time from the manifest, the step's last output, to the end of the task.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from bench import result
from tests.cluster.namespace import NoClusterError, a_cluster
from tests.cluster.stack import Runs, a_stack, settings_of

# Runs that are not counted, because of the first run's imports and the triggerer's first poll.
WARM_UP = 2
PARTS = ("to_user_code", "to_task_end")


def measure(runs: Runs) -> dict[str, float]:
    """Start one run and return the seconds of each part."""
    request = runs.start("small", "work")
    if runs.end(request) != "success":
        raise RuntimeError(f"a run failed:\n{runs.log(request)}")
    step = runs.step(request)
    began, ended = (
        datetime.fromisoformat(step[name].replace("Z", "+00:00")).timestamp() for name in ("start_date", "end_date")
    )
    wrote = json.loads(runs.manifest(request).read_text())["ended"]
    return {"to_user_code": runs.lives(request)[0][0] - began, "to_task_end": ended - wrote}


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        name: round(value, 2)
        for name, value in (("p50", cuts[49]), ("p90", cuts[89]), ("p99", cuts[98]), ("most", max(values)))
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.bench_pods", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    count = parser.parse_args().runs
    # The pods run as another user and must write into the stack's folders.
    os.umask(0)
    try:
        with (
            a_cluster() as cluster,
            tempfile.TemporaryDirectory() as folder,
            a_stack(cluster, settings_of(cluster, Path(folder))) as runs,
        ):
            for _ in range(WARM_UP):
                measure(runs)
            measured = [measure(runs) for _ in range(count)]
    except NoClusterError as missing:
        sys.exit(f"bench_pods: {missing}")
    seconds = {part: percentiles([one[part] for one in measured]) for part in PARTS}
    table = Table("seconds", *seconds[PARTS[0]])
    for part, figures in seconds.items():
        table.add_row(part, *(f"{value:.2f}" for value in figures.values()))
    Console().print(table)
    path = result.write(
        "bench_pods", {"how": " ".join((__doc__ or "").split()), "runs": count, "seconds": seconds}, PACKAGES
    )
    print(f"-> {path.relative_to(result.REPOSITORY)}")


PACKAGES = ("apache-airflow", "apache-airflow-providers-cncf-kubernetes", "kubernetes", "kubernetes-asyncio")

if __name__ == "__main__":
    main()
