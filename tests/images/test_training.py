"""The training image runs a whole training as a pod: read-only, as nobody, without capabilities."""

import json
import re

import pytest

from include.projects import get_project
from include.registry import requests

pytestmark = [pytest.mark.timeout(3600), pytest.mark.stack, pytest.mark.images]

WRITES = """
import os
print(os.getuid(), os.getgid(), os.getcwd())
for folder in ("/", "/app", "/opt/airloop", "/etc", "/var", "/home"):
    try:
        open(folder + "/written", "w")
    except OSError:
        continue
    raise SystemExit(f"{folder} can be written")
"""
IMPORTS = """
import importlib, pkgutil
import include.training
from include.projects import all_projects
names = [found.name for found in pkgutil.walk_packages(include.training.__path__, "include.training.") if found.name not in %r]
for name in names:
    importlib.import_module(name)
print(len(names), "modules, projects", [project.name for project in all_projects()])
"""  # noqa: E501
# Proposes trials with Optuna, which only Airflow's tasks do.
ELSEWHERE = ["include.training.search"]
ABSENT = """
import importlib.util
modules = [name for name in %r if importlib.util.find_spec(name)]
raise SystemExit(f"there is {modules}" if modules else 0)
"""


def test_without_arguments_it_says_what_it_does(engine, training_image):
    output = engine.run(training_image).stdout
    assert "usage: python -m include.training" in output and "refit" in output


def test_nobody_runs_it_and_nothing_can_be_written(engine, training_image):
    inside = ("--entrypoint", "python")
    assert engine.run(training_image, "-c", WRITES, options=inside).stdout.split() == ["10001", "10001", "/app"]
    # Counter-check: as root with a writable root, the same program finds a folder that it can
    # write.
    red = engine("run", "--rm", "--network", "host", "--user", "0", *inside, training_image, "-c", WRITES, check=False)
    assert red.returncode == 1 and "/ can be written" in red.stdout


def test_every_module_of_training_can_be_imported_and_airflow_cannot(engine, training_image, size):
    inside = ("--entrypoint", "python")
    print(engine.run(training_image, "-c", IMPORTS % (ELSEWHERE,), options=inside).stdout)
    foreign = ["airflow", "feast", "great_expectations", "evidently", "kubernetes", "pytest", "include.dag_kit"]
    engine.run(training_image, "-c", ABSENT % (foreign,), options=inside)
    red = engine.run(training_image, "-c", ABSENT % (["torch"],), options=inside, check=False)
    assert red.returncode == 1 and "there is ['torch']" in red.stdout
    size(training_image, 1500)


def test_nothing_is_compiled_again_in_each_pod(engine, training_image):
    """The image contains its bytecode, so that no pod compiles it again.

    A read-only root could not store it, and each pod would compile for a minute.
    """

    def compiled(*options):
        inside = ("--entrypoint", "python", *options)
        output = engine.run(training_image, "-v", "-c", "import mlflow, include.training.steps", options=inside).stdout
        assert "code object from '/app/include/training/__pycache__/steps" in output or options
        return re.findall(r"code object from (/\S+\.py)$", output, re.M)

    assert compiled() == []
    assert len(compiled("--env", "PYTHONPYCACHEPREFIX=/tmp/elsewhere")) > 1000  # counter-check


def test_fit_evaluate_and_refit(engine, training_image, mlflow_server, made, monkeypatch):
    settings = {"AIRLOOP_DATA_ROOT": made.store, "MLFLOW_TRACKING_URI": mlflow_server.url}
    options = (
        "--volume",
        f"{made.store}:{made.store}",
        *(o for name, value in settings.items() for o in ("--env", f"{name}={value}")),
    )
    names = ["baseline_rule", *(c.name for c in get_project("flights").candidates)]

    def step(name, *given):
        output = engine.run(training_image, *made.arguments(name, *given), options=options).stdout
        assert "done in" in output, output
        manifest = made.folder / f"{name}.json"
        assert manifest.stat().st_uid == 10001
        return json.loads(manifest.read_text())

    for name in names:
        fitted = step(f"fit-{name}", "--candidate", name)
        assert fitted["candidate"] == name and fitted["git_sha"] == "0123abc"  # the build argument
    judged = step("evaluate", "--fits", *(str(made.folder / f"fit-{name}.json") for name in names))
    assert set(judged["candidates"]) == set(names)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    verdict = requests.apply_gate(get_project("flights"), str(made.folder / "evaluate.json"), made.folder / "gate")
    model = step("refit", "--evaluation", str(made.folder / "evaluate.json"), "--verdict", verdict)
    assert model["model_uri"].startswith("models:/")
    again = engine.run(
        training_image, *made.arguments("fit-baseline_rule", "--candidate", "baseline_rule"), options=options
    )
    assert "finished before; nothing to do" in again.stdout
