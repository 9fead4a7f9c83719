"""Our metrics equal scikit-learn's, with weights and ties, and a NaN stays a NaN."""

import math

import numpy as np
import pytest
from sklearn import metrics as oracle

from include.projects.base import Metric, TaskKind
from include.training import metrics

ORACLES = {
    "auc": lambda y, p, w: oracle.roc_auc_score(y, p, sample_weight=w),
    "brier": lambda y, p, w: oracle.brier_score_loss(y, p, sample_weight=w),
    "log_loss": lambda y, p, w: oracle.log_loss(y, p, sample_weight=w),
    "mae": lambda y, p, w: oracle.mean_absolute_error(y, p, sample_weight=w),
    "rmse": lambda y, p, w: oracle.root_mean_squared_error(y, p, sample_weight=w),
    "r2": lambda y, p, w: oracle.r2_score(y, p, sample_weight=w),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_equals_scikit_learn(name, weighted):
    generator = np.random.default_rng(1)
    binary = name in metrics.metrics_of("binary")
    label = generator.integers(0, 2, 500).astype(float) if binary else generator.normal(10, 3, 500)
    prediction = (
        np.round(generator.uniform(0.01, 0.99, 500), 2) if binary else label + generator.normal(0, 1, 500)
    )  # rounded: ties
    weight = generator.integers(0, 4, 500).astype(float) if weighted else None
    assert metrics.metric_function(name)(label, prediction, weight) == pytest.approx(
        ORACLES[name](label, prediction, weight)
    )


@pytest.mark.parametrize("name", ORACLES)
def test_a_nan_prediction_gives_a_nan_metric(name):
    assert math.isnan(metrics.metric_function(name)(np.array([0.0, 1.0, 1.0]), np.array([0.1, np.nan, 0.9])))


@pytest.mark.parametrize("name", ORACLES)
def test_no_rows_give_a_nan_metric(name):
    assert math.isnan(metrics.metric_function(name)(np.array([]), np.array([])))


def test_the_auc_of_one_class_is_nan():
    assert math.isnan(metrics.auc(np.ones(5), np.linspace(0, 1, 5)))


def test_every_metric_of_a_kind_is_known():
    assert set(metrics.metrics_of(TaskKind.BINARY)) | set(metrics.metrics_of(TaskKind.REGRESSION)) == set(ORACLES)


def test_an_unknown_metric_is_named():
    with pytest.raises(metrics.UnknownMetricError, match="no metric 'accuracy'; there is auc"):
        metrics.metric_function("accuracy")


def test_a_wrong_direction_is_refused():
    with pytest.raises(metrics.UnknownMetricError, match="higher_is_better is True, the project says False"):
        metrics.check_direction(Metric(name="auc", higher_is_better=False))
