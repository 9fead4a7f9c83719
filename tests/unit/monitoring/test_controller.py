"""When the controller requests a retraining: every rule, tested from both sides."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from include.ledger import lifecycle
from include.ledger.lifecycle import MAX_REQUESTS
from include.monitoring.controller import NAN, Episode, Evidence, decide
from include.projects.base import Metric, RetrainPolicy

AT = datetime(2013, 7, 1, 10, tzinfo=UTC)
AUC, RMSE = Metric(name="auc", higher_is_better=True), Metric(name="rmse", higher_is_better=False)
POLICY = RetrainPolicy(min_labels=1000, max_metric_loss=0.02, max_bias=0.04, cooldown=timedelta(days=20))
GOOD = Evidence(
    labels=5000, metric=0.74, metric_low=0.73, metric_high=0.75, reference=0.745,
    bias=0.0, bias_low=-0.01, bias_high=0.01, drifted_share=0.9, champion_cutoff=AT - timedelta(days=90),
)  # fmt: skip
BAD = replace(GOOD, metric=0.70, metric_low=0.69, metric_high=0.71)
BAD_AND_UNKNOWN = replace(BAD, bias=NAN, bias_low=NAN, bias_high=NAN)


def verdict(evidence=GOOD, *, policy=POLICY, metric=AUC, at=AT, **history):
    return decide(policy, metric, evidence, at=at, **history)


@pytest.mark.parametrize(
    ("changes", "state", "because"),
    [
        pytest.param({}, "healthy", "nothing is surely beyond", id="good figures are healthy"),
        pytest.param({"labels": 999}, "unknown", "not enough labels: 999", id="one label too few is unknown"),
        pytest.param({"labels": 1000}, "healthy", "", id="just enough labels are judged"),
        pytest.param({"metric": NAN}, "unknown", "auc has no value", id="a NaN metric is never healthy"),
        pytest.param({"metric": float("inf")}, "unknown", "auc has no value", id="an infinite metric is never healthy"),
        pytest.param(
            {"metric_high": NAN}, "unknown", "no confidence interval", id="a metric without an interval is not healthy"
        ),
        pytest.param(
            {"reference": NAN}, "unknown", "at training is not known", id="a metric without a reference is not healthy"
        ),
        pytest.param({"bias": NAN}, "unknown", "the bias has no value", id="a NaN bias is never healthy"),
        pytest.param(
            {"bias_low": NAN}, "unknown", "no confidence interval", id="a bias without an interval is not healthy"
        ),
        pytest.param(
            {"metric": 0.70, "metric_high": 0.7251},
            "healthy",
            "",
            id="a worse metric that may be within the limit is not drift",
        ),
        pytest.param(
            {"metric": 0.70, "metric_high": 0.7249}, "drifting", "surely worse", id="a surely worse metric is drift"
        ),
        pytest.param(
            {"metric": 0.80, "metric_low": 0.79, "metric_high": 0.81},
            "healthy",
            "",
            id="a surely better metric is not drift",
        ),
        pytest.param(
            {"bias": 0.06, "bias_low": 0.039, "bias_high": 0.08},
            "healthy",
            "",
            id="a bias that may be within the limit is not drift",
        ),
        pytest.param(
            {"bias": 0.06, "bias_low": 0.041, "bias_high": 0.08},
            "drifting",
            "too high",
            id="predictions surely too high are drift",
        ),
        pytest.param(
            {"bias": -0.06, "bias_low": -0.08, "bias_high": -0.041},
            "drifting",
            "too low",
            id="predictions surely too low are drift",
        ),
        pytest.param(
            {"drifted_share": 1.0}, "healthy", "", id="drifted inputs alone are not drift unless the policy says so"
        ),
        pytest.param(
            {"drifted_share": NAN}, "healthy", "", id="an unknown share does not matter where it does not count"
        ),
        pytest.param(
            {"metric": NAN, "bias": 0.06, "bias_low": 0.05, "bias_high": 0.07},
            "drifting",
            "high",
            id="one rule is enough for drift",
        ),
    ],
)
def test_state(changes, state, because):
    decision = verdict(replace(GOOD, **changes))
    assert decision.state == state
    assert because in "; ".join(decision.reasons)
    assert decision.ask == (state == "drifting")


@pytest.mark.parametrize(
    ("share", "state"),
    [
        pytest.param(0.51, "drifting", id="more drifted inputs than the policy allows"),
        pytest.param(0.5, "healthy", id="as many drifted inputs as the policy allows"),
        pytest.param(NAN, "unknown", id="an unknown share is not healthy where it counts"),
    ],
)
def test_drifted_share_counts_when_the_policy_says_so(share, state):
    policy = RetrainPolicy(min_labels=1000, max_drifted_share=0.5)
    assert verdict(replace(GOOD, drifted_share=share), policy=policy).state == state


@pytest.mark.parametrize(
    ("low", "state"),
    [
        pytest.param(5.1, "drifting", id="a surely larger error is drift"),
        pytest.param(4.9, "healthy", id="a smaller error is not"),
    ],
)
def test_a_metric_of_which_less_is_better(low, state):
    policy = RetrainPolicy(min_labels=1000, max_metric_loss=1.0)
    evidence = replace(GOOD, reference=4.0, metric=low + 1, metric_low=low, metric_high=low + 2)
    assert verdict(evidence, policy=policy, metric=RMSE).state == state


def test_a_policy_without_limits_watches_nothing_and_says_so():
    decision = verdict(policy=RetrainPolicy(min_labels=1000))
    assert (decision.state, decision.ask) == ("unknown", False)
    assert decision.reasons == ("the policy sets no limit: nothing is watched",)


def test_too_few_labels_ask_nothing_however_bad_they_look():
    assert not verdict(replace(BAD, labels=10)).ask


def test_the_first_drifting_verdict_opens_an_episode_and_asks():
    decision = verdict(BAD)
    assert (decision.opens, decision.ask, decision.closes) == (True, True, None)


@pytest.mark.parametrize(
    ("days", "ask"),
    [pytest.param(19, False, id="within the cooldown"), pytest.param(20, True, id="when the cooldown is over")],
)
def test_cooldown_after_whoever_asked_last(days, ask):
    decision = verdict(BAD, last_request=AT - timedelta(days=days))
    assert (decision.ask, decision.opens) == (ask, True)
    assert ask or "cooldown" in decision.reasons[-1]


def test_an_episode_that_opened_in_a_cooldown_asks_when_it_is_over():
    decision = verdict(BAD, last_request=AT - timedelta(days=20), episode=Episode(AT - timedelta(days=9)))
    assert (decision.ask, decision.opens, decision.closes) == (True, False, None)


@pytest.mark.parametrize("request_state", ["open", "claimed", "passed", "deploying"])
def test_an_episode_asks_once(request_state):
    decision = verdict(
        BAD, last_request=AT - timedelta(days=60), episode=Episode(AT - timedelta(days=60), request_state)
    )
    assert (decision.ask, decision.opens, decision.closes) == (False, False, None)
    assert f"the request is {request_state}" in decision.reasons[-1]


@pytest.mark.parametrize(
    "request_state", sorted({s.name for s in lifecycle.STATES if s.kind == "request"} - {*lifecycle.live("request")})
)
def test_a_drift_whose_request_came_to_nothing_asks_again_after_the_cooldown(request_state):
    decision = verdict(
        BAD, last_request=AT - timedelta(days=20), episode=Episode(AT - timedelta(days=20), request_state)
    )
    assert (decision.ask, decision.opens, decision.continues) == (True, True, True)
    assert request_state in decision.closes


def test_a_drift_whose_request_was_refused_does_not_ask_again_within_the_cooldown():
    decision = verdict(BAD, last_request=AT - timedelta(days=19), episode=Episode(AT - timedelta(days=19), "refused"))
    assert (decision.ask, decision.opens, decision.closes) == (False, False, None)


@pytest.mark.parametrize(("ask", "days"), [(1, 20), (2, 40), (3, 80), (4, 160), (5, 160), (50, 160)])
def test_a_drift_that_asks_in_vain_asks_ever_more_seldom_and_never_stops(ask, days):
    """A drift whose requests fail asks at growing intervals and never stops.

    It used to stop permanently after the third request.
    """

    def after(days):
        old = replace(BAD, champion_cutoff=AT - timedelta(days=400))
        return verdict(
            old, last_request=AT - timedelta(days=days), episode=Episode(AT - timedelta(days=days), "failed", ask=ask)
        )

    assert (after(days - 1).ask, after(days).ask) == (False, True)
    assert after(days).tell == (ask >= MAX_REQUESTS)  # notify a person


def test_an_episode_that_nobody_can_judge_ends_after_its_window_and_cooldown():
    def after(days, request):
        return verdict(
            replace(BAD, labels=0),
            last_request=AT - timedelta(days=days),
            episode=Episode(AT - timedelta(days=days), request),
        ).closes

    assert after(47, "refused") is None and "neither healthy nor drifting for 48 days" in after(48, "refused")
    # A request in progress has its own deadlines.
    assert after(48, None) and after(48, "claimed") is None


def test_a_healthy_verdict_closes_the_episode():
    decision = verdict(GOOD, episode=Episode(AT - timedelta(days=30), "claimed"))
    assert (decision.closes, decision.ask, decision.opens) == ("healthy again", False, False)


@pytest.mark.parametrize(
    "evidence", [replace(GOOD, labels=0), replace(GOOD, metric=NAN)], ids=["too few labels", "a NaN"]
)
def test_not_knowing_does_not_close_the_episode(evidence):
    assert verdict(evidence, episode=Episode(AT - timedelta(days=30), "claimed")).closes is None


@pytest.mark.parametrize(
    ("since_opening", "closes"),
    [
        pytest.param(timedelta(days=3), True, id="a champion trained after the opening"),
        pytest.param(timedelta(), True, id="a champion of the request that the opening made"),
        pytest.param(-timedelta(seconds=1), False, id="a champion trained before"),
    ],
)
def test_a_new_champion_closes_the_episode(since_opening, closes):
    opened = AT - timedelta(days=30)
    decision = verdict(
        replace(GOOD, labels=0, champion_cutoff=opened + since_opening), episode=Episode(opened, "deployed")
    )
    assert (decision.closes is not None) == closes


def test_a_new_champion_that_drifts_too_begins_an_episode_of_its_own():
    opened = AT - timedelta(days=30)
    decision = verdict(
        replace(BAD, champion_cutoff=opened), last_request=opened, episode=Episode(opened, "deployed", ask=MAX_REQUESTS)
    )
    assert decision.closes and decision.opens and decision.ask and not decision.continues


def test_all_reasons_are_told():
    assert len(verdict(BAD_AND_UNKNOWN).reasons) == 2


AGEING = POLICY.model_copy(update={"max_age": timedelta(days=60)})


@pytest.mark.parametrize(
    ("evidence", "policy", "last_request", "asks"),
    [
        pytest.param(GOOD, AGEING, None, True, id="a healthy champion of 90 days is challenged after 60"),
        pytest.param(GOOD, POLICY, None, False, id="without a policy on age it is not"),
        pytest.param(
            replace(GOOD, champion_cutoff=AT - timedelta(days=59)), AGEING, None, False, id="one of 59 days is not"
        ),
        pytest.param(
            GOOD,
            AGEING,
            AT - timedelta(days=59),
            False,
            id="not when somebody asked within that time, whatever came of it",
        ),
        pytest.param(GOOD, AGEING, AT - timedelta(days=60), True, id="again when the last request is as old"),
        pytest.param(GOOD, AGEING, AT - timedelta(days=61), True, id="again when it is older"),
        pytest.param(
            replace(GOOD, labels=10), AGEING, None, False, id="not on too few labels: the gate would refuse it"
        ),
    ],
)
def test_age(evidence, policy, last_request, asks):
    decision = verdict(evidence, policy=policy, last_request=last_request, last_answer=last_request)
    assert decision.ask == asks and not decision.opens


@pytest.mark.parametrize(("days", "asks"), [(19, False), (20, True)])
def test_a_request_about_age_that_failed_is_asked_again_after_the_cooldown(days, asks):
    decision = verdict(GOOD, policy=AGEING, last_request=AT - timedelta(days=days), last_answer=AT - timedelta(days=80))
    assert decision.ask == asks
    assert (decision.cause == "age" and "90 days old" in decision.reasons[-1]) == asks


def test_drift_comes_before_age():
    assert verdict(BAD, policy=AGEING).cause == "drift"
