"""Rows on which models are judged, and the confidence interval of their difference.

All models are judged on the same rows: newer than ``split``, with an outcome known by the cutoff. A
row whose outcome became known by ``split`` may be in a fit. A row that was predicted before
``split`` and became known after it is in neither.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from include.training.metrics import metric_function

RESAMPLES = 200


def split_at(examples: pd.DataFrame, holdout: timedelta, champion_fitted_until: datetime | None) -> pd.Timestamp:
    """Return the time that separates the challengers' judged fit from the rows they are judged on.

    The newest ``holdout`` of the labelled examples is judged, except rows that the champion was
    fitted on.

    Raises:
        ValueError: there are no examples.
    """
    if examples.empty:
        raise ValueError("the training set has no rows: no outcome is known yet")
    split = examples["event_timestamp"].max() - pd.Timedelta(holdout)
    return split if champion_fitted_until is None else max(split, pd.Timestamp(champion_fitted_until))


def fit_rows(examples: pd.DataFrame, until: datetime, since: datetime | None = None) -> pd.DataFrame:
    """Return rows whose outcome was known by ``until``, predicted after ``since``."""
    known = examples["label_known_at"] <= pd.Timestamp(until)
    return examples[known] if since is None else examples[known & (examples["event_timestamp"] > pd.Timestamp(since))]


def judged_rows(examples: pd.DataFrame, fitted_until: Iterable[datetime]) -> pd.DataFrame:
    """Return rows on which none of the models was fitted, given each one's ``fitted_until``."""
    after = max(pd.Timestamp(t) for t in fitted_until)
    return examples[(examples["event_timestamp"] > after) & (examples["label_known_at"] > after)]


def difference_by_day(
    metric: str, days: np.ndarray, label: np.ndarray, challenger: np.ndarray, champion: np.ndarray
) -> dict[str, float]:
    """Return metric(challenger) - metric(champion) with its 95 % interval.

    The interval comes from a paired bootstrap over days. It resamples days, not rows, because
    outcomes of one day depend on each other (Efron & Tibshirani 1993, ch. 8). It is for information
    only. The gate does not use it.

    Args:
        days: any label of the day of each row [n].

    Returns:
        ``difference``, ``low``, ``high`` and ``days`` (their number). Values are NaN where the
            metric is NaN.
    """
    figure = metric_function(metric)
    _, day = np.unique(days, return_inverse=True)
    count = int(day.max()) + 1 if len(day) else 0
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES if count > 1 else 0):
        weight = np.bincount(generator.integers(0, count, count), minlength=count)[day]
        drawn.append(figure(label, challenger, weight) - figure(label, champion, weight))
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (float("nan"), float("nan"))
    return {
        "difference": figure(label, challenger) - figure(label, champion),
        "low": float(low),
        "high": float(high),
        "days": count,
    }
