"""Evaluation plots, each as PNG. The selection depends only on the kind of task."""

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from include.projects.base import TaskKind
from include.training.metrics import metric_function

COLOURS = {"challenger": "#1f77b4", "champion": "#d62728", "baseline": "#7f7f7f"}
BINS = 10


def evaluation_plots(
    kind: TaskKind, metric: str, times: pd.Series, label: np.ndarray, predictions: Mapping[str, np.ndarray]
) -> dict[str, bytes]:
    """Return PNG images by name.

    Args:
        times: prediction time of each row [n].
        label: outcomes [n].
        predictions: role (challenger, champion, baseline) -> predictions [n] on the same rows.
    """
    figures = {"by_month": _by_month(metric, times, label, predictions)}
    if kind == TaskKind.BINARY:
        figures |= {"roc": _roc(label, predictions), "calibration": _calibration(label, predictions)}
    else:
        figures |= {"residuals": _residuals(label, predictions)}
    return {name: _png(figure) for name, figure in sorted(figures.items())}


def _roc(label: np.ndarray, predictions: Mapping[str, np.ndarray]) -> Figure:
    figure, axes = _axes("ROC", "false positive rate", "true positive rate")
    for who, prediction in predictions.items():
        order = np.argsort(-prediction, kind="stable")
        positives, negatives = np.cumsum(label[order]), np.cumsum(1 - label[order])
        # Equal predictions are one step.
        last_of_ties = np.append(np.flatnonzero(np.diff(prediction[order])), len(order) - 1)
        if positives[-1] and negatives[-1]:
            x, y = (
                np.append(0, negatives[last_of_ties] / negatives[-1]),
                np.append(0, positives[last_of_ties] / positives[-1]),
            )
            axes.plot(
                x, y, color=COLOURS.get(who), label=f"{who} (AUC {metric_function('auc')(label, prediction):.3f})"
            )
    axes.plot([0, 1], [0, 1], color="lightgrey", zorder=0)
    axes.legend(loc="lower right")
    return figure


def _calibration(label: np.ndarray, predictions: Mapping[str, np.ndarray]) -> Figure:
    figure, axes = _axes("Calibration, tenths of the predictions", "mean prediction", "share of outcomes")
    for who, prediction in predictions.items():
        parts = [part for part in np.array_split(np.argsort(prediction, kind="stable"), BINS) if len(part)]
        axes.plot(
            [prediction[p].mean() for p in parts],
            [label[p].mean() for p in parts],
            marker="o",
            color=COLOURS.get(who),
            label=who,
        )
    axes.plot([0, 1], [0, 1], color="lightgrey", zorder=0)
    axes.legend(loc="upper left")
    return figure


def _residuals(label: np.ndarray, predictions: Mapping[str, np.ndarray]) -> Figure:
    figure, axes = _axes("Residuals", "prediction - outcome", "rows")
    edges = np.quantile(np.concatenate([p - label for p in predictions.values()]), [0.005, 0.995])
    for who, prediction in predictions.items():
        axes.hist(
            prediction - label,
            bins=60,
            range=(edges[0], edges[1] + 1e-9),
            histtype="step",
            color=COLOURS.get(who),
            label=who,
        )
    axes.legend()
    return figure


def _by_month(metric: str, times: pd.Series, label: np.ndarray, predictions: Mapping[str, np.ndarray]) -> Figure:
    figure, axes = _axes(f"{metric} by month of the prediction", "", metric)
    months = times.dt.strftime("%Y-%m").to_numpy()
    for who, prediction in predictions.items():
        names = sorted(set(months))
        values = [metric_function(metric)(label[months == m], prediction[months == m]) for m in names]
        axes.plot(
            [f"{m}\n{int((months == m).sum())} rows" for m in names],
            values,
            marker="o",
            color=COLOURS.get(who),
            label=who,
        )
    axes.legend()
    return figure


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    # Without pyplot there is no global state and no display.
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
