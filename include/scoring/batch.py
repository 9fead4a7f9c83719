"""Predict everything that is due, with the features known at its prediction time.

An example is due if its prediction time was reached since the last run. Predictions are made in
partitions: a window of prediction times, and at most ``MOST_ROWS`` rows of it. Each partition is
appended atomically and once. So a killed run continues after its last partition, and a backlog of
years needs only the memory of one partition.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from include import ledger
from include.data import layout, tables
from include.features import store
from include.features.known import KnownTables
from include.features.times import stored
from include.ledger import iso, moment
from include.projects.base import Project
from include.registry import versions
from include.registry.lost import refuse_lost
from include.scoring.policy import complete
from include.training.bundle import Bundle

WRITER = "score"
# Examples can arrive in the landing zone after their prediction time. They are searched for this
# far back.
LATENESS = timedelta(days=2)
# A window with few rows is followed by one that is twice as long.
FIRST_WINDOW, SHORTEST_WINDOW = timedelta(days=7), timedelta(hours=1)
MOST_ROWS = 50_000


def predict_due(project: Project, cutoff: str) -> dict[str, Any]:
    """Predict all examples with a prediction time up to the cutoff that are not predicted yet.

    Examples that were due before the champion's own cutoff are skipped: a model must not predict
    data that it may have been trained on.

    Returns:
        The number of ``rows`` predicted, the number of ``partitions``, the ``model_version`` (None
            if there is no champion yet), the table's ``version``, and the number ``refused`` by the
            project's look-up policy.

    Raises:
        ChampionLostError: the champion is gone from the registry.
    """
    until, uri = moment(cutoff), layout.predictions(project)
    champion = versions.champion(project)
    if champion is None:
        refuse_lost(project)
    done: dict[str, Any] = {"rows": 0, "partitions": 0, "refused": 0, "model_version": None, "version": None}
    if champion is not None:
        done["model_version"] = str(champion.version)
        since = moment(champion.tags["cutoff"])
        mark = tables.last_sequence(uri, WRITER)
        if mark is not None:
            since = max(since, datetime.fromtimestamp(mark, UTC) - LATENESS)
        model: Bundle | None = None
        for due, ends in _partitions(project, uri, since, until):
            model = model or Bundle.load(versions.bundle(project, champion.version))
            rows, refused = _predict(project, model, due, str(champion.version), until)
            done["refused"] += refused
            if rows is None:
                continue
            # The ids ensure exactly once. The sequence only has to rise, also when late arrivals
            # are scored at the same cutoff again.
            mark = tables.last_sequence(uri, WRITER) or 0
            tables.append(uri, rows, writer=WRITER, sequence=max(int(ends.timestamp()), mark + 1))
            done["rows"] += len(rows)
            done["partitions"] += 1
    return done | {"version": tables.table_version(uri)}


def superseded(project: Project, cutoff: str, scored: dict[str, Any]) -> str | None:
    """Return why a run that predicted nothing was superfluous, or None.

    A run for an earlier cutoff may still predict late arrivals.
    """
    last = ledger.last_cutoffs(project.name).get("score")
    if scored["rows"] or last is None or last["cutoff"] <= cutoff:
        return None
    return f"predictions were made up to {last['cutoff']} already: a run for {cutoff} has nothing to do"


def later_than(project: Project, until: datetime) -> str | None:
    """Return the time up to which predictions were made if it is after ``until`` (ISO), or None.

    In that case, later runs for earlier times would predict almost nothing.
    """
    mark = tables.last_sequence(layout.predictions(project), WRITER)
    return iso(datetime.fromtimestamp(mark, UTC)) if mark and mark > until.timestamp() else None


def rewind(project: Project, until: datetime) -> list[str]:
    """Remove the predictions of runs whose cutoff was after ``until``.

    The next run makes them again. Safe to repeat.

    Returns:
        The actions, a sentence each.
    """
    if later_than(project, until) is None:
        return []
    uri = layout.predictions(project)
    mark = tables.sequence_by(uri, WRITER, int(until.timestamp()))
    deleted, before = tables.rewind(uri, writer=WRITER, sequence=mark, column="cutoff", after=until)
    return [f"predictions: {deleted} rows deleted; version {before} of the table keeps them"]


def _partitions(
    project: Project, uri: str, since: datetime, until: datetime
) -> Iterator[tuple[pd.DataFrame, datetime]]:
    """Yield due examples without a prediction, at most ``MOST_ROWS`` at a time, and a time.

    Up to that time, nothing remains to predict once the partition is predicted.
    """
    width = FIRST_WINDOW
    while since < until:
        end = min(since + width, until)
        # Use what was known at the window's end. Later data is irrelevant to predictions for that
        # window.
        due = project.module("features").examples(KnownTables(project, end), since=since, until=end, cutoff=end)
        due = stored(project, due.drop(columns=["label", "label_known_at"]), "examples()")
        due = due[~_ids(project, due).isin(_predicted(uri, since, end))]
        for start in range(0, len(due), MOST_ROWS):
            yield due.iloc[start : start + MOST_ROWS], end if start + MOST_ROWS >= len(due) else since
        if len(due) > MOST_ROWS:
            width = max(width / 2, SHORTEST_WINDOW)
        elif 2 * len(due) <= MOST_ROWS:
            width = 2 * width
        since = end


def _predict(
    project: Project, model: Bundle, due: pd.DataFrame, version: str, until: datetime
) -> tuple[pa.Table | None, int]:
    """Return the rows for the table of predictions, and the number of refused rows.

    The rows are None if there are none.
    """
    inputs = complete(model.contract, store.feature_views(project), store.historical_features(project, due))
    rows, by_rule = inputs.rows[~inputs.refused], inputs.by_rule[~inputs.refused]
    if rows.empty:
        return None, int(inputs.refused.sum())
    answers = model.predict(rows)
    if by_rule.any():
        answers = np.where(by_rule, model.predict_by_rule(rows), answers)
    rows = rows.assign(prediction=answers).rename(columns={"event_timestamp": "predicted_at"})
    rows["prediction_id"] = _ids(project, rows.rename(columns={"predicted_at": "event_timestamp"}))
    # The rule's answers get their own version name, so that the model is not judged by them.
    rows["model_version"], rows["cutoff"] = np.where(by_rule, f"{version}-baseline", version), pd.Timestamp(until)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    return table.cast(_schema(table)), int(inputs.refused.sum())


def _predicted(uri: str, since: datetime, until: datetime) -> set[str]:
    table = tables.open_table(uri)
    if table is None:
        return set()
    at, (low, high) = ds.field("predicted_at"), (pa.scalar(end, tables.ARROW["timestamp"]) for end in (since, until))
    return set(
        table.to_pyarrow_dataset()
        .to_table(columns=["prediction_id"], filter=(at > low) & (at <= high))["prediction_id"]
        .to_pylist()
    )


def _ids(project: Project, rows: pd.DataFrame) -> pd.Series:
    """Return an id for each example and prediction time. It is deterministic.

    For most rows the hashed text is unchanged since the first release, so ids in tables and labels
    remain valid. If that text could also be another row's, a JSON list is hashed instead. That is
    the case for a fraction of a second, a separator or a missing value in a key. No project name
    can begin like that.
    """
    texts, plain = [], np.ones(len(rows), dtype=bool)
    for column in (*project.example_key, "event_timestamp"):
        value = rows[column]
        if isinstance(value.dtype, pd.DatetimeTZDtype):
            value = value.dt.tz_convert("UTC")
            plain &= (value == value.dt.floor("s")).to_numpy()
            texts.append((value.dt.strftime("%Y-%m-%dT%H:%M:%SZ"), value.dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ")))
        else:
            text = value.astype(str)
            plain &= (value.notna() & ~text.str.contains("|", regex=False)).to_numpy(dtype=bool)
            texts.append((text, text.where(value.notna(), None)))
    joined = pd.Series(project.name, index=rows.index)
    for text, _ in texts:
        joined = joined + "|" + text.fillna("")
    exact = [
        json.dumps([project.name, *(None if pd.isna(one) else one for one in row)])
        for row in zip(*(text for _, text in texts), strict=True)
    ]
    chosen = [one if simple else other for one, other, simple in zip(joined, exact, plain, strict=True)]
    return pd.Series(
        [hashlib.sha256(text.encode()).hexdigest()[:24] for text in chosen], index=rows.index, dtype=object
    )


def _schema(table: pa.Table) -> pa.Schema:
    """Return the schema with timestamps in microseconds, the finest unit of DuckDB and Delta."""
    return pa.schema(
        [pa.field(f.name, tables.ARROW["timestamp"] if pa.types.is_timestamp(f.type) else f.type) for f in table.schema]
    )
