"""The import rules between packages hold, and each rule is shown to fail when it is broken."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from include.projects.base import STAGES
from include.settings import REPOSITORY

pytestmark = pytest.mark.slow

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
CONTRACTS = {contract["id"] for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
PROJECT = "include/projects/flights/features.py"

# One line that breaks each rule, and the file that it is added to.
BREACHES = {
    "airflow-corner": ("include/registry/gate.py", "from airflow.sdk import task"),
    "rooms": ("include/data/layout.py", "from include.registry import gate"),
    "trainers": ("include/training/trainers/torch_mlp.py", "from include.training.trainers import baseline_rule"),
    "trainers-table": ("include/training/trainers/base.py", "from include.training.trainers import UnfitDataError"),
    "pods": ("include/dag_kit/pods/names.py", "from include.dag_kit import compute"),
    "stack": ("include/stack/stores/pools.py", "from include.stack import lifecycle"),
    "projects": (PROJECT, "from include.projects.another import features"),
    "project-modules": ("include/projects/flights/feed.py", "from include.data import storage"),
    "serving": ("serving/settings.py", "from include.settings import get_settings"),
    "serving-layers": ("serving/models/graph.py", "from serving.predicting import completion"),
    "serving-connection": ("serving/http/fast_path.py", "from serving.http.connection import Connection"),
    "serving-apart": ("include/rollout/served.py", "import serving.settings"),
    "feature-repo": ("feature_repo/shared.py", "from include.settings import get_settings"),
}


def lint_imports(root: Path, *options: str) -> subprocess.CompletedProcess:
    program = [
        sys.executable,
        "-c",
        "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())",
    ]
    return subprocess.run(
        [*program, *(options or ("--no-cache",))],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Copy the packages so that a test can break them. All contracts are kept there.

    import-linter reads a file again only if it has changed.
    """
    root = tmp_path_factory.mktemp("walls")
    for package in ("include", "serving", "feature_repo"):
        shutil.copytree(REPOSITORY / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "include/projects/flights", root / "include/projects/another")
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    kept = lint_imports(root, "--cache-dir", "cache")
    assert kept.returncode == 0, f"broken before it is broken: {kept.stdout}"
    return root


@pytest.fixture
def broken(request, copy):
    """Add a line to a file of the copy, within a function. The file is restored afterwards."""
    file, line = request.param
    kept = (copy / file).read_text()
    (copy / file).write_text(f"{kept}\n\ndef late():\n    {line}\n")
    yield copy
    (copy / file).write_text(kept)


def test_all_walls_stand():
    result = lint_imports(REPOSITORY)
    assert result.returncode == 0, result.stdout


def test_each_wall_has_its_breach():
    assert BREACHES.keys() == CONTRACTS


@pytest.mark.parametrize("contract, broken", sorted(BREACHES.items()), indirect=["broken"], ids=sorted(BREACHES))
def test_a_breach_is_seen(contract, broken):
    result = lint_imports(broken, "--cache-dir", "cache", "--contract", contract)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


@pytest.mark.parametrize(
    "file, allowed",
    [
        ("dags/train.py", False),
        ("plugins/reports.py", False),
        ("config/airflow_local_settings.py", False),
        ("include/dag_kit/compute.py", False),
        ("include/assets.py", False),
        ("include/ledger/__init__.py", False),
        ("include/projects/base.py", False),
        ("include/projects/flights/__init__.py", False),
        ("include/projects/flights/features.py", True),
        ("include/data/tables.py", True),
        ("serving/predicting/predict.py", True),
    ],
)
@pytest.mark.parametrize("line", ["import pandas", "from mlflow import tracking", "import sklearn.ensemble"])
def test_heavy_imports_at_module_level_are_refused_where_they_cost(file, allowed, line):
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID253", "--stdin-filename", file, "-"]
    result = subprocess.run(
        command, cwd=REPOSITORY, input=line + "\n", capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode == 0) == allowed, result.stdout + result.stderr


# --- DAG files: not packages, so import-linter does not check them --------------------------------

LIGHT_ROOMS = ("include.assets", "include.dag_kit", "include.projects")
MOST_LINES = 80


def dag_file_faults(source: str) -> list[str]:
    """Describe what violates the rules for DAG files: its imports, tasks of its own, its length."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    faults = [f"defines the task {function.name}" for function in functions if _is_task(function)]
    if (lines := source.count("\n")) > MOST_LINES:
        faults.append(f"has {lines} lines; at most {MOST_LINES}")
    for node in ast.walk(tree):
        top_level = node in tree.body
        for module in _imported(node):
            root = module.partition(".")[0]
            if root in {"serving", "feature_repo", "dags", "plugins"} or (REPOSITORY / "dags" / f"{root}.py").exists():
                faults.append(f"imports {module}")
            elif (
                top_level
                and root == "include"
                and not module.startswith(LIGHT_ROOMS)
                or top_level
                and root not in {"airflow", "include"}
                and root not in sys.stdlib_module_names
            ):
                faults.append(f"imports {module} at module level")
    return faults


def _is_task(function: ast.FunctionDef) -> bool:
    """Return whether a function has the decorator ``@task``, ``@task(...)`` or ``@task.<kind>``."""
    named = [
        node for decorator in function.decorator_list for node in ast.walk(decorator) if isinstance(node, ast.Name)
    ]
    return any(node.id == "task" for node in named)


def _imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [name.name for name in names]
        case ast.ImportFrom(module=str(module), names=names):
            return [f"{module}.{name.name}" for name in names]
    return []


@pytest.mark.parametrize(
    "file",
    [REPOSITORY / "dags" / f"{name}.py" for name in (*STAGES, "broken_projects", "sweep_pods")],
    ids=lambda file: file.name,
)
def test_a_dag_file_is_short_wiring_and_imports_what_it_may(file):
    assert dag_file_faults(file.read_text()) == []


@pytest.mark.parametrize(
    "source, fault",
    [
        ("import pandas", "imports pandas at module level"),
        ("from include.registry import gate", "imports include.registry.gate at module level"),
        ("from include import ledger", "imports include.ledger at module level"),
        ("def task():\n    from serving import settings", "imports serving.settings"),
        ("def task():\n    import train", "imports train"),
        ("def task():\n    import feature_repo.flights", "imports feature_repo.flights"),
        ("@task\ndef decide():\n    pass", "defines the task decide"),
        ("def train():\n    @task(retries=0)\n    def decide():\n        pass", "defines the task decide"),
        ("@task.branch\ndef decide():\n    pass", "defines the task decide"),
        ("x = 1\n" * 81, "has 81 lines; at most 80"),
    ],
)
def test_a_fault_in_a_dag_file_is_seen(source, fault):
    assert dag_file_faults(source) == [fault]
    assert (
        dag_file_faults(
            "import json\nfrom airflow.sdk import dag\nfrom include.dag_kit.defaults import tags\ndef task():\n   "
            " import pandas"
        )
        == []
    )
