"""Evaluate served predictions once their outcomes are known.

Only predictions of the champion count, because those of an older version are irrelevant to it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from include.data import layout, tables
from include.features.known import KnownTables
from include.features.times import stored
from include.ledger import moment
from include.monitoring.intervals import NAN, Estimate, bias_statistic, bootstrap, metric_statistic
from include.projects.base import Metric, Project, TaskKind
from include.registry import versions
from include.training.bundle import Bundle
from include.training.metrics import figures, metric_function

BINS = 10  # of the calibration curve


@dataclass(frozen=True)
class Performance:
    """The champion's performance on its predictions in a window; see ``measure``."""

    predictions: int
    labels: int
    days: int
    metric: Estimate
    bias: Estimate
    figures: dict[str, float]


def predictions(
    project: Project, *, since: datetime, cutoff: datetime, version: str | None = None, columns: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Return predictions made for times in (since, cutoff], as stored by the cutoff.

    Args:
        project: the project.
        since: start of the window, exclusive.
        cutoff: the run's cutoff. Later predictions and those stored by a later run of ``score`` are
            excluded.
        version: only those of this model version.
        columns: columns to return in addition to the example key, ``predicted_at`` and
            ``prediction``.

    Returns:
        A frame. It is empty, with the fixed columns, if nothing was ever predicted.
    """
    names = list(dict.fromkeys([*project.example_key, "predicted_at", "prediction", *columns]))
    table = tables.open_table(layout.predictions(project))
    if table is None:
        return pd.DataFrame(columns=names)
    time = tables.ARROW["timestamp"]
    inside = (ds.field("predicted_at") > pa.scalar(since, time)) & (ds.field("predicted_at") <= pa.scalar(cutoff, time))
    inside &= ds.field("cutoff") <= pa.scalar(cutoff, time)
    if version is not None:
        inside &= ds.field("model_version") == str(version)
    return tables.to_pandas(
        table.to_pyarrow_dataset().to_table(columns=names, filter=inside), nullable=project.example_key
    )


def with_outcomes(project: Project, predicted: pd.DataFrame, *, since: datetime, cutoff: datetime) -> pd.DataFrame:
    """Return predictions whose outcome was known by the cutoff.

    The columns ``label`` and ``label_known_at`` are added.

    Raises:
        pandas.errors.MergeError: an example has two outcomes.
    """
    labels = stored(
        project, project.module("features").labels(KnownTables(project, cutoff), since=since, until=cutoff), "labels()"
    )
    # Enforced here, whatever a project's function returns.
    labels = labels[labels["label_known_at"] <= pd.Timestamp(cutoff)]
    if predicted.empty:
        return predicted.assign(label=pd.Series(dtype="float64"), label_known_at=pd.Series(dtype="datetime64[us, UTC]"))
    return predicted.merge(
        labels[[*project.example_key, "label", "label_known_at"]],
        on=list(project.example_key),
        how="inner",
        validate="many_to_one",
    )


def measure(metric: Metric, kind: TaskKind, joined: pd.DataFrame, *, predictions: int) -> Performance:
    """Return metric and bias (mean prediction minus mean outcome) with 95 % intervals.

    The intervals come from a bootstrap over days.

    Args:
        metric: the project's.
        kind: the kind of task. ``figures`` contains all its metrics.
        joined: ``predicted_at``, ``prediction``, ``label`` for each prediction with an outcome.
        predictions: number of predictions, with and without an outcome.

    Returns:
        The performance. A value is NaN if it is undefined: no rows, one class only, or a prediction
            that is not a number.
    """
    label, prediction = joined["label"].to_numpy("float64"), joined["prediction"].to_numpy("float64")
    day, days = _blocks(joined["predicted_at"], "D")
    if not len(joined):
        return Performance(predictions, 0, 0, Estimate(NAN, NAN, NAN), Estimate(NAN, NAN, NAN), {})
    return Performance(
        predictions=predictions,
        labels=len(joined),
        days=days,
        metric=bootstrap(metric_statistic(metric.name, label, prediction, day), days),
        bias=bootstrap(bias_statistic(label, prediction, day), days),
        figures=figures(kind, label, prediction),
    )


def by_day(metric: Metric, joined: pd.DataFrame) -> pd.DataFrame:
    """Return one row per UTC day of prediction.

    Returns:
        ``day``, ``labels``, the metric as ``value``, ``low``, ``high`` (bootstrap over the day's
            hours), means of ``prediction`` and ``label``.
    """
    rows = []
    for day, group in joined.groupby(joined["predicted_at"].dt.floor("D"), sort=True):
        hour, hours = _blocks(group["predicted_at"], "h")
        label, prediction = group["label"].to_numpy("float64"), group["prediction"].to_numpy("float64")
        estimate = bootstrap(metric_statistic(metric.name, label, prediction, hour), hours, resamples=200)
        rows.append((day, len(group), estimate.value, estimate.low, estimate.high, prediction.mean(), label.mean()))
    return pd.DataFrame(rows, columns=["day", "labels", "value", "low", "high", "prediction", "label"])


def calibration(joined: pd.DataFrame) -> pd.DataFrame:
    """Return mean ``prediction``, mean ``label`` and ``labels`` in bins of equally many rows.

    It works for probabilities and for numbers.
    """
    if joined.empty:
        return pd.DataFrame(columns=["prediction", "label", "labels"])
    place = joined["prediction"].rank(method="first").sub(1) * BINS // len(joined)
    groups = joined.groupby(place)
    return groups.agg(prediction=("prediction", "mean"), label=("label", "mean"), labels=("label", "size"))


def at_training(project: Project, champion: Any) -> float:
    """Return the champion's metric when it was judged.

    It comes from its tag, else from its reference rows. It is NaN if neither has it.
    """
    tag = champion.tags.get(f"metric.{project.metric.name}")
    if tag is not None:
        return float(tag)
    reference = Bundle.load(versions.bundle(project, champion.version)).reference()
    return (
        metric_function(project.metric.name)(reference["label"].to_numpy(), reference["prediction"].to_numpy())
        if len(reference)
        else NAN
    )


def measure_champion(project: Project, cutoff: str) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """Return the evidence on the champion in the window before the cutoff, and its rows.

    Returns:
        None if there is no champion. Otherwise a dict for ``include.monitoring.episodes`` (JSON,
            below 1 KB): ``version``, ``champion_cutoff``, ``since``, ``predictions``, ``labels``,
            ``days``, ``metric``, ``ci``, ``reference``, ``bias``, ``bias_ci``, ``figures`` (None
            stands for NaN). And the rows.
    """
    champion = versions.champion(project)
    if champion is None:
        return None
    until = moment(cutoff)
    since = until - project.retrain.window
    predicted = predictions(project, since=since, cutoff=until, version=champion.version)
    joined = with_outcomes(project, predicted, since=since, cutoff=until)
    performance = measure(project.metric, project.kind, joined, predictions=len(predicted))
    evidence = {
        "version": str(champion.version),
        "champion_cutoff": champion.tags["cutoff"],
        "since": since.isoformat(),
        "predictions": performance.predictions,
        "labels": performance.labels,
        "days": performance.days,
        "metric": _number(performance.metric.value),
        "ci": [_number(performance.metric.low), _number(performance.metric.high)],
        "reference": _number(at_training(project, champion)),
        "bias": _number(performance.bias.value),
        "bias_ci": [_number(performance.bias.low), _number(performance.bias.high)],
        "figures": {name: _number(value) for name, value in performance.figures.items()},
    }
    return evidence, joined


def _blocks(times: pd.Series, unit: str) -> tuple[np.ndarray, int]:
    """Return the number of each row's day or hour among those that occur, and their count."""
    if times.empty:
        return np.zeros(0, dtype="int64"), 0
    codes, groups = pd.factorize(times.dt.floor(unit), sort=True)
    return codes, len(groups)


def _number(value: float) -> float | None:
    """Round a number for JSON, with None for NaN."""
    return round(float(value), 6) if np.isfinite(value) else None
