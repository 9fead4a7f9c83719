"""A search, and candidates of two compute classes, through the real train DAG.

It uses child processes, a study in SQL and a real MLflow registry. Only the training set is made
up.
"""

import json
import re
from datetime import UTC, datetime

import pytest

from include import ledger
from include.data import layout
from include.settings import get_settings
from tests.integration import two_classes
from tests.stores import on_both_stores_if_asked
from tests.unit.training import made_up

PROJECT, TREES = two_classes.project, two_classes.project.candidates[0]
CUTOFF = "2013-03-01T00:00:00Z"
IN_THE_FIT, AFTER_THE_FIT = "include.training.trainers:train", "include.training.steps:_write"

pytestmark = pytest.mark.timeout(1200)  # some fifteen child processes each


@pytest.fixture(scope="module")
def rows():
    return made_up.examples(PROJECT, days=60, a_day=40)


@pytest.fixture
def dying():
    """Return a dictionary: step name -> the function at which its next try is killed.

    An example of a step name is ``trial-trees-1``.
    """
    return {}


@pytest.fixture
def train(run_dag, fresh_store, stores, rows, dying, tmp_path, monkeypatch):
    """Return a function that runs the train DAG in the test's own store and registry.

    A second call with the same hour reruns the same run.
    """
    from include.dag_kit.compute import TrainingStep
    from include.features import training_set
    from include.registry.client import registry_client

    monkeypatch.setenv("MLFLOW_TRACKING_URI", stores.mlflow or f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("AIRLOOP_PROJECTS", PROJECT.name)
    get_settings.cache_clear()
    monkeypatch.setattr(training_set, "build", lambda project, request: made_up.write(project, request, rows))
    registry_client().create_experiment(PROJECT.name, artifact_location=str(tmp_path / "artifacts"))
    whole = TrainingStep._run

    def as_this_project(step, module, arguments):
        where = dying.pop(step._name, None)
        whole(
            step, two_classes.__name__, [*(["tests.integration.dying_step", where] if where else [module]), *arguments]
        )

    monkeypatch.setattr(TrainingStep, "_run", as_this_project)
    return lambda hour, **params: run_dag(
        f"{PROJECT.name}__train", {"cutoff": CUTOFF, **params}, at=datetime(2013, 3, 1, hour, tzinfo=UTC)
    )


def trials_of_study(request):
    """Return number -> state, parameters and value of each trial, without duplicates."""
    from include.training import search

    pairs = [
        (t.user_attrs[search.PLACE_ATTRIBUTE], (t.state.name, t.params, t.value))
        for t in search._study(PROJECT, request, TREES).trials
    ]
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def runs_by_candidate():
    from include.registry.client import registry_client

    client = registry_client()
    runs = client.search_runs([client.get_experiment_by_name(PROJECT.name).experiment_id])
    by_candidate = {r.data.tags["candidate"]: r for r in runs}
    assert len(by_candidate) == len(runs)
    return by_candidate


def versions():
    from include.registry.client import registry_client

    return registry_client().search_model_versions(f"name = '{PROJECT.name}'")


def manifests(folder):
    return {path.name: (path.stat().st_mtime_ns, json.loads(path.read_text())) for path in folder.glob("*.json")}


@on_both_stores_if_asked
def test_a_search_that_is_killed_in_the_middle_and_run_again_ends_as_one_search(train, dying, fresh_store, stores):
    dying["trial-trees-1"] = IN_THE_FIT
    killed = train(1)
    assert killed.state == "failed" and "trial ended with exit code -9" in killed.log and not dying
    # Fits of the other class do not depend on the trials. Steps that need both do not start.
    assert killed.tasks["fit_gpu_small"] == "success"
    assert {
        killed.tasks[task]
        for task in ("choose_candidates", "fit", "evaluate", "choose_refit", "refit", "refit_gpu_small", "register")
    } == {"upstream_failed"}
    request = ledger.requests(PROJECT.name)[0].id
    before = trials_of_study(request)
    assert set(before) == {0, 1, 2, 3} and before[1][0] == "RUNNING" and not versions()

    run = train(1)
    assert run.state == "success" and run.run_id == killed.run_id, run.log[-3000:]
    repeated = {
        name.rpartition("/")[2] for name in re.findall(r"trial: finished before; nothing to do \((\S+)\)", run.log)
    }
    assert repeated == {f"trial-trees-{place}.json" for place in (0, 2, 3)}
    assert [r.id for r in ledger.requests(PROJECT.name)] == [request]
    study = trials_of_study(request)
    assert {state for state, _, _ in study.values()} == {"COMPLETE"} and set(study) == {0, 1, 2, 3}
    assert {place: parameters for place, (_, parameters, _) in study.items()} == {
        place: parameters for place, (_, parameters, _) in before.items()
    }
    assert (fresh_store / "studies.db").exists() != stores.are_real

    # The fit and the registered model have the winner's parameters.
    folder = layout.training(PROJECT, request)
    winner = max(study, key=lambda place: (study[place][2], -place))
    won = {**TREES.parameters, **study[winner][1]}
    made = {name: content for name, (_, content) in manifests(folder).items()}
    assert (made["search-trees.json"]["winner"], made["search-trees.json"]["parameters"]) == (winner, won)
    assert made["fit-trees.json"]["parameters"] == made["evaluate.json"]["parameters"] == won
    assert made["refit.json"]["refitted"]

    # Trials are nested below their candidate, and candidates below the request.
    runs = runs_by_candidate()
    assert set(runs) == {"request", "trees", "network", "baseline_rule", *(f"trees/trial_{place}" for place in study)}
    assert {runs[f"trees/trial_{place}"].data.tags["mlflow.parentRunId"] for place in study} == {
        runs["trees"].info.run_id
    }
    assert runs["trees"].data.tags["mlflow.parentRunId"] == runs["request"].info.run_id
    assert [place for place in study if "winner" in runs[f"trees/trial_{place}"].data.tags] == [winner]
    for place, (_, parameters, value) in study.items():
        logged = runs[f"trees/trial_{place}"].data
        assert logged.metrics["auc"] == pytest.approx(value) and logged.params["max_leaf_nodes"] == str(
            parameters["max_leaf_nodes"]
        )

    # The trees won, so only they were refitted, in their compute class.
    assert (run.tasks["refit"], run.tasks["refit_gpu_small"], run.tasks["choose_refit"]) == (
        "success",
        "skipped",
        "success",
    )
    assert run.results["register"]["candidate"] == "trees" and [v.version for v in versions()] == [1]
    assert run.tasks["announce_challenger"] == "success"

    # A rerun repeats no work and creates no duplicates.
    files, logged = manifests(folder), {name: r.data.to_dictionary() for name, r in runs.items()}
    again = train(1)
    assert again.state == "success" and again.results["register"] == run.results["register"]
    now = manifests(folder)
    assert {name: content for name, (_, content) in now.items()} == {
        name: content for name, (_, content) in files.items()
    }
    steps = {
        name for name, (_, content) in files.items() if content.get("step") in ("trial", "fit", "evaluate", "refit")
    }
    assert len(steps) == 4 + 3 + 1 + 1 and {name: now[name] for name in steps} == {
        name: files[name] for name in steps
    }  # written once
    assert trials_of_study(request) == study and len(versions()) == 1
    assert {name: r.data.to_dictionary() for name, r in runs_by_candidate().items()} == logged


def test_a_candidate_is_fitted_and_refitted_in_its_class_and_a_class_without_one_is_left_out(train, dying):
    dying["fit-network"] = AFTER_THE_FIT
    failed = train(2, candidates=["network"])
    assert failed.state == "failed" and (failed.tasks["fit"], failed.tasks["fit_gpu_small"]) == ("success", "failed")
    assert {failed.tasks[task] for task in ("evaluate", "apply_gate", "refit", "refit_gpu_small", "register")} == {
        "upstream_failed"
    }

    run = train(2, candidates=["network"])
    assert run.state == "success", run.log[-3000:]
    assert (run.tasks["trial"], run.tasks["fit"], run.tasks["fit_gpu_small"]) == ("skipped", "success", "success")
    assert (run.tasks["refit"], run.tasks["refit_gpu_small"]) == ("skipped", "success")
    assert run.results["register"]["candidate"] == "network" and len(versions()) == 1
    assert set(runs_by_candidate()) == {"request", "network", "baseline_rule"}

    only_trees = train(3, candidates=["trees"])
    assert only_trees.state == "success", only_trees.log[-3000:]
    assert (only_trees.tasks["fit"], only_trees.tasks["fit_gpu_small"]) == ("success", "skipped")
    assert (only_trees.tasks["refit"], only_trees.tasks["refit_gpu_small"]) == ("success", "skipped")
    assert only_trees.results["register"]["candidate"] == "trees" and len(versions()) == 2
