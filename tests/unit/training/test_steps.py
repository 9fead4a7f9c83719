"""The training steps and the registration, against a real MLflow (SQLite).

The tests check what they write, and that a kill at any point creates no duplicates.
"""

import itertools
import json
import os
from datetime import timedelta
from hashlib import sha256

import pandas as pd
import pytest
from mlflow import MlflowClient

from include import ledger
from include.data import layout
from include.projects.base import Candidate, GatePolicy, Metric, Project, TaskKind
from include.projects.flights import project as flights
from include.registry import requests, versions
from include.registry.client import registry_client
from include.rollout import promotion
from include.settings import get_settings
from include.training import __main__ as command
from include.training import evaluation, manifest, steps
from include.training.bundle import FILES, RULE, Bundle
from tests.unit.training import made_up

CUTOFF = "2013-02-10T00:00:00Z"
COUNT = itertools.count()
WRITES = (
    "create_experiment",
    "create_run",
    "log_batch",
    "log_inputs",
    "log_text",
    "log_artifact",
    "log_model_artifact",
    "set_terminated",
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("AIRLOOP_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        # MLflow without a server stores artifacts below the working directory.
        patch.chdir(folder)
        get_settings.cache_clear()
        yield folder
    get_settings.cache_clear()


def made(kind=TaskKind.BINARY, **changes) -> Project:
    metric = (
        Metric(name="auc", higher_is_better=True)
        if kind == TaskKind.BINARY
        else Metric(name="mae", higher_is_better=False)
    )
    return flights.model_copy(
        update={
            "name": f"made_{next(COUNT)}",
            "kind": kind,
            "metric": metric,
            "candidates": (
                Candidate(
                    name="trees", trainer="hist_gradient_boosting", parameters={"max_iter": 20, "max_leaf_nodes": 7}
                ),
            ),
            "gate": GatePolicy(min_rows=300, holdout=timedelta(days=10)),
            **changes,
        }
    )


def request_for(project, reason="first_model", cutoff=CUTOFF, **parameters):
    return ledger.request_retraining(
        project.name, cutoff=cutoff, reason=reason, asked_by="a test", parameters=parameters
    )._asdict()


def run_step(project, name, given):
    """Run a step as ``include.training.__main__`` does, for a project that has no folder."""
    made_from = {"step": name, **given}
    target = given.pop("manifest")
    if not manifest.finished(target, made_from):
        getattr(steps, name)(project, manifest=target, made_from=made_from, git_sha="abc", dag_run="run_1", **given)
    return target


def trained(project, request, rows):
    """Run all steps of the train DAG in order and return the registered version."""
    folder = layout.training(project, request["id"])
    basis = requests.judging_basis(project, request, made_up.write(project, request, rows))
    fits = [
        run_step(project, "fit", {**given, "manifest": f"{folder}/fit-{given['candidate']}.json"})
        for given in requests.fits_of(project, request, basis)
    ]
    evaluation = run_step(
        project,
        "evaluate",
        {**basis, "fits": fits, "manifest": f"{folder}/evaluate.json", "report": str(folder / "report")},
    )
    verdict = requests.apply_gate(project, evaluation, folder / "gate_report")
    given = {k: basis[k] for k in ("request", "training_set")}
    model = run_step(
        project, "refit", {**given, "evaluation": evaluation, "verdict": verdict, "manifest": f"{folder}/refit.json"}
    )
    return versions.register_judged(project, model)


@pytest.fixture(scope="module")
def rows():
    return made_up.examples(flights, days=70, a_day=50, turns_on=45)


def test_what_a_first_model_leaves_in_mlflow(home, rows):
    project, client = made(), registry_client()
    request = request_for(project)
    version = trained(project, request, rows)
    assert version == {
        "name": project.name,
        "version": "1",
        "gate": "passed",
        "request": request["id"],
        "cutoff": CUTOFF,
        "candidate": "trees",
    }
    assert len(json.dumps(version)) < 1000
    assert versions.aliases(project) == {"challenger": "1"}

    model_version = versions.get_version(project, "1")
    expected = {
        "gate": "passed",
        "candidate": "trees",
        "fitted_until": CUTOFF,
        "judged_against": "",
        "git_sha": "abc",
        "airflow_run": "run_1",
        "feature_service": project.feature_service,
        "entity": "origin,carrier,dest,route,tailnum",
        "refitted": "true",
        "request": request["id"],
    }
    assert expected.items() <= model_version.tags.items()
    folder = versions.bundle(project, "1")
    assert json.loads(model_version.tags["bundle_sha256"]) == {
        name: sha256((folder / name).read_bytes()).hexdigest() for name in (*FILES, RULE)
    }
    # The version includes the baseline. Serving uses it where the look-up lacks values.
    rule = Bundle.load(versions.baseline_bundle(project, "1"))
    model = Bundle.load(folder)
    assert model.rule == rule.graph
    golden = pd.DataFrame(model.golden["instances"])
    assert (
        model.golden["baseline"]
        == rule.predict(golden.astype(dict.fromkeys(model.contract["numeric"], "float64"))).tolist()
    )
    assert model.contract["lookup"] == project.lookup.model_dump()
    assert json.loads(model_version.tags["table_versions"]) == {"actuals": 3, "schedule": 2}
    assert 0.5 < float(model_version.tags["metric.auc"]) < 1 and "metric.brier" in model_version.tags
    assert "**Gate: passed**" in model_version.description and all(
        reason in model_version.description for reason in json.loads(model_version.tags["gate_reasons"])
    )

    run = client.get_run(model_version.run_id)
    assert run.data.params["candidate"] == "trees" and run.data.params["max_iter"] == "20"
    assert {"auc", "brier", "log_loss", "trees.auc", "baseline_rule.auc", "judged_rows"} <= set(run.data.metrics)
    assert (
        run.data.tags["cutoff"] == CUTOFF
        and run.data.tags["git_sha"] == "abc"
        and run.data.tags["airflow_run"] == "run_1"
    )
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (
        json.loads(dataset.source)["table_versions"] == {"actuals": 3, "schedule": 2}
        and json.loads(dataset.source)["cutoff"] == CUTOFF
    )
    assert [f.path for f in client.list_artifacts(model_version.run_id, "evaluation")] == [
        f"evaluation/{f}" for f in ("by_month.png", "calibration.png", "index.html", "roc.png")
    ]
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{model_version.run_id}'")
    assert sorted(r.data.tags["candidate"] for r in children) == ["baseline_rule", "trees"]
    assert "same rows" in (layout.training(project, request["id"]) / "report" / "index.html").read_text()


def test_another_server_can_be_spoken_to_in_the_same_process(home, rows, monkeypatch):
    """The same process can use another server afterwards.

    MLflow's global URI and its variable are the same as before a model was logged. Otherwise the
    next registration would go to the wrong server.
    """
    import mlflow

    before = os.environ["MLFLOW_TRACKING_URI"]
    project = made()
    trained(project, request_for(project), rows)
    assert os.environ["MLFLOW_TRACKING_URI"] == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another:5000")
    assert mlflow.get_tracking_uri() == "http://another:5000"


def test_the_bundle_of_a_version_is_the_refitted_model_with_the_judged_ones_reference(home, rows):
    project = made()
    request = request_for(project)
    trained(project, request, rows)
    bundle = Bundle.load(versions.bundle(project, "1"))
    judged = Bundle.load(layout.training(project, request["id"]) / "models" / "trees")
    assert bundle.check_golden() == 0 and bundle.graph != judged.graph
    assert bundle.reference().equals(judged.reference())
    fit = manifest.read(layout.training(project, request["id"]) / "fit-trees.json")
    assert (bundle.reference()["event_timestamp"] > pd.Timestamp(fit["fitted_until"])).all()
    assert Bundle.load(versions.baseline_bundle(project, "1")).check_golden() == 0


def test_a_project_may_deploy_the_judged_model_itself(home, rows):
    project = made(refit=False)
    request = request_for(project)
    trained(project, request, rows)
    tags = versions.get_version(project, "1").tags
    assert tags["refitted"] == "false" and tags["fitted_until"] < CUTOFF
    assert (
        Bundle.load(versions.bundle(project, "1")).graph
        == Bundle.load(layout.training(project, request["id"]) / "models" / "trees").graph
    )


def test_a_champion_is_judged_on_rows_that_it_does_not_know(home, rows):
    project = made()
    trained(project, request_for(project), rows)
    versions.move_alias(project, "champion", "1")
    later = request_for(project, "drift", cutoff="2013-03-12T00:00:00Z", last_days=24)
    version = trained(project, later, rows)
    evaluation = manifest.read(layout.training(project, later["id"]) / "evaluate.json")
    assert evaluation["champion"] == f"models:/{project.name}/1" and evaluation["judged_rows"] > 300
    # The outcome follows another rule since day 45.
    assert evaluation["challenger"]["auc"] > evaluation["champion_figures"]["auc"]
    assert evaluation["difference"]["low"] > 0
    assert version["gate"] == "passed" and versions.get_version(project, "2").tags["judged_against"] == "1"

    versions.move_alias(project, "champion", "2")
    again = trained(project, request_for(project, "person", cutoff="2013-03-12T00:00:00Z"), rows)
    # There are not enough new labels to judge on.
    assert again["gate"] == "refused" and again["version"] == "3"
    assert "judged on 0 rows" in versions.get_version(project, "3").tags["gate_reasons"]
    assert versions.aliases(project) == {"challenger": "2", "champion": "2"}
    assert promotion.smoke_test(project, "2") == 0
    # A person may not deploy it either.
    with pytest.raises(promotion.UnfitModelError, match="version 3 has no golden requests"):
        promotion.smoke_test(project, "3")


def test_a_champion_that_wants_other_inputs_cannot_be_judged_and_nobody_passes(home, rows):
    project = made()
    trained(project, request_for(project), rows)
    versions.move_alias(project, "champion", "1")
    narrower = project.model_copy(
        update={
            "inputs": project.inputs.model_copy(
                update={"numeric": tuple(c for c in project.inputs.numeric if c != "humid")}
            )
        }
    )
    version = trained(narrower, request_for(project, "code", cutoff="2013-03-12T00:00:00Z"), rows)
    assert version["gate"] == "refused"
    assert (
        "input columns are missing: humid"
        in manifest.read(layout.training(project, version["request"]) / "evaluate.json")["champion_error"]
    )


def test_a_regression_walks_the_same_way(home):
    project = made(TaskKind.REGRESSION)
    rows = made_up.examples(project, days=40, a_day=50)
    version = trained(project, request_for(project), rows)
    assert version["gate"] == "passed"
    model_version = versions.get_version(project, "1")
    assert {"metric.mae", "metric.rmse", "metric.r2"} <= set(model_version.tags)
    names = [f.path for f in registry_client().list_artifacts(model_version.run_id, "evaluation")]
    assert names == ["evaluation/by_month.png", "evaluation/index.html", "evaluation/residuals.png"]


def test_a_training_set_that_knows_the_future_is_refused(home, rows):
    project = made()
    request = request_for(project)
    uri = made_up.write(project, request, rows)
    cheating = pd.read_parquet(uri)
    cheating.loc[5, "label_known_at"] = pd.Timestamp(CUTOFF) + pd.Timedelta(seconds=1)
    cheating.to_parquet(uri)
    with pytest.raises(ValueError, match="without an outcome known by its cutoff"):
        steps.read_examples(project, uri)


class Killed(BaseException):
    """Stands for SIGKILL: no handler catches it."""


def test_killed_after_any_write_and_run_again_nothing_is_there_twice(home, rows, monkeypatch):
    project, client = made(), registry_client()
    request = request_for(project)
    monkeypatch.setattr(evaluation, "evaluation_plots", lambda *_: {"roc": b"not drawn again and again"})
    left = [0]

    def dying(write):
        def write_and_maybe_die(*arguments, **named):
            result = write(*arguments, **named)
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return result

        return write_and_maybe_die

    for name in WRITES:
        monkeypatch.setattr(MlflowClient, name, dying(getattr(MlflowClient, name)))
    finished = manifest.write
    monkeypatch.setattr(manifest, "write", dying(finished))

    kills, writes, manifests = 0, 0, 0
    # Each step starts from the beginning each time. It dies after its first write, then after its
    # second, and so on until it ends. Then the next step follows.
    while True:
        done = len(list(layout.training(project, request["id"]).glob("*.json")))
        writes, manifests = (writes + 1, manifests) if done == manifests else (1, done)
        left[0] = writes
        try:
            version = trained(project, request, rows)
            break
        except Killed:
            kills += 1
    assert kills > 20

    assert [str(v.version) for v in client.search_model_versions(f"name = '{project.name}'")] == ["1"]
    experiment = client.get_experiment_by_name(project.name).experiment_id
    assert sorted(r.data.tags["candidate"] for r in client.search_runs([experiment])) == [
        "baseline_rule",
        "request",
        "trees",
    ]
    assert len(client.search_logged_models([experiment])) == 1
    assert versions.aliases(project) == {"challenger": "1"}

    # The whole run is cleared much later, with its model deployed: everything is found unchanged.
    versions.move_alias(project, "champion", "1")
    assert trained(project, request, rows) == version
    assert len(client.search_logged_models([experiment])) == 1 and versions.aliases(project) == {
        "challenger": "1",
        "champion": "1",
    }
    assert Bundle.load(versions.bundle(project, "1")).check_golden() == 0


def test_the_command_line_does_a_step_once_and_says_so(home, rows, monkeypatch, capsys):
    fitted = []
    monkeypatch.setattr(
        steps,
        "fit",
        lambda project, **given: (
            fitted.append(given),
            manifest.write(given["manifest"], {"made_from": manifest.fingerprint(given["made_from"])}),
        ),
    )
    line = [
        "fit",
        "--project",
        "flights",
        "--request",
        "abc",
        "--training-set",
        "x.parquet",
        "--candidate",
        "torch_mlp",
        "--manifest",
        str(home / "fit.json"),
        "--dag-run",
    ]
    command.main([*line, "run_1"])
    command.main([*line, "run_2"])  # another try of the same work
    assert len(fitted) == 1 and "finished before" in capsys.readouterr().out
    command.main([*line[:-1], "--champion-fitted-until", CUTOFF])  # other work
    assert len(fitted) == 2
