"""A champion that was deleted in MLflow is reported as lost, and one command restores it.

Until then no version replaces it.
"""

import json

import pytest
from typer.testing import CliRunner

from include import ledger
from include.cli import app, models
from include.data import layout
from include.monitoring import episodes
from include.operations.doctor import loop as doctor
from include.registry import lost, requests, versions
from include.rollout import promotion, restoring
from include.rollout.document import rollout_document
from include.rollout.manual_rollback import roll_back
from include.training import manifest
from tests.unit.rollout.test_promotion import CUTOFF

REASON = {"reason": "deleted by mistake", "by": "jo"}


@pytest.fixture
def loaded(monkeypatch):
    """Replace the smoke test, and return the list of versions that it was called for.

    The versions of these tests do not have files.
    """
    asked = []
    monkeypatch.setattr(promotion, "smoke_test", lambda project, version: asked.append(version))
    return asked


@pytest.fixture
def champion(deployed, serving, loaded):
    """Return the project with version 2 deployed after version 1. Its request is recorded."""
    promotion.promote(deployed, "2", dag_run="second", cutoff=CUTOFF, by_person=False)
    promotion.confirm(deployed, "2", "second")
    return deployed


def alias_removed(project, registry):
    registry.delete_registered_model_alias(project.name, "champion")


def version_deleted(project, registry):
    registry.delete_model_version(project.name, "2")


def model_deleted(project, registry):
    ledger.decide(project.name, "deploy", "version 1, first", verdict="deployed", reasons=[], cutoff=CUTOFF)
    ledger.decide(project.name, "deploy", "version 2, second", verdict="deployed", reasons=[], cutoff=CUTOFF)
    registry.delete_registered_model(project.name)


LOSSES = pytest.mark.parametrize("lose", [alias_removed, version_deleted, model_deleted])


@LOSSES
def test_a_loss_is_told_and_nothing_is_judged_without_the_champion(champion, registry, lose, monkeypatch):
    assert lost.lost_champion(champion) is None
    lose(champion, registry)
    gone = lost.lost_champion(champion)
    assert (gone.version, gone.deleted) == ("2", lose is not alias_removed)
    with pytest.raises(lost.ChampionLostError, match=f"restore-champion {champion.name}"):
        requests.judging_basis(champion, {"id": "new"}, "/nowhere/set.parquet")
    monkeypatch.setattr(doctor, "all_projects", lambda: [champion])
    (fault,) = doctor.champions(None)
    assert fault.state == "fault" and "version 2" in fault.what and "restore-champion" in fault.fix
    summary = episodes.decide_retraining(champion, CUTOFF, None, None, dag_run="run")
    assert (summary["state"], summary["asked"]) == ("champion lost", False)
    assert ["champion lost: version 2, 2013" in notice["subject"] for notice in ledger.notices(champion.name)] == [True]


def test_before_the_first_deployment_nothing_is_lost(project, store):
    assert lost.lost_champion(project) is None
    assert requests.judging_basis(project, {"id": "new"}, "/nowhere/set.parquet")["champion"] is None


def test_a_first_version_that_was_rolled_back_is_not_lost(project, store):
    promotion.promote(project, "1", dag_run="first", cutoff=CUTOFF, by_person=False)
    promotion.restore_previous(project, "1", dag_run="first", reason="serving refused it")
    assert versions.aliases(project) == {} and lost.lost_champion(project) is None


@pytest.mark.parametrize("state", ["trying", "paused", "promoting", "promoted", "rolling_back", "rolled_back"])
def test_a_loss_is_seen_in_each_state_of_a_rollout(champion, registry, state):
    document = {
        "version": "3",
        "previous": "2",
        "before_previous": "1",
        "state": state,
        "dag_run": "third",
        "cutoff": CUTOFF,
    }
    versions.tag_model(champion, versions.ROLLOUT, json.dumps(document))
    alias_removed(champion, registry)
    assert lost.lost_champion(champion).version == ("3" if state == "promoted" else "2")


@pytest.mark.parametrize("edited", ["no json", "[]", "7", '"text"'])
def test_a_document_that_somebody_edited_hides_no_loss(champion, registry, edited):
    for subject in ("version 1, first", "version 2, second"):
        ledger.decide(champion.name, "deploy", subject, verdict="deployed", reasons=[], cutoff=CUTOFF)
    registry.set_registered_model_tag(champion.name, versions.ROLLOUT, edited)
    alias_removed(champion, registry)
    assert lost.lost_champion(champion).version == "2"


def test_an_alias_that_was_taken_away_is_set_again(champion, registry, loaded):
    alias_removed(champion, registry)
    assert restoring.restore_champion(champion, **REASON) == restoring.Restored("2", "2")
    assert versions.aliases(champion) == {"champion": "2", "previous": "1"} and loaded == ["2"]
    assert lost.lost_champion(champion) is None
    with pytest.raises(restoring.RestoreChampionError, match="version 2 is champion"):
        restoring.restore_champion(champion, **REASON)
    assert ledger.decisions(champion.name, "deploy")[-1]["reasons"] == ["restored by jo: deleted by mistake"]
    kept = rollout_document(champion)
    assert (kept.version, kept.previous, kept.state, kept.cutoff) == ("2", "1", "serving", "2013-02-01T00:00:00Z")
    assert kept.dag_run.startswith("restored by jo at ") and kept.reason == "restored by jo: deleted by mistake"
    # A rollback is possible, as after each rollout.
    assert roll_back(champion, to="1", reason="enough", by="jo").champion == "1"


