"""How good the served predictions were, once their outcomes became known.

Only predictions of the champion count: those of an older version say nothing about it.
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
    """The champion on what it predicted in a window: see ``measure``."""

    predictions: int
    labels: int
    days: int
    metric: Estimate
    bias: Estimate
    figures: dict[str, float]


def predictions(project: Project, *, since: datetime, cutoff: datetime, version: str | None = None, columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """Predictions made for times in (since, cutoff], as they were stored by the cutoff.

    Args:
        project: whose.
        since: start of the window, exclusive.
        cutoff: of the run; later predictions and what a later run of ``score`` stored are left out.
        version: of that model version only.
        columns: wanted beside the example key, ``predicted_at`` and ``prediction``.

    Returns:
        A frame; empty, with the fixed columns, if nothing was ever predicted.
    """
    wanted = list(dict.fromkeys([*project.example_key, "predicted_at", "prediction", *columns]))
    found = tables.open_table(layout.predictions(project))
    if found is None:
        return pd.DataFrame(columns=wanted)
    time = tables.ARROW["timestamp"]
    inside = (ds.field("predicted_at") > pa.scalar(since, time)) & (ds.field("predicted_at") <= pa.scalar(cutoff, time))
    inside &= ds.field("cutoff") <= pa.scalar(cutoff, time)
    if version is not None:
        inside &= ds.field("model_version") == str(version)
    return tables.to_pandas(found.to_pyarrow_dataset().to_table(columns=wanted, filter=inside), nullable=project.example_key)


def with_outcomes(project: Project, predicted: pd.DataFrame, *, since: datetime, cutoff: datetime) -> pd.DataFrame:
    """The predictions whose outcome was known by the cutoff, with ``label`` and ``label_known_at``.

    Raises:
        pandas.errors.MergeError: a thing has two outcomes.
    """
    labels = stored(project, project.module("features").labels(KnownTables(project, cutoff), since=since, until=cutoff), "labels()")
    labels = labels[labels["label_known_at"] <= pd.Timestamp(cutoff)]  # the rule, whatever a project's function does
    if predicted.empty:
        return predicted.assign(label=pd.Series(dtype="float64"), label_known_at=pd.Series(dtype="datetime64[us, UTC]"))
    return predicted.merge(labels[[*project.example_key, "label", "label_known_at"]], on=list(project.example_key), how="inner", validate="many_to_one")


def measure(metric: Metric, kind: TaskKind, joined: pd.DataFrame, *, predictions: int) -> Performance:
    """Metric and bias (mean prediction minus mean outcome) with 95 % intervals from a bootstrap over days.

    Args:
        metric: the project's.
        kind: of task; all its metrics are given in ``figures``.
        joined: ``predicted_at``, ``prediction``, ``label`` for each prediction with an outcome.
        predictions: how many there were, with and without an outcome.

    Returns:
        NaN where a figure has no value: no rows, one class only, a prediction that is no number.
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
    """One row per UTC day of prediction.

    Returns:
        ``day``, ``labels``, the metric as ``value``, ``low``, ``high`` (bootstrap over the day's hours), means of ``prediction`` and ``label``.
    """
    rows = []
    for day, group in joined.groupby(joined["predicted_at"].dt.floor("D"), sort=True):
        hour, hours = _blocks(group["predicted_at"], "h")
        label, prediction = group["label"].to_numpy("float64"), group["prediction"].to_numpy("float64")
        estimate = bootstrap(metric_statistic(metric.name, label, prediction, hour), hours, resamples=200)
        rows.append((day, len(group), estimate.value, estimate.low, estimate.high, prediction.mean(), label.mean()))
    return pd.DataFrame(rows, columns=["day", "labels", "value", "low", "high", "prediction", "label"])


def calibration(joined: pd.DataFrame) -> pd.DataFrame:
    """Mean ``prediction``, mean ``label`` and ``labels`` in bins of equally many rows: for probabilities and numbers alike."""
    if joined.empty:
        return pd.DataFrame(columns=["prediction", "label", "labels"])
    place = joined["prediction"].rank(method="first").sub(1) * BINS // len(joined)
    groups = joined.groupby(place)
    return groups.agg(prediction=("prediction", "mean"), label=("label", "mean"), labels=("label", "size"))


def at_training(project: Project, champion: Any) -> float:
    """The champion's metric when it was judged: its tag, else from its reference rows; NaN if neither has it."""
    tag = champion.tags.get(f"metric.{project.metric.name}")
    if tag is not None:
        return float(tag)
    reference = Bundle.load(versions.bundle(project, champion.version)).reference()
    return metric_function(project.metric.name)(reference["label"].to_numpy(), reference["prediction"].to_numpy()) if len(reference) else NAN


def measure_champion(project: Project, cutoff: str) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """The evidence on the champion in the window before the cutoff, and the rows that it rests on.

    Returns:
        None if there is no champion; else ``include.monitoring.episodes`` reads from the dict (JSON, below 1 KB): ``version``,
        ``champion_cutoff``, ``since``, ``predictions``, ``labels``, ``days``, ``metric``, ``ci``, ``reference``, ``bias``,
        ``bias_ci``, ``figures`` (None stands for NaN).
    """
    champion = versions.champion(project)
    if champion is None:
        return None
    until = moment(cutoff)
    since = until - project.retrain.window
    predicted = predictions(project, since=since, cutoff=until, version=champion.version)
    joined = with_outcomes(project, predicted, since=since, cutoff=until)
    found = measure(project.metric, project.kind, joined, predictions=len(predicted))
    evidence = {
        "version": str(champion.version),
        "champion_cutoff": champion.tags["cutoff"],
        "since": since.isoformat(),
        "predictions": found.predictions,
        "labels": found.labels,
        "days": found.days,
        "metric": _number(found.metric.value),
        "ci": [_number(found.metric.low), _number(found.metric.high)],
        "reference": _number(at_training(project, champion)),
        "bias": _number(found.bias.value),
        "bias_ci": [_number(found.bias.low), _number(found.bias.high)],
        "figures": {name: _number(value) for name, value in found.figures.items()},
    }
    return evidence, joined


def _blocks(times: pd.Series, unit: str) -> tuple[np.ndarray, int]:
    """Number of each row's day or hour among those there are, and how many there are."""
    if times.empty:
        return np.zeros(0, dtype="int64"), 0
    codes, found = pd.factorize(times.dt.floor(unit), sort=True)
    return codes, len(found)


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return round(float(value), 6) if np.isfinite(value) else None
