"""Freezing and thawing: affected projects, what stays, and the report if Airflow is unavailable."""

import pytest

from include import ledger
from include.ledger import EVERYTHING
from include.operations import freezing
from include.settings import get_settings
from tests.ports import free_port

CUTOFF = "2013-05-01T10:00:00Z"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Create a home with an unavailable Airflow."""
    port = free_port()
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("AIRLOOP_AIRFLOW_PORT", str(port))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def thaw(project="flights"):
    return freezing.thaw(get_settings(), project, by="kim")


def test_the_first_freeze_stands_with_its_reason():
    made, new = freezing.freeze("flights", by="jo", why="audit")
    again, second = freezing.freeze("flights", by="kim", why="another")
    assert (new, second) == (True, False) and again == made
    assert (
        str(ledger.freeze_of("flights"))
        == f"flights is frozen since {made.since} by jo: audit (`airloop thaw flights` ends it)"
    )
    with pytest.raises(ledger.FrozenError, match="version 3 is not promoted: flights is frozen since .* by jo: audit"):
        ledger.refuse_frozen("flights", "version 3 is not promoted")


def test_a_freeze_concerns_its_project_and_that_of_all_everybody():
    freezing.freeze("flights", by="jo", why="audit")
    assert ledger.freeze_of("another") is None
    freezing.freeze(None, by="jo", why="power cut")
    assert ledger.freeze_of("another").why == "power cut" and ledger.freeze_of("flights").why == "audit"
    assert "everything is frozen" in str(ledger.freeze_of("another")) and "`airloop thaw --all`" in str(
        ledger.freeze_of("another")
    )


def test_each_freeze_is_ended_for_itself():
    freezing.freeze("flights", by="jo", why="audit")
    freezing.freeze(None, by="jo", why="power cut")
    ended = thaw(None)
    assert (
        ended.ended.project == EVERYTHING
        and [one.why for one in ended.still] == ["audit"]
        and ledger.freeze_of("flights")
    )
    ended = thaw()
    assert ended.ended.why == "audit" and not ended.still and ledger.freeze_of("flights") is None
    assert thaw().ended is None


def test_both_ends_stay_on_record():
    freezing.freeze("flights", by="jo", why="audit")
    thaw()
    assert [(d["verdict"], d["reasons"][0].rpartition(" by ")[2]) for d in ledger.decisions("flights", "freeze")] == [
        ("frozen", "audit"),
        ("thawed", "jo: audit"),
    ]


def test_what_waits_in_a_project_that_stays_frozen_is_not_started():
    ledger.request_retraining("flights", cutoff=CUTOFF, reason="person", asked_by="somebody")
    freezing.freeze("flights", by="jo", why="audit")
    freezing.freeze(None, by="jo", why="power cut")
    assert not thaw(None).trouble


def test_without_airflow_the_thaw_holds_and_says_what_to_do():
    ledger.request_retraining("flights", cutoff=CUTOFF, reason="person", asked_by="somebody")
    freezing.freeze("flights", by="jo", why="audit")
    # The second time as well, because nothing was started yet.
    for _ in range(2):
        thawed = thaw()
        assert (
            "Airflow could not be asked to start flights__train" in thawed.trouble
            and "do `airloop thaw flights` again" in thawed.trouble
        )
    assert ledger.freeze_of("flights") is None


@pytest.mark.parametrize(
    "project, why, message", [("no_such", "audit", "no_such"), ("flights", " ", "state the reason")]
)
def test_what_cannot_be_frozen_is_said(project, why, message):
    with pytest.raises(ValueError, match=message):
        freezing.freeze(project, by="jo", why=why)
