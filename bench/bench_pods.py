"""What Airflow and Kubernetes add to a training pod whose image is on its node: before its first line of user code, and after its end.

    KUBECONFIG=... AIRLOOP_TEST_IMAGE=... python -m bench.bench_pods [--runs 20]

A stack of its own is started; its runs, one after the other, have one step whose pod only writes its manifest. ``to_user_code``: from the task's start, as
Airflow wrote it, to the step's first line (by the pod's own clock, on the same machine). ``to_task_end``: from the manifest, the last thing that the
step writes, to the end of the task. Python's own start in the pod is within the first.
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
from tests.cluster.namespace import NoCluster, a_cluster
from tests.cluster.stack import Runs, a_stack, settings_of

WARM_UP = 2  # runs that are not counted: the first one's imports, the triggerer's first look
PARTS = ("to_user_code", "to_task_end")


def measure(runs: Runs) -> dict[str, float]:
    """Seconds of each part of one run."""
    request = runs.start("small", "work")
    if runs.end(request) != "success":
        raise RuntimeError(f"a run failed:\n{runs.log(request)}")
    step = runs.step(request)
    began, ended = (datetime.fromisoformat(step[name].replace("Z", "+00:00")).timestamp() for name in ("start_date", "end_date"))
    wrote = json.loads(runs.manifest(request).read_text())["ended"]
    return {"to_user_code": runs.lives(request)[0][0] - began, "to_task_end": ended - wrote}


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {name: round(value, 2) for name, value in (("p50", cuts[49]), ("p90", cuts[89]), ("p99", cuts[98]), ("most", max(values)))}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_pods", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    count = parser.parse_args().runs
    os.umask(0)  # the pods, who are nobody here, write into the stack's folders
    try:
        with a_cluster() as cluster, tempfile.TemporaryDirectory() as folder, a_stack(cluster, settings_of(cluster, Path(folder))) as runs:
            for _ in range(WARM_UP):
                measure(runs)
            measured = [measure(runs) for _ in range(count)]
    except NoCluster as missing:
        sys.exit(f"bench_pods: {missing}")
    found = {part: percentiles([one[part] for one in measured]) for part in PARTS}
    table = Table("seconds", *found[PARTS[0]])
    for part, figures in found.items():
        table.add_row(part, *(f"{value:.2f}" for value in figures.values()))
    Console().print(table)
    path = result.write("bench_pods", {"how": " ".join((__doc__ or "").split()), "runs": count, "seconds": found}, PACKAGES)
    print(f"-> {path.relative_to(result.REPOSITORY)}")


PACKAGES = ("apache-airflow", "apache-airflow-providers-cncf-kubernetes", "kubernetes", "kubernetes-asyncio")

if __name__ == "__main__":
    main()
