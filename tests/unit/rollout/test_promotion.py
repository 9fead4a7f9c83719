"""Promotion and rollback against a real registry have the same result after a kill at any write.

A person's choice takes precedence.
"""

import json

import pytest

from include.registry import versions
from include.rollout import promotion, records
from include.rollout.promotion import OvertakenError, SupersededError

CUTOFF = "2013-02-01T00:00:00Z"
WRITES = ("move_alias", "tag_model", "tag_version")


class Killed(BaseException):
    """Stands for SIGKILL: no handler catches it."""


def promote(project, version, run="run", by_person=False):
    return promotion.promote(project, version, dag_run=run, cutoff=CUTOFF, by_person=by_person)


def kill_after(monkeypatch, writes):
    """Die after this many writes to the registry, the last of which is completed.

    Return a function that stops killing.
    """
    left = [writes]

    def dying(write):
        def write_and_maybe_die(*arguments, **named):
            result = write(*arguments, **named)
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return result

        return write_and_maybe_die

    for name in WRITES:
        monkeypatch.setattr(versions, name, dying(getattr(versions, name)))


def killed_and_run_again(work, writes):
    """Run, die after this many writes, and run again to the end. Return False if it ended first."""
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, writes)
        try:
            work()
            return False
        except Killed:
            pass
    work()
    return True


def test_the_first_model_becomes_champion(project):
    promote(project, "1")
    assert versions.aliases(project) == {"champion": "1"}
    assert promotion.confirm(project, "1", "run").state == "serving"


def test_a_challenger_replaces_the_champion_which_stays_as_previous(deployed):
    promote(deployed, "2")
    promotion.confirm(deployed, "2", "run")
    assert versions.aliases(deployed) == {"champion": "2", "previous": "1"}


@pytest.mark.parametrize("writes", range(1, 9))
def test_a_promotion_killed_after_any_write_comes_to_the_same_end(deployed, writes):
    def work():
        promote(deployed, "2")
        promotion.confirm(deployed, "2", "run")

    died = killed_and_run_again(work, writes)
    # Document, previous, champion, document, version's tag, document.
    assert died == (writes <= 6)
    assert versions.aliases(deployed) == {"champion": "2", "previous": "1"}
    assert promotion.rollout_document(deployed).state == "serving"


@pytest.mark.parametrize("writes", range(1, 8))
def test_putting_back_killed_after_any_write_comes_to_the_same_end(deployed, writes):
    promote(deployed, "2")

    died = killed_and_run_again(
        lambda: promotion.restore_previous(deployed, "2", dag_run="run", reason="it did not load"), writes
    )
    assert died == (writes <= 5)  # document, champion, previous, version's tag, document
    assert versions.aliases(deployed) == {"champion": "1"}
    assert promotion.rollout_document(deployed).state == "rolled_back"
    with pytest.raises(SupersededError, match="put back by this run before"):
        promote(deployed, "2")


def test_a_promotion_killed_half_way_for_good_can_be_put_back(deployed):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        # The champion alias has moved, but the document is not updated yet.
        kill_after(patch, 3)
        promote(deployed, "2")
    promotion.restore_previous(deployed, "2", dag_run="run", reason="killed")
    assert versions.aliases(deployed) == {"champion": "1"}


def test_without_an_old_one_putting_back_leaves_no_champion(project):
    promote(project, "1")
    promotion.restore_previous(project, "1", dag_run="run", reason="it did not load")
    assert versions.aliases(project) == {}


def test_running_a_deployment_again_changes_nothing(deployed):
    for _ in range(2):
        promote(deployed, "2")
        promotion.confirm(deployed, "2", "run")
    assert versions.aliases(deployed) == {"champion": "2", "previous": "1"}
    # It is in service, so there is nothing to undo.
    assert promotion.restore_previous(deployed, "2", dag_run="run", reason="too late") is None


@pytest.mark.parametrize("run", ["first", "an event that Airflow repeated"])
def test_an_old_deployment_does_not_bring_the_old_one_back(deployed, run):
    promote(deployed, "2")
    promotion.confirm(deployed, "2", "run")
    with pytest.raises(SupersededError, match=r"ended before \(serving\); champion is version 2"):
        promote(deployed, "1", run=run)
    assert versions.aliases(deployed) == {"champion": "2", "previous": "1"}


