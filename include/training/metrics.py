"""The metrics by which models are compared, and their direction. The gate refuses NaN values.

Definitions are scikit-learn's (a test compares). They are implemented here for two reasons. A
paired bootstrap calls them hundreds of times with weights. And a metric must return NaN, not raise,
where it is undefined (the AUC of one class).
"""

from collections.abc import Callable

import numpy as np

from include.projects.base import Metric, TaskKind

Figure = Callable[..., float]


class UnknownMetricError(ValueError):
    """Raised when a metric does not exist, or a project states the wrong direction for it."""


def auc(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the area under the ROC curve, by ranks (Mann-Whitney). Ties count half."""
    label, prediction, weight = _columns(label, prediction, weight)
    if np.isnan(prediction).any() or np.isnan(label).any():
        return float("nan")
    _, rank = np.unique(prediction, return_inverse=True)
    positive = np.bincount(rank, weights=weight * label)
    negative = np.bincount(rank, weights=weight * (1 - label))
    pairs = positive.sum() * negative.sum()
    return float((positive * (np.cumsum(negative) - negative / 2)).sum() / pairs) if pairs > 0 else float("nan")


def brier(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the mean squared difference of probability and outcome."""
    label, prediction, weight = _columns(label, prediction, weight)
    return _mean((prediction - label) ** 2, weight)


def log_loss(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the mean negative log likelihood.

    Probabilities are clipped to stay 1e-7 (float32's resolution) away from 0 and 1.
    """
    label, prediction, weight = _columns(label, prediction, weight)
    probability = np.clip(prediction, 1e-7, 1 - 1e-7)
    return _mean(-(label * np.log(probability) + (1 - label) * np.log(1 - probability)), weight)


def mae(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the mean absolute error."""
    label, prediction, weight = _columns(label, prediction, weight)
    return _mean(np.abs(prediction - label), weight)


def rmse(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the root of the mean squared error."""
    label, prediction, weight = _columns(label, prediction, weight)
    return float(np.sqrt(_mean((prediction - label) ** 2, weight)))


def r2(label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the explained share of the labels' variance, or NaN if the variance is 0."""
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
    """Return the names of the metrics for a kind of task."""
    return _OF_KIND[TaskKind(kind)]


def metric_function(name: str) -> Figure:
    """Return the function ``(label, prediction, weight=None) -> float`` of a metric.

    Raises:
        UnknownMetricError: there is none of that name. The message lists the existing ones.
    """
    if name not in _METRICS:
        raise UnknownMetricError(f"no metric '{name}'; there is {', '.join(sorted(_METRICS))}")
    return _METRICS[name][0]


def higher_is_better(name: str) -> bool:
    """Return whether a higher value of the metric is better. Raises UnknownMetricError."""
    metric_function(name)
    return _METRICS[name][1]


def check_direction(metric: Metric) -> None:
    """Refuse a project with the wrong direction, because its gate would promote the worse model.

    Raises:
        UnknownMetricError: unknown name or wrong direction.
    """
    metric_function(metric.name)
    if _METRICS[metric.name][1] != metric.higher_is_better:
        raise UnknownMetricError(
            f"metric '{metric.name}': higher_is_better is {_METRICS[metric.name][1]}, the project says"
            f" {metric.higher_is_better}"
        )


def figures(kind: TaskKind | str, label: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Return every metric of the kind for these predictions."""
    return {name: metric_function(name)(label, prediction) for name in metrics_of(kind)}


def _columns(
    label: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    label, prediction = np.asarray(label, dtype="float64"), np.asarray(prediction, dtype="float64")
    if label.shape != prediction.shape:
        raise ValueError(f"{label.shape} labels and {prediction.shape} predictions")
    return label, prediction, np.ones(label.shape) if weight is None else np.asarray(weight, dtype="float64")


def _mean(values: np.ndarray, weight: np.ndarray) -> float:
    total = weight.sum()
    return float((values * weight).sum() / total) if total > 0 else float("nan")
