"""Predict what is due: everything whose prediction time came since the last time, with the features known then.

Partition by partition: a window of prediction times at a time, and of that at most ``MOST_ROWS`` rows. Each is appended whole, once, so a run that is
killed goes on after its last partition, and a backlog of years needs no more memory than one of them.
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
# Things to predict can turn up in the landing zone after their prediction time; this far back they are looked for again.
LATENESS = timedelta(days=2)
FIRST_WINDOW, SHORTEST_WINDOW = timedelta(days=7), timedelta(hours=1)  # one that holds little is followed by one twice as long
MOST_ROWS = 50_000


def predict_due(project: Project, cutoff: str) -> dict[str, Any]:
    """Predict everything with a prediction time up to the cutoff that has no prediction yet.

    What was due before the champion's own cutoff is left alone: a model must not predict what it may have learnt from.

    Returns:
        ``rows`` predicted in how many ``partitions``, the ``model_version`` that did it (None: there is no champion yet), the table's ``version``, and
        how many were ``refused`` by the project's look-up policy.

    Raises:
        ChampionLost: the champion is gone from the registry.
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
            # Exactly once by the ids; the sequence only has to rise, also when late arrivals are scored at the same cutoff again.
            mark = tables.last_sequence(uri, WRITER) or 0
            tables.append(uri, rows, writer=WRITER, sequence=max(int(ends.timestamp()), mark + 1))
            done["rows"] += len(rows)
            done["partitions"] += 1
    return done | {"version": tables.table_version(uri)}


def superseded(project: Project, cutoff: str, scored: dict[str, Any]) -> str | None:
    """Why a run that predicted nothing had nothing to do; None: it is as good as any. One for an earlier cutoff may still predict what came late."""
    last = ledger.last_cutoffs(project.name).get("score")
    if scored["rows"] or last is None or last["cutoff"] <= cutoff:
        return None
    return f"predictions were made up to {last['cutoff']} already: a run for {cutoff} has nothing to do"


def later_than(project: Project, until: datetime) -> str | None:
    """Up to where predictions were made, if that is after ``until`` (ISO): later runs for earlier times would predict next to nothing."""
    mark = tables.last_sequence(layout.predictions(project), WRITER)
    return iso(datetime.fromtimestamp(mark, UTC)) if mark and mark > until.timestamp() else None


def rewind(project: Project, until: datetime) -> list[str]:
    """Take back the predictions of runs whose cutoff was after ``until``: the next run makes them again. Does the same again without harm.

    Returns:
        What was done, a sentence each.
    """
    if later_than(project, until) is None:
        return []
    uri = layout.predictions(project)
    mark = tables.sequence_by(uri, WRITER, int(until.timestamp()))
    deleted, before = tables.rewind(uri, writer=WRITER, sequence=mark, column="cutoff", after=until)
    return [f"predictions: {deleted} rows deleted; version {before} of the table keeps them"]


def _partitions(project: Project, uri: str, since: datetime, until: datetime) -> Iterator[tuple[pd.DataFrame, datetime]]:
    """What is due and has no prediction, at most ``MOST_ROWS`` at once, and up to when nothing is left once it has one."""
    width = FIRST_WINDOW
    while since < until:
        end = min(since + width, until)
        # As it was known at the window's end: nothing later is of use to what is predicted by then.
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


def _predict(project: Project, model: Bundle, due: pd.DataFrame, version: str, until: datetime) -> tuple[pa.Table | None, int]:
    """The rows of the table of predictions (None: none), and how many are refused."""
    found = complete(model.contract, store.feature_views(project), store.historical_features(project, due))
    rows, by_rule = found.rows[~found.refused], found.by_rule[~found.refused]
    if rows.empty:
        return None, int(found.refused.sum())
    answers = model.predict(rows)
    if by_rule.any():
        answers = np.where(by_rule, model.predict_by_rule(rows), answers)
    rows = rows.assign(prediction=answers).rename(columns={"event_timestamp": "predicted_at"})
    rows["prediction_id"] = _ids(project, rows.rename(columns={"predicted_at": "event_timestamp"}))
    # What the rule answered is no version's: nobody is to judge the model by it.
    rows["model_version"], rows["cutoff"] = np.where(by_rule, f"{version}-baseline", version), pd.Timestamp(until)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    return table.cast(_schema(table)), int(found.refused.sum())


def _predicted(uri: str, since: datetime, until: datetime) -> set[str]:
    found = tables.open_table(uri)
    if found is None:
        return set()
    at, (low, high) = ds.field("predicted_at"), (pa.scalar(end, tables.ARROW["timestamp"]) for end in (since, until))
    return set(found.to_pyarrow_dataset().to_table(columns=["prediction_id"], filter=(at > low) & (at <= high))["prediction_id"].to_pylist())


def _ids(project: Project, rows: pd.DataFrame) -> pd.Series:
    """One id for each thing and prediction time, the same whoever computes it.

    Of most rows the hashed text is what it has been since the first release, so ids in tables and labels hold. Where that text could be another row's too (a
    fraction of a second, a separator or nothing in a key), it is a list in JSON, with which no project's name begins.
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
    exact = [json.dumps([project.name, *(None if pd.isna(one) else one for one in row)]) for row in zip(*(text for _, text in texts), strict=True)]
    chosen = [one if simple else other for one, other, simple in zip(joined, exact, plain, strict=True)]
    return pd.Series([hashlib.sha256(text.encode()).hexdigest()[:24] for text in chosen], index=rows.index, dtype=object)


def _schema(table: pa.Table) -> pa.Schema:
    """Timestamps in microseconds: DuckDB and Delta read nothing finer."""
    return pa.schema([pa.field(f.name, tables.ARROW["timestamp"] if pa.types.is_timestamp(f.type) else f.type) for f in table.schema])
