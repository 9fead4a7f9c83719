"""The controller on the ledger makes each request once, despite reruns, kills and any order."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from include import ledger
from include.monitoring import episodes
from include.projects import get_project
from include.projects.base import RetrainPolicy

POLICY = RetrainPolicy(min_labels=1000, max_metric_loss=0.02, max_bias=0.04, cooldown=timedelta(days=20))
PROJECT = get_project("flights").model_copy(update={"retrain": POLICY})
AGEING = PROJECT.model_copy(update={"retrain": POLICY.model_copy(update={"max_age": timedelta(days=60)})})
MAY, JUNE, JULY, AUGUST, SEPTEMBER = (f"2013-{month:02d}-01T10:00:00Z" for month in range(5, 10))
pytestmark = pytest.mark.usefixtures("own_store")


def measurement(metric=0.70, labels=5000, version="1", champion_cutoff="2013-04-01T10:00:00Z"):
    return {
        "version": version,
        "champion_cutoff": champion_cutoff,
        "since": "",
        "predictions": labels,
        "labels": labels,
        "days": 28,
        "metric": metric,
        "ci": [metric and metric - 0.01, metric and metric + 0.01],
        "reference": 0.74,
        "bias": 0.0,
        "bias_ci": [-0.01, 0.01],
        "figures": {"brier": 0.15},
    }


DRIFTING, HEALTHY, UNKNOWN = measurement(0.70), measurement(0.745), measurement(None)


def run(cutoff, performance=DRIFTING, dag_run="run"):
    return episodes.decide_retraining(PROJECT, cutoff, performance, {"share": 0.4}, dag_run=dag_run)


def everything():
    return (
        [(r.id, r.state) for r in ledger.requests("flights")],
        [(e["id"], e["opened"], e["closed"]) for e in ledger.episodes("flights")],
        [(d["subject"], d["verdict"], d["reasons"]) for d in ledger.decisions("flights")],
    )


def test_drift_is_asked_about_once_and_recorded():
    summary = run(MAY)
    request = ledger.get_request(summary["request"])
    assert (summary["state"], summary["asked"], request.reason, request.cutoff) == ("drifting", True, "drift", MAY)
    assert request.episode == ledger.current_episode("flights")["id"]
    assert ledger.stage_record("flights", "monitor", MAY)["summary"] == summary
    assert {"labels", "metric", "ci", "bias", "drifted_share", "state", "asked", "reasons"} <= set(summary)
    assert [d["verdict"] for d in ledger.decisions("flights", "monitor")] == ["drifting"]


def test_a_drift_that_goes_on_is_one_request():
    run(MAY)
    assert not run(JUNE)["asked"]
    assert len(ledger.requests("flights")) == 1


def test_the_same_cutoff_again_changes_nothing():
    run(MAY)
    before = everything()
    assert run(MAY, dag_run="again")["asked"]
    assert everything() == before


def test_an_old_cutoff_run_again_under_a_new_champion_rewrites_nothing():
    run(MAY)
    run(JUNE, measurement(0.75, version="2", champion_cutoff=MAY))
    before = everything()
    run(MAY, measurement(None, labels=0, version="2", champion_cutoff=MAY))
    assert everything() == before


def test_a_decision_is_made_again_when_there_are_more_labels_at_the_same_cutoff():
    assert run(MAY, measurement(0.70, labels=10))["state"] == "unknown"
    assert run(MAY, DRIFTING)["asked"]


def test_what_was_asked_stays_asked_when_more_labels_at_the_same_cutoff_look_better():
    run(MAY, measurement(0.70, labels=2000))
    summary = run(MAY, HEALTHY)
    assert (summary["state"], summary["asked"]) == ("healthy", False)
    # Its request may be in progress. The next healthy verdict closes the episode.
    assert ledger.current_episode("flights")
    run(JUNE, HEALTHY)
    assert ledger.current_episode("flights") is None


def test_a_run_for_a_time_before_the_last_decision_asks_nothing():
    run(JUNE, HEALTHY)
    summary = run(MAY)
    assert (summary["state"], summary["asked"]) == ("drifting", False)
    assert summary["reasons"][-1] == "a later cutoff was judged already: nothing is asked for"
    assert ledger.current_episode("flights") is None


def test_a_run_that_is_the_latest_says_nothing_of_later_ones():
    run(MAY)
    assert not [reason for reason in run(JUNE)["reasons"] if "later cutoff" in reason]


def test_the_share_of_drifted_inputs_reaches_the_rules():
    """0.4 of the inputs drifted (``run``)."""
    policy = POLICY.model_copy(update={"max_drifted_share": 0.3})
    project = PROJECT.model_copy(update={"retrain": policy})
    summary = episodes.decide_retraining(project, MAY, HEALTHY, {"share": 0.4}, dag_run="run")
    assert (summary["state"], summary["reasons"]) == ("drifting", ["40% of the inputs drifted, more than 30%"])
    unknown = episodes.decide_retraining(project, JUNE, HEALTHY, None, dag_run="run")
    assert (unknown["state"], unknown["reasons"]) == ("unknown", ["the share of drifted inputs is not known"])


def test_a_lost_champion_is_told_once_a_day(monkeypatch):
    gone = SimpleNamespace(version="3", __str__=lambda _: "")
    monkeypatch.setattr(episodes, "lost_champion", lambda _: gone)
    for cutoff in ("2013-05-01T10:00:00Z", "2013-05-01T11:00:00Z", "2013-05-02T10:00:00Z"):
        summary = episodes.decide_retraining(PROJECT, cutoff, None, None, dag_run="run")
        assert (summary["state"], summary["reasons"]) == ("champion lost", [str(gone)])
    assert len(ledger.notices("flights")) == 2 and not ledger.requests("flights")


@pytest.mark.parametrize("killed_in", ["open_episode", "request_retraining", "decide", "record_stage"])
def test_a_run_that_is_killed_anywhere_and_tried_again_asks_once(killed_in, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger, killed_in, killed)
        with pytest.raises(KeyboardInterrupt):
            run(MAY)
    assert run(MAY)["asked"]
    assert len(ledger.requests("flights")) == len(ledger.episodes("flights")) == 1


def test_a_healthy_verdict_closes_the_episode_and_the_next_drift_asks_again():
    run(MAY)
    run(JUNE, HEALTHY)
    assert ledger.current_episode("flights") is None
    assert run(JULY)["asked"]
    assert len(ledger.requests("flights")) == 2


def test_a_new_champion_closes_the_episode():
    run(MAY)
    summary = run(JUNE, measurement(None, labels=0, version="2", champion_cutoff=MAY))
    assert ledger.current_episode("flights") is None
    assert "closed" in summary["reasons"][-1]


def test_what_cannot_be_judged_leaves_the_episode_open():
    run(MAY)
    assert run(JUNE, UNKNOWN)["state"] == "unknown"
    assert ledger.current_episode("flights")


def refuse(request):
    ledger.claim_request("flights", f"train for {request}", only=request)
    assert ledger.conclude_training(request, f"train for {request}", "refused", reasons=["not enough new labels"])


def test_a_refused_drift_asks_again_ever_more_seldom_and_tells_people():
    months = [f"{year}-{month:02d}-01T10:00:00Z" for year in (2013, 2014) for month in range(1, 13)][4:]
    asked = []
    for cutoff in months:
        summary = run(cutoff)
        if summary["asked"]:
            asked.append(cutoff[:7])
            refuse(summary["request"])
    # 20 days, 40, 80, 160, and no longer than that.
    assert asked == ["2013-05", "2013-06", "2013-08", "2013-11", "2014-05", "2014-11"]
    rows = ledger.episodes("flights")
    assert [e["evidence"]["ask"] for e in rows] == [1, 2, 3, 4, 5, 6]
    assert [e["evidence"].get("continues") for e in rows[1:]] == [e["id"] for e in rows[:-1]]
    assert [
        n["text"].startswith("drift lasts") and "times in vain" in n["text"] for n in ledger.notices("flights")
    ] == [True] * 3


@pytest.mark.parametrize("killed_in", ["close_episode", "open_episode", "request_retraining"])
def test_a_second_asking_that_is_killed_and_tried_again_asks_once(killed_in, monkeypatch):
    refuse(run(MAY)["request"])

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger, killed_in, killed)
        with pytest.raises(KeyboardInterrupt):
            run(JUNE)
    assert run(JUNE)["asked"]
    assert [e["evidence"]["ask"] for e in ledger.episodes("flights")] == [1, 2]
    assert ledger.current_episode("flights")["evidence"]["ask"] == 2
    assert len(ledger.requests("flights")) == 2


def test_a_person_who_asked_at_this_cutoff_is_enough():
    ledger.request_retraining("flights", cutoff=MAY, reason="person", asked_by="somebody")
    summary = run(MAY)
    assert (summary["state"], summary["asked"]) == ("drifting", False)


def test_no_champion_is_on_record_too(monkeypatch):
    monkeypatch.setattr(episodes, "lost_champion", lambda _: None)  # a registry without the model
    summary = episodes.decide_retraining(PROJECT, MAY, None, None, dag_run="run")
    assert (summary["state"], summary["asked"], summary["reasons"]) == (
        "no champion",
        False,
        ["no champion is deployed yet"],
    )
    assert ledger.stage_record("flights", "monitor", MAY)


def test_a_request_whose_event_got_lost_is_found_until_somebody_works_on_it():
    request = run(MAY)["request"]
    assert episodes.unclaimed_request(PROJECT).id == request
    ledger.claim_request("flights", "train_run")
    assert episodes.unclaimed_request(PROJECT) is None


def test_a_request_waits_for_the_thaw_and_is_found_then_whoever_asked():
    request = ledger.request_retraining("flights", cutoff=MAY, reason="person", asked_by="somebody").id
    ledger.freeze("flights", by="somebody", why="audit")
    assert run(MAY)["state"] == "drifting" and episodes.unclaimed_request(PROJECT) is None
    ledger.thaw("flights", by="somebody")
    assert episodes.unclaimed_request(PROJECT).id == request


def test_an_old_champion_is_challenged_once_in_its_age_and_no_episode_opens():
    def months(project=AGEING):
        return [
            episodes.decide_retraining(project, cutoff, HEALTHY, {"share": 0.4}, dag_run="run")["asked"]
            for cutoff in (MAY, JUNE, JULY, AUGUST)
        ]

    # Trained on 1 April: 61 days old in June, and again 61 days after that request.
    assert months() == [False, True, False, True]
    kept = everything()
    assert months() == [False, True, False, True]  # already decided: the same again
    assert everything() == kept
    assert [r.reason for r in ledger.requests("flights")] == ["age", "age"] and not ledger.episodes("flights")
    assert episodes.unclaimed_request(AGEING).reason == "age"
