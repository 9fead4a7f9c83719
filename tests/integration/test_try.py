"""`airloop try` runs one stage as its real DAG on a sample.

It changes nothing outside the scratch store.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from include.settings import REPOSITORY

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]
STATE = {
    "ledger.db": "the real ledger",
    "mlflow/mlflow.db": "the real registry",
    "feast/online.db": "the real features",
    "store/flights/tables/schedule/x": "real rows",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a home with state in it.

    Assert at the end that it is unchanged, and that nothing was created at the other places in the
    environment.
    """
    home = tmp_path_factory.mktemp("real")
    for name, content in STATE.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
    before, repository = hashes(home), listing(REPOSITORY)
    yield home
    assert hashes(home) == before
    assert listing(REPOSITORY) == repository
    assert not elsewhere(home).exists()


def elsewhere(home: Path) -> Path:
    return home.with_name("elsewhere")


def hashes(home: Path) -> dict[str, str]:
    files = (path for path in home.rglob("*") if path.is_file() and not path.is_relative_to(home / "try"))
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def listing(folder: Path) -> set[str]:
    """List the top of the repository, and mlruns, MLflow's default location."""
    return {path.name for path in folder.iterdir() if not path.name.endswith("_cache")} | {
        str(path) for path in folder.glob("mlruns/**/*")
    }


def airloop_try(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the command with settings that point at real data, as a user's settings do."""
    real = {
        "AIRLOOP_HOME": str(home),
        "AIRLOOP_DATA_ROOT": str(elsewhere(home) / "store"),
        "AIRLOOP_LEDGER_URL": f"sqlite:///{elsewhere(home)}/ledger.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{elsewhere(home)}/mlflow.db",
        "COLUMNS": "250",
    }
    command = [sys.executable, "-m", "include.cli", "try", *arguments]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **real, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def first(home):
    return airloop_try(home, "flights", "build_features", "--rows", "500")


def test_a_stage_runs_and_says_what_it_made_and_where(home, first):
    assert first.returncode == 0, first.stdout + first.stderr
    # The previous stage was run on the sample first.
    assert "flights__ingest up to" in first.stdout
    for task in ("decide_cutoff", "compute_features", "validate_features", "publish_features", "materialize_features"):
        assert f"ok        {task}" in first.stdout
    assert "feature view  origin_delays" in first.stdout
    assert "Nothing of it reached the tables, the registry or the aliases" in first.stdout
    work = home / "try" / "flights" / "work"
    assert str(work) in first.stdout
    assert (work / "store/flights/features/origin_delays/_delta_log").is_dir()
    assert list(work.glob("store/flights/reports/flights__build_features/*/validate_features/index.html"))


def test_the_second_try_takes_over_what_has_not_changed_and_makes_the_same(home, first):
    second = airloop_try(home, "flights", "build_features", "--rows", "500")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "nothing that they are made of has changed: feed, ingest" in second.stdout
    assert "flights__ingest up to" not in second.stdout
    assert [line for line in second.stdout.splitlines() if line.startswith("feature view")] == [
        line for line in first.stdout.splitlines() if line.startswith("feature view")
    ]


def test_the_scratch_store_comes_to_a_champion_and_serving_answers_with_it(home):
    tried = airloop_try(home, "flights", "deploy", "--rows", "2000")
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "ok        wait_for_serving" in tried.stdout
    assert "deployed: serving serves it" in tried.stdout
    assert (home / "try/flights/work/mlflow/artifacts").is_dir()
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(home) not in left and "-m serving" not in [line for line in left.splitlines() if str(home) in line]


def test_an_unknown_project_or_stage_is_named_with_those_there_are(home):
    tried = airloop_try(home, "fligths", "ingest")
    assert (tried.returncode, tried.stderr.strip()) == (
        2,
        "no project 'fligths' under include/projects; there is flights",
    )
    tried = airloop_try(home, "flights", "tarin")
    assert (tried.returncode, tried.stdout.strip()) == (
        1,
        "no stage 'tarin'; there is ingest, build_features, train, deploy, score, monitor",
    )


@pytest.fixture
def dags(tmp_path):
    """Return a copy of the DAG files that a test may edit."""
    return Path(shutil.copytree(REPOSITORY / "dags", tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param(
            "def create_build_features_dag(project: Project)",
            "SyntaxError: expected ':'",
            id="a line that is no Python",
        ),
        pytest.param(
            "from include.no_such_room import x",
            "ModuleNotFoundError: No module named 'include.no_such_room'",
            id="an import of nothing",
        ),
    ],
)
def test_a_dag_file_that_does_not_parse_is_told_with_file_and_line(home, first, dags, wrong, message):
    file = dags / "build_features.py"
    right = "def create_build_features_dag(project: Project):"
    text = file.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong if wrong.startswith("def") else f"{wrong}\n{right}"))
    line = file.read_text().splitlines().index(wrong) + 1
    # The store may now hold another sample.
    airloop_try(home, "flights", "ingest", "--rows", "500")
    tried = airloop_try(home, "flights", "build_features", "--rows", "500", AIRLOOP_DAGS_FOLDER=str(dags))
    assert tried.returncode == 1
    assert f"the DAG file does not parse: {file}, line {line}: {message}" in tried.stdout.replace("\n", " ").replace(
        "  ", " "
    ), tried.stdout
    assert "nothing that they are made of has changed: feed, ingest" in tried.stdout


def test_a_task_that_fails_is_told_with_its_line_and_not_tried_again(home, first, dags):
    file = dags / "build_features.py"
    text = file.read_text()
    call, factory = "tasks.compute_features(project.name, cutoff)", "def create_build_features_dag("
    assert call in text and factory in text
    failing = "@task\ndef compute_features(project_name, cutoff):\n    raise KeyError('origin')\n\n\n"
    text = text.replace(call, call.removeprefix("tasks.")).replace(factory, failing + factory)
    file.write_text(text.replace("from airflow.sdk import dag", "from airflow.sdk import dag, task"))
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "KeyError" in text)
    tried = airloop_try(home, "flights", "build_features", "--rows", "500", AIRLOOP_DAGS_FOLDER=str(dags))
    assert tried.returncode == 1
    assert tried.stdout.count("compute_features") == 2 and re.search(r"failed +compute_features", tried.stdout), (
        tried.stdout
    )
    assert f"{file}, line {line}, in compute_features: KeyError: 'origin'" in tried.stdout
    assert "docs/runbooks/build_features.md" in tried.stdout
