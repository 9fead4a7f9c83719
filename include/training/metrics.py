"""The figures by which models are compared, and which way each is better. A NaN stays a NaN: the gate refuses it.

Definitions are scikit-learn's (a test compares); written out here because a paired bootstrap calls them hundreds of times
with weights, and because a metric must say NaN, not raise, where it has no value (the AUC of one class).
"""

from collections.abc import Callable

import numpy as np

from include.projects.base import Metric, TaskKind

Figure = Callable[..., float]


class UnknownMetric(ValueError):
    """No metric of that name, or a project claims the wrong direction for it."""


def auc(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve, by ranks (Mann-Whitney), ties counting half."""
    label, prediction, weight = _columns(label, prediction, weight)
    if np.isnan(prediction).any() or np.isnan(label).any():
        return float("nan")
    _, rank = np.unique(prediction, return_inverse=True)
    positive = np.bincount(rank, weights=weight * label)
    negative = np.bincount(rank, weights=weight * (1 - label))
    pairs = positive.sum() * negative.sum()
    return float((positive * (np.cumsum(negative) - negative / 2)).sum() / pairs) if pairs > 0 else float("nan")


def brier(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean squared difference of probability and outcome."""
    label, prediction, weight = _columns(label, prediction, weight)
    return _mean((prediction - label) ** 2, weight)


def log_loss(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean negative log likelihood; probabilities are kept 1e-7 (float32's resolution) away from 0 and 1."""
    label, prediction, weight = _columns(label, prediction, weight)
    probability = np.clip(prediction, 1e-7, 1 - 1e-7)
    return _mean(-(label * np.log(probability) + (1 - label) * np.log(1 - probability)), weight)


def mae(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean absolute error."""
    label, prediction, weight = _columns(label, prediction, weight)
    return _mean(np.abs(prediction - label), weight)


def rmse(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Root of the mean squared error."""
    label, prediction, weight = _columns(label, prediction, weight)
    return float(np.sqrt(_mean((prediction - label) ** 2, weight)))


def r2(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Share of the labels' variance that is explained; NaN if they have none."""
    label, prediction, weight = _columns(label, prediction, weight)
    variance = _mean((label - _mean(label, weight)) ** 2, weight)
    return 1 - _mean((prediction - label) ** 2, weight) / variance if variance > 0 else float("nan")


# name -> (function, higher is better)
_METRICS: dict[str, tuple[Figure, bool]] = {
    "auc": (auc, True),
    "brier": (brier, False),
    "log_loss": (log_loss, False),
    "mae": (mae, False),
    "rmse": (rmse, False),
    "r2": (r2, True),
}
_OF_KIND = {TaskKind.BINARY: ("auc", "brier", "log_loss"), TaskKind.REGRESSION: ("mae", "rmse", "r2")}


def metrics_of(kind: TaskKind | str) -> tuple[str, ...]:
    """Names of the metrics that make sense for a kind of task."""
    return _OF_KIND[TaskKind(kind)]


def metric_function(name: str) -> Figure:
    """The function ``(label, prediction, weight=None) -> float`` of a metric.

    Raises:
        UnknownMetric: there is none of that name; the message lists those there are.
    """
    if name not in _METRICS:
        raise UnknownMetric(f"no metric '{name}'; there is {', '.join(sorted(_METRICS))}")
    return _METRICS[name][0]


def higher_is_better(name: str) -> bool:
    """Which way a metric is better. Raises UnknownMetric."""
    metric_function(name)
    return _METRICS[name][1]


def check_direction(metric: Metric) -> None:
    """Refuse a project that says the wrong direction: its gate would promote the worse model.

    Raises:
        UnknownMetric: unknown name or wrong direction.
    """
    metric_function(metric.name)
    if _METRICS[metric.name][1] != metric.higher_is_better:
        raise UnknownMetric(f"metric '{metric.name}': higher_is_better is {_METRICS[metric.name][1]}, the project says {metric.higher_is_better}")


def figures(kind: TaskKind | str, label: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Every metric of the kind for these predictions."""
    return {name: metric_function(name)(label, prediction) for name in metrics_of(kind)}


def _columns(label, prediction, weight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    label, prediction = np.asarray(label, dtype="float64"), np.asarray(prediction, dtype="float64")
    if label.shape != prediction.shape:
        raise ValueError(f"{label.shape} labels and {prediction.shape} predictions")
    return label, prediction, np.ones(label.shape) if weight is None else np.asarray(weight, dtype="float64")


def _mean(values: np.ndarray, weight: np.ndarray) -> float:
    total = weight.sum()
    return float((values * weight).sum() / total) if total > 0 else float("nan")
