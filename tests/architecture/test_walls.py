"""The walls between the rooms stand, and each has been seen to fall: a wall that nothing breaks is not known to stand."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from include.projects.base import STAGES
from include.settings import REPOSITORY

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
CONTRACTS = {contract["id"] for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
PROJECT = "include/projects/flights/features.py"

# One line that breaks each wall, and the file that it is added to.
BREACHES = {
    "airflow-corner": ("include/registry/gate.py", "from airflow.sdk import task"),
    "rooms": ("include/data/layout.py", "from include.registry import gate"),
    "projects": (PROJECT, "from include.projects.another import features"),
    "serving": ("serving/settings.py", "from include.settings import get_settings"),
    "serving-apart": ("include/rollout/served.py", "import serving.settings"),
    "feature-repo": ("feature_repo/shared.py", "from include.settings import get_settings"),
}


def lint_imports(root: Path, *options: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())", "--no-cache"]
    return subprocess.run([*program, *options], cwd=root, env={"PYTHONPATH": str(root), "PATH": ""}, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def copy(tmp_path):
    """The packages, to be broken."""
    for package in ("include", "serving", "feature_repo"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(tmp_path / "include/projects/flights", tmp_path / "include/projects/another")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_all_walls_stand():
    result = lint_imports(REPOSITORY)
    assert result.returncode == 0, result.stdout


def test_each_wall_has_its_breach():
    assert BREACHES.keys() == CONTRACTS


@pytest.mark.parametrize("contract", sorted(BREACHES))
def test_a_breach_is_seen(contract, copy):
    file, line = BREACHES[contract]
    assert lint_imports(copy, "--contract", contract).returncode == 0, "broken before it is broken"
    with (copy / file).open("a") as text:
        text.write(f"\n\ndef late():\n    {line}\n")  # inside a function too
    result = lint_imports(copy, "--contract", contract)
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
        ("serving/predict.py", True),
    ],
)
@pytest.mark.parametrize("line", ["import pandas", "from mlflow import tracking", "import sklearn.ensemble"])
def test_heavy_imports_at_module_level_are_refused_where_they_cost(file, allowed, line):
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID253", "--stdin-filename", file, "-"]
    result = subprocess.run(command, cwd=REPOSITORY, input=line + "\n", capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode == 0) == allowed, result.stdout + result.stderr


# --- DAG files: no packages, so nothing for import-linter -----------------------------------------------------------------------------------------

LIGHT_ROOMS = ("include.assets", "include.dag_kit", "include.projects")


def dag_file_faults(source: str) -> list[str]:
    """What a DAG file imports against the rules of its room, in words."""
    tree = ast.parse(source)
    faults = []
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


def _imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [name.name for name in names]
        case ast.ImportFrom(module=str(module), names=names):
            return [f"{module}.{name.name}" for name in names]
    return []


@pytest.mark.parametrize("file", [REPOSITORY / "dags" / f"{name}.py" for name in (*STAGES, "broken_projects", "sweep_pods")], ids=lambda file: file.name)
def test_a_dag_file_imports_what_its_room_may(file):
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
    ],
)
def test_a_fault_in_a_dag_file_is_seen(source, fault):
    assert dag_file_faults(source) == [fault]
    assert dag_file_faults("import json\nfrom airflow.sdk import dag\nfrom include.dag_kit.defaults import tags\ndef task():\n    import pandas") == []
