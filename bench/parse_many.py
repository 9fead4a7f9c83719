"""Measure how long the DAG files of many projects take to parse and to serialize.

Airflow's DAG processor has imported Airflow and forks a process for each file. So does this module:
each measurement is a fork that parses one file and serializes its DAGs. The projects are copies of
flights.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from bench.result import REPOSITORY

AIM_S = 1.0
CHILD = """
import json, logging, os, sys, time
logging.disable(logging.CRITICAL)
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

empty, rounds, *files = sys.argv[1:]
DagBag(empty, safe_mode=False)
for file in files:
    for _ in range(int(rounds)):
        sys.stdout.flush()
        if os.fork() == 0:
            before = time.process_time()
            bag = DagBag(file, safe_mode=False)
            parsed = time.process_time()
            size = sum(len(json.dumps(DagSerialization.to_dict(dag))) for dag in bag.dags.values())
            times = {"parse_s": parsed - before, "serialize_s": time.process_time() - parsed}
            counts = {"dags": len(bag.dags), "bytes_per_dag": size // max(1, len(bag.dags))}
            print("RESULT", json.dumps({"file": file, "errors": bag.import_errors, **times, **counts}), flush=True)
            os._exit(0)
        os.wait()
"""


def measure(projects: int, folder: Path, environment: dict[str, str], *, rounds: int = 3) -> dict[str, dict]:
    """Return file -> CPU seconds to parse and to serialize, and the number and size of its DAGs.

    Raises:
        RuntimeError: A file does not parse.
    """
    copies = folder / f"projects_{projects}"
    copies.mkdir()
    for number in range(projects - 1):
        name = f"copy_{number:03d}"
        shutil.copytree(
            REPOSITORY / "include" / "projects" / "flights",
            copies / name,
            ignore=shutil.ignore_patterns("__pycache__", "data"),
        )
        file = copies / name / "__init__.py"
        file.write_text(file.read_text().replace('name="flights"', f'name="{name}"'))
    empty = folder / "empty.py"
    # The first asset of a process makes Airflow import the URI handlers of all providers.
    empty.write_text("from airflow.sdk import Asset\n\nAsset(name='any', uri='airloop://any')\n")
    given = {
        **environment,
        "AIRLOOP_PROJECTS": f"{copies},{REPOSITORY / 'include' / 'projects'}",
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "config"))),
    }
    files = [str(file) for file in sorted((REPOSITORY / "dags").glob("*.py"))]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(empty), str(rounds), *files],
        env=given,
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        check=True,
    )
    results = [
        json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if line.startswith("RESULT ")
    ]
    by_file: dict[str, list[dict]] = {}
    for one in results:
        if one["errors"]:
            raise RuntimeError(f"{one['file']} does not parse: {one['errors']}")
        by_file.setdefault(Path(one["file"]).stem, []).append(one)
    return {
        name: {
            "dags": ones[0]["dags"],
            "bytes_per_dag": ones[0]["bytes_per_dag"],
            **{key: round(statistics.median(one[key] for one in ones), 3) for key in ("parse_s", "serialize_s")},
        }
        for name, ones in by_file.items()
    }
