"""The tasks of deploy on a real registry: which version is chosen, and how a rollout ends."""

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from include import ledger
from include.dag_kit.tasks import deploy
from include.registry import versions
from tests.unit.rollout.conftest import deployed, project, registry, store  # noqa: F401

CUTOFF = "2013-02-01T00:00:00Z"


class Event:
    def __init__(self, version):
        self.extra = {"version": version}


@pytest.fixture
def rolled_out(store, deployed, monkeypatch):  # noqa: F811
    """Return a project with champion 1, and version 2 chosen by an event."""
    monkeypatch.setattr(deploy, "get_project", lambda name: deployed)
    return deployed


def choose(made, *announced_versions, wanted=None):
    asset_events = {"an asset": [Event(version) for version in announced_versions]}
    return deploy.choose_version.function(made.name, params={"version": wanted}, triggering_asset_events=asset_events)


def promote(made, chosen):
    return deploy.promote.function(made.name, chosen["version"], chosen, CUTOFF, run_id="run")


def rollback(made, chosen):
    deploy.rollback.function(made.name, chosen, CUTOFF, run_id="run")


def test_the_newest_version_of_merged_events_is_chosen(rolled_out):
    chosen = choose(rolled_out, "2", "3")
    assert (chosen["version"], chosen["by_person"]) == ("3", False)


def test_the_version_that_a_person_names_is_chosen_first(rolled_out):
    chosen = choose(rolled_out, "3", wanted="2")
    assert (chosen["version"], chosen["by_person"]) == ("2", True)


def test_a_promoted_version_that_fails_later_gives_way_to_the_old_one(rolled_out):
    chosen = choose(rolled_out, "2")
    assert promote(rolled_out, chosen) == "2"
    assert versions.aliases(rolled_out)["champion"] == "2"
    rollback(rolled_out, chosen)
    assert versions.aliases(rolled_out)["champion"] == "1"
    (decision,) = ledger.decisions(rolled_out.name, "deploy")
    assert decision["verdict"] == "rolled_back" and "champion is version 1 again" in decision["reasons"][0]


def test_a_run_that_moved_no_alias_puts_nothing_back(rolled_out):
    with pytest.raises(AirflowSkipException, match="nothing to put back"):
        rollback(rolled_out, choose(rolled_out, "2"))
    assert versions.aliases(rolled_out) == {"champion": "1"}


def test_a_frozen_project_is_skipped_with_the_reason_and_keeps_its_champion(rolled_out):
    chosen = choose(rolled_out, "2")
    ledger.freeze(rolled_out.name, by="jo", why="audit")
    with pytest.raises(AirflowSkipException, match="by jo: audit"):
        promote(rolled_out, chosen)
    assert versions.aliases(rolled_out) == {"champion": "1"}


def test_the_champion_is_announced_with_its_version_and_cutoff(rolled_out, events, emitted_events):
    chosen = choose(rolled_out, "2")
    promote(rolled_out, chosen)
    deploy.announce_champion.function(rolled_out.name, chosen, CUTOFF, run_id="run", outlet_events=events)
    assert emitted_events() == {f"{rolled_out.name}.champion_model": {"cutoff": CUTOFF, "version": "2"}}
    assert [decision["verdict"] for decision in ledger.decisions(rolled_out.name, "deploy")] == ["deployed"]
