"""A rollback by hand works from every state of a rollout, repeatedly, and without the ledger."""

import json
import threading
from contextlib import suppress

import pytest
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from include import ledger
from include.cli import app
from include.projects.rollout import Analysis, RolloutPolicy, Step
from include.registry import versions
from include.rollout import manual_rollback, promotion, steps
from include.rollout.document import SupersededError, changing, rollout_document
from include.rollout.manual_rollback import DeploymentChangedError, DeploymentSnapshot, RollbackError, roll_back
from tests.unit.rollout.harness import Clock
from tests.unit.rollout.test_promotion import CUTOFF, Killed, kill_after


@pytest.fixture
def replaced(deployed, serving):
    """Return a project whose champion is version 2 after version 1."""
    promotion.promote(deployed, "2", dag_run="second", cutoff=CUTOFF, by_person=False)
    promotion.confirm(deployed, "2", "second")
    return deployed


def back(project, to=None):
    return roll_back(project, to=to, reason="it refunds everybody", by="jo")


def test_the_last_rollout_is_taken_back_and_again_changes_nothing(replaced):
    done = back(replaced)
    assert (done.champion, done.taken_back.version) == ("1", "2")
    assert versions.aliases(replaced) == {"champion": "1"}
    assert manual_rollback.wait_for_served_version(replaced, "1", timeout_s=5) == (
        True,
        "serving answers with version 1",
    )
    again = back(replaced)
    assert (again.champion, again.taken_back) == ("1", None) and "version 2 is rolled back already" in again.notes[0]
    ended = json.loads(versions.get_version(replaced, "2").tags["rollout"])
    assert ended["state"] == "rolled_back" and ended["reason"] == "rolled back by jo: it refunds everybody"
    last = ledger.decisions(replaced.name, "deploy")[-1]
    assert (
        last["verdict"] == "rolled_back" and "it refunds everybody; champion is version 1 again" in last["reasons"][0]
    )
    # The run that deployed it does not restore it when it is cleared.
    with pytest.raises(SupersededError):
        promotion.promote(replaced, "2", dag_run="second", cutoff=CUTOFF, by_person=False)


def test_a_rollout_in_progress_is_aborted_and_its_run_ends(deployed, serving):
    policy = RolloutPolicy(steps=(Step(weight=0.1),), analysis=Analysis(min_samples=100))
    project, clock = deployed.model_copy(update={"rollout": policy}), Clock()
    for _ in range(2):
        steps.advance(project, "2", dag_run="run", cutoff=CUTOFF, by_person=False, clock=clock)
    answers, text = manual_rollback.wait_for_served_version(project, "1", timeout_s=0)
    assert not answers and "serving still answers with version 1, and beside it canary; it says: ready" in text
    assert back(project).taken_back.version == "2"
    assert versions.aliases(project) == {"champion": "1"} and rollout_document(project).traffic is None
    with pytest.raises(SupersededError, match="rolled back by jo"):
        steps.advance(project, "2", dag_run="run", cutoff=CUTOFF, by_person=False, clock=clock)
    with pytest.raises(SupersededError):
        promotion.promote(project, "2", dag_run="run", cutoff=CUTOFF, by_person=False)
    assert back(project).taken_back is None


def test_one_that_waits_for_serving_is_aborted(deployed, serving):
    promotion.promote(deployed, "2", dag_run="run", cutoff=CUTOFF, by_person=False)
    assert back(deployed).champion == "1"
    with pytest.raises(SupersededError, match="rolled back by jo"):
        promotion.require_alias_unmoved(deployed, "2")


def test_a_version_may_be_named(replaced):
    assert back(replaced, to="3").champion == "3"
    assert back(replaced, to="3").taken_back is None
    assert versions.aliases(replaced)["champion"] == "3"
    assert back(replaced, to="1").champion == "1"


def test_after_a_person_moved_the_alias_it_goes_back_to_previous(replaced):
    versions.move_alias(replaced, "champion", "3")
    assert back(replaced).champion == "1"


@pytest.mark.parametrize("to", [None, "3"])
@pytest.mark.parametrize("writes", range(1, 7))
def test_killed_after_any_write_and_done_again_it_comes_to_the_same_end(replaced, writes, to):
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, writes)
        with suppress(Killed):
            back(replaced, to)
    back(replaced, to)
    assert versions.aliases(replaced)["champion"] == (to or "1") and rollout_document(replaced).state == "rolled_back"


