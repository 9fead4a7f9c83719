"""Both kinds of scaffolded project run to a served model, and no other file changes.

They are generated in a copy of the repository.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from include.settings import REPOSITORY

KINDS = {"parcels": "binary", "couriers": "regression"}
NOT_CODE = {
    ".git",
    ".venv",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".mypy_cache",
    ".import_linter_cache",
    "mlruns",
}

# A minute or two each on an idle machine.
pytestmark = [pytest.mark.stack, pytest.mark.timeout(3600)]


def hashes(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def command(copy: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess:
    """Run Python in the copy, isolated from the repository that runs this test."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRLOOP", "AIRFLOW", "MLFLOW", "_AIRFLOW", "__AIRFLOW"))
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env={**kept, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Copy the repository and generate both kinds of project.

    Assert at the end that no other file in it has changed.
    """
    copy = tmp_path_factory.mktemp("repository") / "airloop"
    top = str(REPOSITORY)
    shutil.copytree(
        top,
        copy,
        ignore=lambda where, names: NOT_CODE & set(names) | ({"data"} & set(names) if where == top else set()),
    )
    before = hashes(copy)
    for name, kind in KINDS.items():
        made = command(copy, "-m", "include.cli", "new-project", name, "--kind", kind)
        assert made.returncode == 0, made.stderr
    yield copy
    after = hashes(copy)
    assert {file: digest for file, digest in after.items() if file in before} == before
    parts = ("__init__", "expectations", "features", "feast", "feed")
    wanted = {f"include/projects/{name}/{part}.py" for name in KINDS for part in parts}
    assert after.keys() - before.keys() == wanted


@pytest.fixture(scope="module", params=KINDS)
def ran(request, copy, tmp_path_factory):
    """Run the project's DAGs in a home outside of the copy."""
    home = tmp_path_factory.mktemp(request.param)
    done = command(copy, str(Path(__file__).with_name("run_made_project.py")), request.param, str(home), timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["errors"] == [], [task for task in outcome["tasks"] if task[1] == "failed"]
    return request.param, outcome


def test_every_stage_of_the_made_project_does_its_work(ran):
    name, outcome = ran
    assert {state for _, state, _ in outcome["tasks"]} <= {"success", "skipped"}
    stages = {}
    for stage, summary in outcome["stages"].items():
        stages.setdefault(stage.partition(" ")[0], []).append(summary)
    assert {stage: len(runs) for stage, runs in stages.items()} == {
        "ingest": 2,
        "build_features": 2,
        "train": 1,
        "deploy": 1,
        "score": 1,
        "monitor": 1,
    }
    assert sum(source["table"] for run in stages["ingest"] for source in run["sources"]) > 10_000
    assert sum(source["quarantine"] + source["refused"] for run in stages["ingest"] for source in run["sources"]) == 0
    (training,) = stages["train"]
    assert training["gate"] == "passed", training["reasons"]
    assert stages["deploy"][0]["version"] == training["version"] == "1"
    assert stages["score"][0]["rows"] > 2000


def test_the_served_model_answers_as_the_batch_did(ran):
    name, outcome = ran
    answer, batch = outcome["answer"], outcome["batch"]
    assert (answer["status"], answer["model"], str(answer["model_version"])) == (200, name, batch["version"])
    assert {pd.Timestamp(t) for p in answer["predictions"] for t in p["feature_times"].values()} == {
        pd.Timestamp(t) for t in batch["feature_times"]
    }
    predictions = [p["prediction"] for p in answer["predictions"]]
    assert len(predictions) == 20
    assert np.allclose(predictions, batch["predictions"], atol=1e-6)
    assert all(
        set(p["feature_times"]) == {f"{name}_customer_history", f"{name}_product_history"}
        and None not in p["feature_times"].values()
        for p in answer["predictions"]
    )
    if KINDS[name] == "binary":
        assert all(0 < p < 1 for p in predictions)
    else:
        assert min(predictions) > 4 and max(predictions) > 24  # hours, not probabilities


def test_monitoring_finds_that_the_world_has_changed(ran):
    _, outcome = ran
    (summary,) = [summary for stage, summary in outcome["stages"].items() if stage.startswith("monitor")]
    assert (summary["state"], summary["asked"]) == ("drifting", True), summary
    assert [thing["name"] for thing in outcome["made"] if thing["kind"] == "report"] == [
        "measure_performance",
        "report_drift",
    ]