def test_a_person_may_go_back_to_an_old_version_and_repeating_that_run_later_changes_nothing(deployed):
    promote(deployed, "2")
    promotion.confirm(deployed, "2", "run")
    promote(deployed, "1", run="by hand", by_person=True)
    promotion.confirm(deployed, "1", "by hand")
    assert versions.aliases(deployed) == {"champion": "1", "previous": "2"}
    promote(deployed, "2", run="by hand again", by_person=True)
    promotion.confirm(deployed, "2", "by hand again")
    with pytest.raises(SupersededError):
        promote(deployed, "1", run="by hand", by_person=True)
    assert versions.aliases(deployed) == {"champion": "2", "previous": "1"}


def test_a_challenger_that_was_judged_against_another_champion_is_not_promoted(deployed):
    with pytest.raises(SupersededError, match="judged against 2, but champion is version 1"):
        promote(deployed, "3")
    assert versions.aliases(deployed) == {"champion": "1"}


def test_a_version_that_the_gate_refused_is_promoted_by_a_person_only(deployed):
    versions.tag_version(deployed, "2", "gate", "refused")
    with pytest.raises(SupersededError, match="did not pass the gate"):
        promote(deployed, "2")
    promote(deployed, "2", by_person=True)
    assert versions.aliases(deployed)["champion"] == "2"


def test_an_alias_that_a_person_moves_meanwhile_stays_there(deployed):
    promote(deployed, "2")
    versions.move_alias(deployed, "champion", "3")
    with pytest.raises(OvertakenError, match="moved to version 3 from outside while version 2"):
        promotion.require_alias_unmoved(deployed, "2")
    for again in (
        lambda: promote(deployed, "2"),
        lambda: promotion.restore_previous(deployed, "2", dag_run="run", reason="x"),
    ):
        with pytest.raises(OvertakenError):
            again()
    assert versions.aliases(deployed) == {"champion": "3", "previous": "1"}
    assert json.loads(versions.get_version(deployed, "2").tags["rollout"])["state"] == "overtaken"


def test_a_person_who_puts_the_old_one_back_meanwhile_wins_too(deployed):
    promote(deployed, "2")
    versions.move_alias(deployed, "champion", "1")
    with pytest.raises(OvertakenError):
        promotion.restore_previous(deployed, "2", dag_run="run", reason="x")
    with pytest.raises(OvertakenError):
        promote(deployed, "2")
    assert versions.aliases(deployed)["champion"] == "1"


def test_an_alias_that_does_not_stay_is_an_error(deployed, monkeypatch):
    monkeypatch.setattr(versions, "aliases", lambda project: {"champion": "3"})
    with pytest.raises(versions.AliasNotMovedError, match="was set to 2 and points at 3"):
        versions.move_alias(deployed, "champion", "2")


def test_a_rejected_version_keeps_why_and_is_not_rolled_out_by_a_second_event(deployed):
    promotion.reject(deployed, "3", dag_run="run", cutoff=CUTOFF, reason="too slow")
    kept = json.loads(versions.get_version(deployed, "3").tags["rollout"])
    assert kept.items() >= {"state": "rolled_back", "dag_run": "run", "cutoff": CUTOFF, "reason": "too slow"}.items()
    assert versions.aliases(deployed) == {"champion": "1"}


def test_what_a_run_of_deploy_is_about(deployed):
    versions.tag_version(deployed, "2", "request", "r2")
    tags = {"cutoff": "2013-02-01T00:00:00Z", "request": "r2", "gate": "passed"}
    announced = [{"version": "2"}, {"version": "1"}, {}]
    assert records.chosen_version(deployed, announced, None) == {"version": "2", "by_person": False, **tags}
    assert records.chosen_version(deployed, [], "2") == {"version": "2", "by_person": True, **tags}
    with pytest.raises(ValueError, match="has no challenger"):
        records.chosen_version(deployed, [], None)
    versions.move_alias(deployed, "challenger", "2")
    assert records.chosen_version(deployed, [], None)["version"] == "2"


def test_a_promoted_version_is_awaited_until_serving_answers_with_it(deployed, serving):
    promote(deployed, "2")
    promotion.wait_for_serving(deployed, "2")
    versions.move_alias(deployed, "champion", "3")
    with pytest.raises(OvertakenError):
        promotion.wait_for_serving(deployed, "2")