def trained(project, registry) -> str:
    """Write the manifests of a request whose model was version 2. Return the logged model's URI."""
    logged = registry.create_logged_model(registry.create_experiment(project.name))
    asked = ledger.request_retraining(project.name, cutoff=CUTOFF, reason="drift", asked_by="run")
    ledger.claim_request(project.name, "run")
    ledger.conclude_training(asked.id, "run", "passed", version="2")
    folder = layout.training(project, asked.id)
    evaluation = {
        "feature_service": project.feature_service,
        "cutoff": CUTOFF,
        "table_versions": {},
        "champion": None,
        "judged_rows": 500,
        "challenger": {"auc": 0.7},
        "run_id": "0" * 32,
    }
    manifest.write(folder / "evaluation.json", evaluation)
    manifest.write(folder / "verdict.json", {"passed": True, "reasons": ["kept: enough"]})
    model = {
        "fitted_until": CUTOFF,
        "git_sha": "abc",
        "dag_run": "run",
        "request": asked.id,
        "candidate": "mlp",
        "refitted": True,
        "model_uri": logged.model_uri,
        "run_id": None,
        "evaluation": str(folder / "evaluation.json"),
        "verdict": str(folder / "verdict.json"),
    }
    manifest.write(folder / "refit.json", model)
    return logged.model_uri


def test_a_deleted_version_is_registered_again(champion, registry, loaded):
    files = trained(champion, registry)
    version_deleted(champion, registry)
    done = restoring.restore_champion(champion, **REASON)
    assert done == restoring.Restored("4", "2") and loaded == ["4"]
    now = versions.champion(champion)
    assert str(now.version) == "4" and now.tags["gate"] == "passed" and now.source == files
    assert "challenger" not in versions.aliases(champion)


def test_killed_before_the_alias_moves_it_is_done_again_with_the_same_version(champion, registry, monkeypatch):
    trained(champion, registry)
    version_deleted(champion, registry)
    move = versions.move_alias
    monkeypatch.setattr(versions, "move_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        restoring.restore_champion(champion, **REASON)
    monkeypatch.setattr(versions, "move_alias", move)
    assert restoring.restore_champion(champion, **REASON).version == "4"
    assert sorted(str(v.version) for v in versions.newest_versions(champion, 9)) == ["1", "3", "4"]


def test_without_its_files_it_names_the_versions_there_are(champion, registry):
    version_deleted(champion, registry)
    with pytest.raises(
        restoring.RestoreChampionError,
        match="no training of .* made it. Versions that passed the gate: 3, 1; name one with --version",
    ):
        restoring.restore_champion(champion, **REASON)
    with pytest.raises(restoring.RestoreChampionError, match="has no version 9"):
        restoring.restore_champion(champion, version="9", **REASON)
    assert versions.aliases(champion) == {"previous": "1"}
    assert restoring.restore_champion(champion, version="1", **REASON) == restoring.Restored("1", "2")


def test_one_that_does_not_answer_its_golden_requests_stays_away(champion, registry, monkeypatch):
    alias_removed(champion, registry)
    monkeypatch.setattr(
        promotion,
        "smoke_test",
        lambda *_: (_ for _ in ()).throw(promotion.UnfitModelError("golden request 0: 1.0 and not 2.0")),
    )
    with pytest.raises(
        restoring.RestoreChampionError,
        match="version 2 cannot be champion: UnfitModelError: golden request 0.* 3, 1; name one",
    ):
        restoring.restore_champion(champion, **REASON)
    assert "champion" not in versions.aliases(champion)


def test_the_command(champion, registry, monkeypatch):
    monkeypatch.setattr("include.projects.get_project", lambda _: champion)
    monkeypatch.setattr(models, "mlflow_or_exit", lambda note="": None)
    refused = CliRunner().invoke(app, ["restore-champion", champion.name, "--reason", "x"])
    assert refused.exit_code == 2 and "has lost no champion: version 2 is champion" in refused.output
    alias_removed(champion, registry)
    done = CliRunner().invoke(app, ["restore-champion", champion.name, "--reason", "deleted by mistake"])
    assert (done.exit_code, done.output) == (
        0,
        f"{champion.name}: champion is version 2.\nServing answers with version 2.\n",
    )


def test_a_project_may_go_on_without_it(champion, registry, monkeypatch):
    monkeypatch.setattr("include.projects.get_project", lambda _: champion)
    monkeypatch.setattr(models, "mlflow_or_exit", lambda note="": None)
    version_deleted(champion, registry)
    done = CliRunner().invoke(
        app, ["restore-champion", champion.name, "--give-up", "--reason", "we begin anew", "--by", "jo"]
    )
    assert done.exit_code == 0 and "goes on without version 2" in done.output
    assert lost.lost_champion(champion) is None
    assert requests.judging_basis(champion, {"id": "new"}, "/nowhere/set.parquet")["champion"] is None
    # A champion that was deployed later and then lost is reported again.
    promotion.promote(champion, "3", dag_run="third", cutoff=CUTOFF, by_person=True)
    promotion.confirm(champion, "3", "third")
    alias_removed(champion, registry)
    assert lost.lost_champion(champion).version == "3"