def test_without_anything_before_it_says_what_to_do(deployed, serving):
    with pytest.raises(RollbackError, match="has no version before 1: name one with --to"):
        back(deployed)
    with pytest.raises(RollbackError, match="no version 99"):
        back(deployed, to="99")
    with pytest.raises(RollbackError, match="state the reason"):
        roll_back(deployed, to=None, reason=" ", by="jo")


def test_without_a_champion_there_is_nothing_to_take_back_and_a_version_is_not_deployed(deployed, serving, registry):
    registry.delete_registered_model_alias(deployed.name, "champion")
    done = back(deployed)
    assert (done.champion, done.taken_back) == (None, None)
    with pytest.raises(RollbackError, match=f"has no champion: .* `airloop restore-champion {deployed.name}`"):
        back(deployed, to="2")


def test_the_rollback_of_a_first_model_again_changes_nothing(project, store):
    promotion.promote(project, "1", dag_run="run", cutoff=CUTOFF, by_person=False)
    assert back(project).champion is None
    again = back(project)
    assert (again.champion, again.taken_back) == (None, None) and "is rolled back already" in again.notes[0]


def test_a_rollout_in_progress_whose_alias_a_person_moved_is_named_in_the_notes(deployed, serving):
    promotion.promote(deployed, "2", dag_run="run", cutoff=CUTOFF, by_person=False)
    versions.move_alias(deployed, "champion", "3")
    done = back(deployed, to="1")
    assert done.champion == "1" and "moved to version 3 from outside" in done.notes[0], done.notes


def test_only_what_was_looked_at_is_taken_back(replaced):
    looked = DeploymentSnapshot.from_rollout("2", rollout_document(replaced))
    versions.move_alias(replaced, "champion", "3")
    with pytest.raises(
        DeploymentChangedError,
        match="has changed since you looked: version 3 is champion, and the newest rollout is that of version 2",
    ):
        roll_back(replaced, to=None, reason="it refunds everybody", by="jo", seen=looked)
    assert versions.aliases(replaced)["champion"] == "3"
    versions.move_alias(replaced, "champion", "2")
    # Its own actions do not count as changes.
    for _ in range(2):
        assert roll_back(replaced, to=None, reason="it refunds everybody", by="jo", seen=looked).champion == "1"


def test_a_registry_that_is_away_is_no_missing_version(replaced, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(MlflowException, match="127.0.0.1"):
        back(replaced, to="1")


def test_it_works_while_the_ledger_is_away(replaced, monkeypatch):
    from sqlalchemy.exc import OperationalError

    def away(*_, **__):
        raise OperationalError("SELECT 1", {}, Exception("connection refused"))

    monkeypatch.setattr(ledger, "one_at_a_time", away)
    monkeypatch.setattr(manual_rollback.records, "record_end", away)
    done = back(replaced)
    assert (
        done.champion == "1" and "the ledger does not answer" in done.notes[0] and "connection refused" in done.notes[0]
    )


def test_it_is_allowed_in_a_frozen_project(replaced):
    ledger.freeze(replaced.name, by="mo", why="audit")
    done = back(replaced)
    assert done.champion == "1" and "by mo: audit" in done.notes[0]


def test_a_task_that_changes_the_same_is_waited_for(replaced):
    entered, leave = threading.Event(), threading.Event()

    def task():
        with changing(replaced):
            entered.set()
            leave.wait(60)

    working = threading.Thread(target=task)
    working.start()
    assert entered.wait(60)
    with (
        pytest.raises(ledger.LockTimeoutError, match="somebody else has been changing what is deployed for 0.2 s"),
        changing(replaced, timeout_s=0.2),
    ):
        pass
    leave.set()
    working.join()
    assert back(replaced).champion == "1"


def test_the_command_says_what_serving_serves_afterwards(replaced, monkeypatch):
    monkeypatch.setattr("include.projects.get_project", lambda name: replaced)
    ran = CliRunner().invoke(app, ["rollback", replaced.name, "--reason", "it refunds everybody"])
    assert ran.exit_code == 0, ran.output
    assert (
        "version 2 is taken back; champion is version 1." in ran.output
        and "Serving answers with version 1." in ran.output
    )
    shown = CliRunner().invoke(app, ["rollout", replaced.name])
    assert "Version 2: rolled back: rolled back by" in shown.output
    assert CliRunner().invoke(app, ["rollout", replaced.name, "--resume"]).exit_code == 2
