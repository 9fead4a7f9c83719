"""The promotion gate: each rule refuses a model in at least one test."""

import math
from datetime import timedelta

import pytest

from include.projects.base import GatePolicy, Metric
from include.registry.gate import judge

AUC = Metric(name="auc", higher_is_better=True)
MAE = Metric(name="mae", higher_is_better=False)
POLICY = GatePolicy(
    min_rows=1000, floor=0.65, min_improvement=0.002, beat_baseline_by=0.005, holdout=timedelta(days=14)
)
ERRORS = GatePolicy(min_rows=1000, floor=20.0, min_improvement=0.5, beat_baseline_by=1.0)


def verdict(policy=POLICY, metric=AUC, *, challenger=0.75, baseline=0.70, champion=0.74, rows=5000):
    name = metric.name
    return judge(
        policy,
        metric,
        challenger={name: challenger},
        baseline={name: baseline},
        champion=None if champion is None else {name: champion},
        rows=rows,
    )


@pytest.mark.parametrize(
    "figures",
    [
        pytest.param({}, id="a clear winner passes"),
        pytest.param({"champion": None}, id="the first model needs the floor and the baseline only"),
        pytest.param({"rows": 1000}, id="just enough new labels are enough"),
        pytest.param(
            {"challenger": 0.752, "champion": 0.75}, id="just the asked margin is enough, whatever floats make of it"
        ),
        pytest.param({"challenger": 0.65, "champion": None, "baseline": 0.6}, id="just at the floor is enough"),
        pytest.param(
            {"policy": ERRORS, "metric": MAE, "challenger": 10.0, "champion": 11.0, "baseline": 12.0},
            id="a smaller error wins where lower is better",
        ),
    ],
)
def test_passes(figures):
    decision = verdict(**figures)
    assert decision.passed and decision.word == "passed"
    assert all(reason.startswith("kept") for reason in decision.reasons)


@pytest.mark.parametrize(
    ("figures", "broken"),
    [
        pytest.param({"rows": 999}, {"enough new labels"}, id="too few new labels are never a pass"),
        pytest.param(
            {"rows": 0, "challenger": math.nan},
            {"enough new labels", "figure", "floor", "champion", "baseline"},
            id="no rows at all break everything",
        ),
        pytest.param(
            {"challenger": 0.64, "champion": 0.6, "baseline": 0.6},
            {"floor"},
            id="below the floor is refused even if it beats the champion",
        ),
        pytest.param(
            {"challenger": 0.7415}, {"champion"}, id="better than the champion by less than the margin is refused"
        ),
        pytest.param({"challenger": 0.73}, {"champion"}, id="worse than the champion is refused"),
        pytest.param(
            {"challenger": 0.704, "champion": 0.69}, {"baseline"}, id="a model must beat the rule by the margin"
        ),
        pytest.param(
            {"challenger": math.nan}, {"figure", "floor", "champion", "baseline"}, id="a NaN metric never wins"
        ),
        pytest.param(
            {"challenger": math.inf}, {"figure", "floor", "champion", "baseline"}, id="an infinite metric never wins"
        ),
        pytest.param({"champion": math.nan}, {"champion"}, id="a champion whose metric is NaN cannot be beaten"),
        pytest.param({"baseline": math.nan}, {"baseline"}, id="a baseline whose metric is NaN cannot be beaten"),
        pytest.param(
            {"policy": ERRORS, "metric": MAE, "challenger": 12.0, "champion": 11.0, "baseline": 14.0},
            {"champion"},
            id="a larger error loses",
        ),
        pytest.param(
            {"policy": ERRORS, "metric": MAE, "challenger": 21.0, "champion": 25.0, "baseline": 25.0},
            {"floor"},
            id="the floor of an error is a ceiling",
        ),
    ],
)
def test_refuses(figures, broken):
    decision = verdict(**figures)
    assert not decision.passed and decision.word == "refused"
    assert {rule.name for rule in decision.rules if not rule.kept} == broken
    assert decision.reasons[0].startswith("BROKEN")


def test_a_tie_changes_nothing_even_without_a_margin():
    bare = GatePolicy(min_rows=1)
    assert not verdict(bare, challenger=0.74, champion=0.74).passed
    assert verdict(bare, challenger=0.7401, champion=0.74).passed


@pytest.mark.parametrize("missing", ["challenger", "baseline", "champion"])
def test_a_missing_metric_is_a_refusal(missing):
    figures = {"challenger": {"auc": 0.75}, "baseline": {"auc": 0.7}, "champion": {"auc": 0.7}, missing: {"brier": 0.1}}
    assert not judge(POLICY, AUC, **figures, rows=5000).passed


def test_every_rule_is_said_with_its_figures():
    text = "\n".join(verdict(challenger=0.7415).reasons)
    for figure in ("5000", "1000", "0.65", "0.7415", "0.7400", "0.002", "0.7000", "0.005"):
        assert figure in text


NO_MARGIN = GatePolicy(min_rows=10, floor=0.65, min_improvement=0.0, beat_baseline_by=0.0)


@pytest.mark.parametrize(
    ("figures", "reasons"),
    [
        pytest.param(
            {},
            [
                "kept: judged on 5000 rows with new labels; at least 1000 are needed",
                "kept: challenger's auc 0.7500; at least 0.65 is needed",
                "kept: challenger's auc 0.7500 against the champion's 0.7400: better by +0.0100, needed 0.002",
                "kept: challenger's auc 0.7500 against the baseline's 0.7000: better by +0.0500, needed 0.005",
            ],
            id="where higher is better",
        ),
        pytest.param(
            {"policy": ERRORS, "metric": MAE, "challenger": 21.0, "champion": 11.0, "baseline": 30.0},
            [
                "BROKEN: challenger's mae 21.0000; at most 20 is needed",
                "BROKEN: challenger's mae 21.0000 against the champion's 11.0000: better by -10.0000, needed 0.5",
                "kept: judged on 5000 rows with new labels; at least 1000 are needed",
                "kept: challenger's mae 21.0000 against the baseline's 30.0000: better by +9.0000, needed 1",
            ],
            id="where lower is better; broken rules first",
        ),
        pytest.param(
            {"policy": NO_MARGIN, "champion": 0.75},
            [
                "BROKEN: challenger's auc 0.7500 against the champion's 0.7500: better by +0.0000, needed more than 0",
                "kept: judged on 5000 rows with new labels; at least 10 are needed",
                "kept: challenger's auc 0.7500; at least 0.65 is needed",
                "kept: challenger's auc 0.7500 against the baseline's 0.7000: better by +0.0500, needed more than 0",
            ],
            id="a tie without a margin",
        ),
        pytest.param(
            {"challenger": math.nan, "champion": None},
            [
                "BROKEN: the challenger has no auc",
                "BROKEN: challenger's auc missing or not a number; at least 0.65 is needed",
                "BROKEN: cannot be compared with the baseline: auc missing or not a number against 0.7000",
                "kept: judged on 5000 rows with new labels; at least 1000 are needed",
            ],
            id="the challenger's figure is missing",
        ),
        pytest.param(
            {"champion": math.nan},
            [
                "BROKEN: cannot be compared with the champion: auc 0.7500 against missing or not a number",
                "kept: judged on 5000 rows with new labels; at least 1000 are needed",
                "kept: challenger's auc 0.7500; at least 0.65 is needed",
                "kept: challenger's auc 0.7500 against the baseline's 0.7000: better by +0.0500, needed 0.005",
            ],
            id="the champion's figure is missing",
        ),
    ],
)
def test_each_rule_states_its_figures(figures, reasons):
    assert verdict(**figures).reasons == reasons
