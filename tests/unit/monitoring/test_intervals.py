"""The bootstrap agrees with a naive one and has the stated coverage.

It is fast enough for every month of a replay.
"""

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from include.monitoring.intervals import MIN_BLOCKS, bias_statistic, bootstrap, metric_statistic
from include.training.metrics import auc, metric_function

DAYS = 28


def scored(rows: int, seed: int = 0, days: int = DAYS, *, rounded: bool = False):
    generator = np.random.default_rng(seed)
    label = (generator.random(rows) < 0.3).astype("float64")
    prediction = 1 / (1 + np.exp(-(generator.normal(size=rows) + label)))
    return label, prediction.round(1) if rounded else prediction, generator.integers(0, days, rows)


@pytest.mark.parametrize("rounded", [False, True], ids=["predictions all differ", "many predictions are equal"])
def test_auc_of_a_resample_is_sklearns_weighted_auc(rounded):
    label, prediction, day = scored(3000, rounded=rounded)
    draws = np.random.default_rng(1).multinomial(DAYS, np.full(DAYS, 1 / DAYS), size=20).astype("float64")
    expected = [roc_auc_score(label, prediction, sample_weight=drawn[day]) for drawn in draws]
    assert metric_statistic("auc", label, prediction, day)(draws) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["auc", "brier", "mae", "rmse", "r2"])
def test_a_resample_is_the_figure_of_the_rows_of_the_drawn_days(name):
    label, prediction, day = scored(500, days=10)
    chosen = np.array([0, 0, 0, 3, 4, 4, 7, 8, 8, 9])
    rows = np.concatenate([np.flatnonzero(day == d) for d in chosen])
    naive = metric_function(name)(label[rows], prediction[rows])
    assert metric_statistic(name, label, prediction, day)(np.bincount(chosen, minlength=10)[None].astype("float64"))[
        0
    ] == pytest.approx(naive, abs=1e-12)


def test_bias_of_a_resample_is_the_mean_over_the_rows_of_the_drawn_days():
    label, prediction, day = scored(500, days=10)
    chosen = np.array([0, 0, 0, 3, 4, 4, 7, 8, 8, 9])
    rows = np.concatenate([np.flatnonzero(day == d) for d in chosen])
    bias = bias_statistic(label, prediction, day)(np.bincount(chosen, minlength=10)[None].astype("float64"))[0]
    assert bias == pytest.approx((prediction[rows] - label[rows]).mean(), abs=1e-12)


def test_the_interval_is_that_of_a_naive_bootstrap():
    label, prediction, day = scored(2000)
    generator, drawn = np.random.default_rng(7), []
    by_day = [np.flatnonzero(day == d) for d in range(DAYS)]
    for _ in range(2000):
        rows = np.concatenate([by_day[d] for d in generator.integers(0, DAYS, DAYS)])
        drawn.append(auc(label[rows], prediction[rows]))
    # Hesterberg's expansion for 28 blocks: Phi(-sqrt(28/27) * t(.975, 27)).
    low, high = np.quantile(drawn, [0.0179, 0.9821])
    interval = bootstrap(metric_statistic("auc", label, prediction, day), DAYS, resamples=2000)
    assert interval.value == pytest.approx(roc_auc_score(label, prediction))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """The interval covers the true value about as often as stated.

    Rows of one day are correlated: there are 20 days of 50 rows, and the day effect is larger than
    the variation within a day.
    """
    generator, covered, covered_by_rows = np.random.default_rng(3), 0, 0
    day = np.repeat(np.arange(20), 50)
    for _ in range(400):
        error = generator.normal(0, 0.05, 20)[day] + generator.normal(0, 0.05, len(day))
        interval = bootstrap(
            bias_statistic(np.zeros(len(day)), error, day), 20, resamples=400, seed=int(generator.integers(1 << 30))
        )
        covered += interval.low <= 0 <= interval.high
        sure = 1.96 * error.std() / np.sqrt(len(error))
        covered_by_rows += abs(error.mean()) <= sure
    assert 0.92 <= covered / 400 <= 0.98
    # Coverage if rows were resampled instead of days.
    assert covered_by_rows / 400 < 0.6


def test_it_is_the_same_interval_every_time():
    label, prediction, day = scored(1000)
    one, two = (bootstrap(metric_statistic("auc", label, prediction, day), DAYS) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("label", "prediction", "days"),
    [
        pytest.param(np.zeros(100), np.linspace(0, 1, 100), 10, id="one class only has no AUC"),
        pytest.param(
            np.tile([0.0, 1.0], 50), np.full(100, np.nan), 10, id="predictions that are no numbers have no AUC"
        ),
        pytest.param(
            np.tile([0.0, 1.0], 50), np.linspace(0, 1, 100), MIN_BLOCKS - 1, id="too few days to be sure of anything"
        ),
        pytest.param(
            np.repeat([1.0, 0.0], [10, 90]),
            np.linspace(0, 1, 100),
            10,
            id="all positives on one day, so that resamples lack them",
        ),
    ],
)
def test_no_interval_where_none_can_be_had(label, prediction, days):
    day = np.arange(100) * days // 100
    interval = bootstrap(metric_statistic("auc", label, prediction, day), days)
    assert np.isnan(interval.low) and np.isnan(interval.high)


def test_nothing_at_all_has_no_value():
    empty = np.zeros(0)
    assert np.isnan(bootstrap(metric_statistic("auc", empty, empty, empty.astype(int)), 0).value)


@pytest.mark.parametrize("name", ["auc", "rmse"])
def test_a_month_of_flights_takes_less_than_three_seconds(name):
    label, prediction, day = scored(28_000)
    started = time.process_time()
    bootstrap(metric_statistic(name, label, prediction, day), DAYS)
    assert time.process_time() - started < 3


def test_labels_may_be_integers_and_one_block_has_a_value_without_an_interval():
    label, prediction = np.array([0, 1, 1]), np.array([0.25, 0.5, 1.0])
    one_block = np.zeros(3, dtype=int)
    for name in ("auc", "brier"):
        interval = bootstrap(metric_statistic(name, label, prediction, one_block), 1)
        assert interval.value == pytest.approx(metric_function(name)(label.astype("float64"), prediction))
        assert np.isnan([interval.low, interval.high]).all()
    assert bootstrap(bias_statistic(label, prediction, one_block), 1).value == pytest.approx(-0.25 / 3)
    assert np.isnan(bootstrap(bias_statistic(label, prediction, one_block), 0).value)
