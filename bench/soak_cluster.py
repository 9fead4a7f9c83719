"""Cause every failure of training pods on a cluster, many times each.

    KUBECONFIG=... AIRLOOP_TEST_IMAGE=... AIRLOOP_TEST_K8S_PART=... \\
        python -m bench.soak_cluster [--times 10] [-k EXPRESSION]

No run may hang, and no step may ever have two running pods. The command runs
``tests/cluster/test_failures.py`` with this number of repeats, in one stack. It writes how often
each failure was caused and handled correctly, and the longest time. With ``-k`` the results of the
other failures stay from an earlier run, each with its time and commit. Exits with 1 if a failure
was not handled correctly.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import result
from include.settings import git_sha

TESTS = "tests/cluster/test_failures.py"
PACKAGES = ("apache-airflow", "apache-airflow-providers-cncf-kubernetes", "kubernetes", "kubernetes-asyncio")


def tally(report: str) -> dict[str, dict[str, Any]]:
    """Return the counts of each test from pytest's JUnit report.

    These are how often it was made, held, failed and skipped, and its longest time in seconds.
    """
    tallies: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"made": 0, "held": 0, "failed": 0, "skipped": 0, "longest_s": 0.0}
    )
    for case in xml.fromstring(report).iter("testcase"):
        # test_x[0] and test_x[run-0] are repeats of test_x and test_x[run].
        name = re.sub(r"\[\d+\]$", "", re.sub(r"-\d+\]$", "]", case.get("name", "")))
        counts = tallies[name]
        if case.find("skipped") is not None:
            counts["skipped"] += 1
            continue
        bad = case.find("failure") is not None or case.find("error") is not None
        counts["made"] += 1
        counts["failed" if bad else "held"] += 1
        counts["longest_s"] = max(counts["longest_s"], round(float(case.get("time", 0)), 1))
    return dict(sorted(tallies.items()))


def kept(expression: str) -> dict[str, Any]:
    """Return the results of an earlier run, or nothing if this run causes all failures."""
    file = result.RESULTS / "soak_cluster.json"
    return json.loads(file.read_text())["failures"] if expression and file.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak_cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("-k", default="", help="only these tests, as pytest understands it")
    given = parser.parse_args()
    if not os.environ.get("KUBECONFIG"):
        sys.exit("soak_cluster: no cluster: KUBECONFIG names none")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", TESTS, f"--junitxml={report}", *(["-k", given.k] if given.k else [])]
        ended = subprocess.run(
            command, cwd=result.REPOSITORY, env=os.environ | {"AIRLOOP_TEST_REPEATS": str(given.times)}, check=False
        )
        if not report.exists():
            sys.exit(f"soak_cluster: pytest ended with {ended.returncode} and wrote no report")
        failures = tally(report.read_text())
    stamp = {"ended": f"{datetime.now(UTC):%FT%TZ}", "commit": git_sha()}
    failures = {name: counts | stamp for name, counts in failures.items()}
    path = result.write("soak_cluster", {"failures": dict(sorted((kept(given.k) | failures).items()))}, PACKAGES)
    for name, counts in failures.items():
        print(
            f"{counts['held']:3d} of {counts['made']:3d} held, {counts['skipped']} skipped, at most"
            f" {counts['longest_s']:6.1f} s  {name}"
        )
    print(f"-> {path.relative_to(result.REPOSITORY)}")
    sys.exit(any(counts["failed"] for counts in failures.values()))


if __name__ == "__main__":
    main()
