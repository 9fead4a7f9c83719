"""The rules of a look, on made-up answers.

A significantly worse arm is found, and sampling variation is not reported. Too little data gives no
verdict.
"""

import numpy as np
import pandas as pd
import pytest

from include.projects.rollout import Analysis, LabelPolicy
from include.rollout import analysis
from include.rollout.analysis import ArmObservations, Check, compare, outcomes, verdict

POLICY = Analysis(min_samples=100)


def side(*, answers=500, latency=5.0, failed=0, shift=0.0, seed=0, entities=None) -> ArmObservations:
    generator = np.random.default_rng(seed)
    times = generator.gamma(4, latency / 4, answers)
    people = generator.integers(0, entities or 10**9, answers)
    return ArmObservations(
        pd.DataFrame({"latency_ms": times}), failed, generator.beta(2, 5, answers) + shift, tuple(people)
    )


def words(mine: ArmObservations, theirs: ArmObservations, policy: Analysis = POLICY) -> dict[str, str]:
    return {check.name: check.word for check in compare(policy, mine, theirs)}


def test_a_version_like_the_champion_passes_whatever_the_draw():
    for seed in range(200):
        assert set(words(side(answers=120, seed=seed), side(answers=2000, seed=1000 + seed)).values()) == {"passed"}, (
            seed
        )


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        pytest.param({"failed": 15}, "errors", id="3 in 100 fail"),
        pytest.param({"answers": 2, "failed": 3}, "errors", id="a few requests are enough where most fail"),
        pytest.param({"latency": 50.0}, "latency", id="ten times as slow"),
        pytest.param({"shift": 0.3}, "predictions", id="its predictions are others"),
    ],
)
def test_what_is_surely_worse_is_a_breach(bad, rule):
    verdicts = words(side(**bad), side(seed=1))
    assert verdicts[rule] == "breached" and "breached" not in {verdicts[name] for name in verdicts if name != rule}


def test_few_failures_among_many_are_luck_and_fast_enough_is_fast_enough():
    assert words(side(failed=6), side(seed=1))["errors"] == "passed"
    # Ten times the champion's latency, but below the floor.
    assert words(side(latency=4.0), side(latency=0.4, seed=1))["latency"] == "passed"


@pytest.mark.parametrize(("mine", "theirs"), [(99, 500), (500, 99), (0, 500), (0, 0)])
def test_too_little_is_no_verdict(mine, theirs):
    verdicts = words(side(answers=mine), side(answers=theirs, seed=1))
    assert verdicts["latency"] == verdicts["predictions"] == "inconclusive"
    assert verdicts["errors"] == ("passed" if mine >= 100 else "inconclusive")


def test_few_entities_tell_no_distribution():
    verdicts = words(side(entities=5, shift=0.3), side(entities=5, seed=1))
    assert verdicts["predictions"] == "inconclusive"
    assert "predictions" not in words(
        side(entities=5), side(entities=5, seed=1), POLICY.model_copy(update={"max_psi": None})
    )


def test_the_worst_word_counts():
    assert verdict([Check("a", "passed", ""), Check("b", "inconclusive", ""), Check("c", "breached", "")]) == "breached"
    assert verdict([Check("a", "passed", ""), Check("b", "inconclusive", "")]) == "inconclusive"
    assert verdict([Check("a", "passed", "")]) == "passed"


def test_psi_of_the_same_values_is_none_and_of_disjoint_ones_is_large_and_finite():
    values = np.linspace(0, 1, 1000)
    assert analysis.psi(values, values)[0] == pytest.approx(0, abs=1e-3)
    assert 5 < analysis.psi(values + 10, values)[0] < 100
    assert analysis.psi(np.ones(100), np.ones(100)) == (pytest.approx(0, abs=1e-9), 1)


def test_wilson_is_as_in_the_literature():
    for hits, of in ((0, 10), (3, 10), (10, 10), (5, 1000)):
        low, high = analysis.wilson(hits, of)
        assert 0 <= low <= hits / of + 1e-12 and hits / of - 1e-12 <= high <= 1 + 1e-12
    assert analysis.wilson(10, 100) == (
        pytest.approx(0.05523, abs=1e-4),
        pytest.approx(0.17437, abs=1e-4),
    )  # Newcombe 1998's method 3


LABELS = LabelPolicy(min_labels=300)


def judged(*, rows, skill, seed, entities=None) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=rows)
    prediction = 1 / (1 + np.exp(-(skill * truth + generator.normal(size=rows))))
    label = (generator.uniform(size=rows) < 1 / (1 + np.exp(-2 * truth))).astype(float)
    return pd.DataFrame(
        {"label": label, "prediction": prediction, "entity": list(generator.integers(0, entities or 10**9, rows))}
    )


@pytest.mark.parametrize("metric", ["auc", "brier"])
def test_a_version_that_knows_less_is_found_at_the_minimum_sample(metric):
    for seed in range(20):
        check = outcomes(
            LABELS,
            metric,
            judged(rows=300, skill=-1.0, seed=seed),
            judged(rows=3000, skill=2.0, seed=100 + seed),
            paired=False,
        )
        assert check.word == "breached", check.text


def test_equal_ones_are_seldom_taken_for_worse_and_never_where_nothing_differs():
    unlucky = sum(
        outcomes(
            LABELS,
            "auc",
            judged(rows=300, skill=2.0, seed=seed),
            judged(rows=3000, skill=2.0, seed=500 + seed),
            paired=False,
        ).word
        == "breached"
        for seed in range(60)
    )
    assert unlucky <= 5  # 2.5 % of 60 are 1.5
    same = judged(rows=300, skill=2.0, seed=0)
    assert outcomes(LABELS, "auc", same, same, paired=True).word == "passed"


def test_a_shadow_is_compared_row_by_row_which_sees_less():
    theirs = judged(rows=600, skill=2.0, seed=3)
    mine = theirs.assign(
        prediction=np.clip(theirs["prediction"] + np.random.default_rng(1).normal(0, 0.4, len(theirs)), 0, 1)
    )
    assert outcomes(LABELS, "brier", mine, theirs, paired=True).word == "breached"


def test_too_few_outcomes_hold_up_only_who_waits_for_them():
    few = judged(rows=299, skill=-1, seed=0)
    assert outcomes(LABELS, "auc", few, few, paired=True).word == "passed"
    assert outcomes(LABELS.model_copy(update={"wait": True}), "auc", few, few, paired=True).word == "inconclusive"
    one_class = judged(rows=400, skill=1, seed=0).assign(label=1.0)
    assert outcomes(LABELS, "auc", one_class, one_class, paired=True).word == "inconclusive"
