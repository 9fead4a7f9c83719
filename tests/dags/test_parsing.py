"""Each DAG file, parsed in a new interpreter, imports no heavy library and gives the same DAGs.

Every project has all of its stages.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from docs.dags_page import page
from include.projects import all_projects, project_names
from include.projects.base import STAGES
from include.settings import REPOSITORY, Settings
from include.stack.environment import airflow_environment

pytestmark = pytest.mark.slow

# Other files in the folder belong to a user.
DAG_FILES = [REPOSITORY / "dags" / f"{name}.py" for name in (*STAGES, "broken_projects", "sweep_pods")]
BULLETS = ("Starts", "Updates", "Safe to rerun", "On failure")
FORBIDDEN = (
    "boto3",
    "catboost",
    "dask",
    "deltalake",
    "duckdb",
    "evidently",
    "feast",
    "great_expectations",
    "ibis",
    "kubernetes",
    "kubernetes_asyncio",
    "lightgbm",
    "matplotlib",
    "mlflow",
    "nannyml",
    "numpy",
    "onnx",
    "onnxruntime",
    "optuna",
    "pandas",
    "plotly",
    "polars",
    "pyarrow",
    "scipy",
    "shap",
    "skl2onnx",
    "sklearn",
    "statsmodels",
    "torch",
    "xgboost",
)


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@cache
def parsed(file: Path, home: Path, hash_seed: int = 1, path: Path = REPOSITORY) -> dict:
    """Return the output of fresh_parse.py for the file, with a copy of the repository's code."""
    environment = airflow_environment(Settings(home=home)) | {
        "PYTHONHASHSEED": str(hash_seed),
        # config/ contains airflow_local_settings.py, as in the stack.
        "PYTHONPATH": os.pathsep.join((str(path), str(REPOSITORY / "config"))),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    }
    command = [sys.executable, str(Path(__file__).with_name("fresh_parse.py")), str(file), *FORBIDDEN]
    result = subprocess.run(
        command, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def everything(home: Path) -> dict[str, dict]:
    """Return all DAGs of all files by id, as serialized."""
    return {dag_id: dag["dag"] for file in DAG_FILES for dag_id, dag in parsed(file, home)["dags"].items()}


def every_file(test):
    return pytest.mark.parametrize("file", DAG_FILES, ids=lambda file: file.relative_to(REPOSITORY).as_posix())(test)


@every_file
def test_a_dag_file_imports_no_data_or_ml_library(file, home):
    result = parsed(file, home)
    assert result["errors"] == {}
    assert result["imported"] == [], "import it inside the task"


@pytest.mark.parametrize("compute", ["process", "kubernetes"])
def test_reading_train_py_costs_no_kubernetes_client(home, monkeypatch, compute):
    """Parsing train.py does not import the Kubernetes client.

    Airflow itself does not import it either to parse a file, which the previous check could not
    detect.
    """
    monkeypatch.setenv("AIRLOOP_COMPUTE", compute)
    monkeypatch.setenv("AIRLOOP_TRAINING_IMAGE", "image:1")
    result = parsed.__wrapped__(REPOSITORY / "dags" / "train.py", home)
    assert result["dags"] and not {"kubernetes", "kubernetes_asyncio"} & {*result["before"], *result["imported"]}


def test_the_list_of_forbidden_modules_is_looked_for(home, tmp_path):
    """The previous check detects a library that a DAG file imports, directly or indirectly."""
    file = tmp_path / "heavy.py"
    file.write_text("import include.data.tables\n")
    assert {"pandas", "deltalake"} <= set(parsed(file, home)["imported"])


def test_the_same_dags_come_out_under_another_hash_seed(home):
    """The DAGs do not depend on the hash seed.

    Otherwise each parse would create a new DAG version.
    """
    first = {dag_id: version for file in DAG_FILES for dag_id, version in parsed(file, home)["versions"].items()}
    second = parsed(REPOSITORY / "dags", home, hash_seed=2)["versions"]
    assert {dag_id: version for dag_id, version in second.items() if dag_id in first} == first


def test_an_order_that_depends_on_the_hash_seed_is_seen(home, tmp_path):
    """The previous check detects a DAG that depends on the hash seed."""
    file = tmp_path / "unstable.py"
    file.write_text(
        "from airflow.sdk import DAG\nwith DAG('unstable', schedule=None, doc_md=str({'a', 'b', 'c', 'd', 'e', 'f',"
        " 'g'})):\n    pass\n"
    )
    first, second = (parsed(file, home, seed)["versions"] for seed in (1, 2))
    assert first.keys() == second.keys() == {"unstable"}
    assert first != second


def test_a_changed_comment_makes_no_new_version_of_a_dag(home, tmp_path):
    """A changed comment does not create a new DAG version.

    A version describes what a run executes. This holds for comments in a DAG file and in a module
    that it imports.
    """
    for room in ("dags", "include", "feature_repo"):
        shutil.copytree(REPOSITORY / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    before = parsed.__wrapped__(tmp_path / "dags", home, path=tmp_path)["versions"]
    commented = 0
    # Airflow stores the source of its ``pre_execute``.
    kit = [file for file in (tmp_path / "include" / "dag_kit").rglob("*.py") if file.name != "defaults.py"]
    for file in (*(tmp_path / "dags").glob("*.py"), *kit, *(tmp_path / "include" / "projects").rglob("*.py")):
        text, count = re.subn(
            r"^( *)(return|raise|def|with|from) ", r"\1# changed\n\1\2 ", file.read_text(), flags=re.MULTILINE
        )
        file.write_text(text)
        commented += count
    after = parsed.__wrapped__(tmp_path / "dags", home, path=tmp_path)
    assert commented > 500 and after["errors"] == {}
    assert after["versions"] == before


def test_every_project_has_every_stage_and_no_other_dag_is_there(home):
    assert project_names(), "no project at all"
    assert set(everything(home)) == {f"{project}__{stage}" for project in project_names() for stage in STAGES}


@every_file
def test_a_dag_file_makes_one_dag_a_project(file, home):
    of_the_house = file.stem not in STAGES
    assert sorted(parsed(file, home)["dags"]) == (
        [] if of_the_house else [f"{project}__{file.stem}" for project in project_names()]
    )


def test_a_broken_project_is_an_import_error_and_the_others_keep_their_dags(home, tmp_path):
    for room in ("dags", "include", "feature_repo"):
        shutil.copytree(REPOSITORY / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "include" / "projects" / "broken").mkdir()
    (tmp_path / "include" / "projects" / "broken" / "__init__.py").write_text("x = 1\ny = = 2\n")
    result = parsed.__wrapped__(tmp_path / "dags", home, path=tmp_path)
    assert set(result["dags"]) >= {f"flights__{stage}" for stage in STAGES}
    ((file, trace),) = result["errors"].items()
    assert (
        file.endswith("broken_projects.py")
        and "project 'broken' cannot be loaded: include/projects/broken/__init__.py, line 2: SyntaxError" in trace
    )


def test_pods_are_swept_where_steps_are_pods(home, monkeypatch):
    monkeypatch.setenv("AIRLOOP_COMPUTE", "kubernetes")
    monkeypatch.setenv("AIRLOOP_TRAINING_IMAGE", "image:1")
    (dag,) = parsed.__wrapped__(REPOSITORY / "dags" / "sweep_pods.py", home)["dags"].values()
    assert dag["dag"]["dag_id"] == "airloop__sweep_pods" and not dag["dag"].get("catchup")
    assert [bullet for bullet in BULLETS if f"* **{bullet}**" not in dag["dag"]["doc_md"]] == []


@every_file
def test_the_docs_say_how_it_starts_what_it_updates_and_where_to_look_when_it_fails(file, home):
    for dag_id, dag in parsed(file, home)["dags"].items():
        docs = dag["dag"]["doc_md"]
        assert [bullet for bullet in BULLETS if not re.search(rf"^\* \*\*{bullet}\*\*", docs, re.MULTILINE)] == [], (
            f"{dag_id} says nothing about these"
        )
        link = re.search(r"\*\*On failure\*\*.*?(docs/runbooks/[\w/-]+\.md)(?:#([\w-]+))?", docs)
        assert link, f"{dag_id}: On failure links to no runbook"
        runbook = REPOSITORY / link[1]
        assert runbook.is_file(), f"{dag_id}: {link[1]} is not there"
        headings = {
            re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in runbook.read_text().splitlines()
            if line.startswith("#")
        }
        assert link[2] is None or link[2] in headings, f"{link[1]} has no heading #{link[2]}"


def test_the_page_of_the_dags_is_what_the_dags_say(home):
    dags = {dag_id: dag for file in DAG_FILES for dag_id, dag in parsed(file, home)["dags"].items()}
    assert page(dags) == (REPOSITORY / "docs" / "DAGs.md").read_text(), "run `make docs`"


def test_every_dag_has_its_projects_owner_retries_and_tags(home):
    dags = everything(home)
    for project in all_projects():
        for stage in STAGES:
            dag = dags[f"{project.name}__{stage}"]
            assert set(dag["tags"]) >= {project.name, stage}
            defaults = dag["default_args"]["__var"]
            assert defaults["owner"] == project.owner
            assert defaults["retries"] >= 1


def test_no_task_repeats_the_parameters_of_its_dag(home):
    """Airflow validates each repeated parameter at each parse. A hundred projects took 5 s."""
    for dag_id, dag in everything(home).items():
        assert [task["__var"]["task_id"] for task in dag["tasks"] if task["__var"].get("params")] == [], dag_id
    assert everything(home)["flights__train"]["params"]


def test_a_task_keeps_its_own_parameters(home, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        """
from airflow.sdk import Param, dag, task


@dag(params={"a": 1, "b": Param(2, type="integer")}, schedule=None)
def own():
    @task(params={"b": 5, "c": 7})
    def one(): ...

    @task(params={"c": 9})
    def mapped(number): ...

    one() >> mapped.expand(number=[1])


own()
"""
    )
    result = parsed(file, home)
    assert result["errors"] == {}
    (made,) = result["dags"].values()
    params = {
        task["__var"]["task_id"]: {name: param["default"] for name, param in task["__var"]["params"]}
        for task in made["dag"]["tasks"]
    }
    assert params == {"one": {"b": 5, "c": 7}, "mapped": {"c": 9}}


def test_unpausing_a_dag_starts_nothing(home):
    """Unpausing a DAG starts no run.

    All DAGs are unpaused when they are parsed, so none may catch up on past runs.
    """
    for dag_id, dag in everything(home).items():
        assert not dag.get("catchup"), dag_id
        assert "start_date" not in dag, dag_id
        assert '"run_immediately": true' not in json.dumps(dag["timetable"]), dag_id


def test_airflow_itself_imports_none_of_them():
    code = (
        f"import airflow.sdk, sys; print(sorted(set({FORBIDDEN!r}) & {{name.partition('.')[0] for name in"
        " sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"
