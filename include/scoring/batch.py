"""Predict what is due: everything whose prediction time came since the last time, with the features known then."""

import hashlib
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from include.data import layout, tables
from include.features import store
from include.features.known import KnownTables
from include.ledger import moment
from include.projects.base import Project
from include.registry import versions
from include.training.bundle import Bundle

WRITER = "score"
# Things to predict can turn up in the landing zone after their prediction time; this far back they are looked for again.
LATENESS = timedelta(days=2)


def predict_due(project: Project, cutoff: str) -> dict:
    """Predict everything with a prediction time up to the cutoff that has no prediction yet.

    What was due before the champion's own cutoff is left alone: a model must not predict what it may have learnt from.

    Returns:
        ``rows`` predicted, the ``model_version`` that did it (None: there is no champion yet), the table's ``version``.
    """
    until, uri = moment(cutoff), layout.predictions(project)
    champion = versions.champion(project)
    if champion is None:
        return {"rows": 0, "model_version": None, "version": tables.table_version(uri)}
    since = moment(champion.tags["cutoff"])
    mark = tables.last_sequence(uri, WRITER)
    if mark is not None:
        since = max(since, datetime.fromtimestamp(mark, UTC) - LATENESS)
    due = project.module("features").examples(KnownTables(project, until), since=since, until=until, cutoff=until)
    due = due.drop(columns=["label", "label_known_at"])
    due = due[~_ids(project, due).isin(_predicted(uri, since))]
    if due.empty:
        return {"rows": 0, "model_version": champion.version, "version": tables.table_version(uri)}

    rows = store.historical_features(project, due)
    rows["prediction"] = Bundle.load(versions.bundle(project, champion.version)).predict(rows)
    rows = rows.rename(columns={"event_timestamp": "predicted_at"})
    rows["prediction_id"] = _ids(project, rows.rename(columns={"predicted_at": "event_timestamp"}))
    rows["model_version"], rows["cutoff"] = str(champion.version), pd.Timestamp(until)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    # Exactly once by the ids above; the sequence only has to rise, also when late arrivals are scored at the same cutoff again.
    version = tables.append(uri, table.cast(_schema(table)), writer=WRITER, sequence=max(int(until.timestamp()), (mark or 0) + 1))
    return {"rows": len(rows), "model_version": str(champion.version), "version": version}


def _predicted(uri: str, since: datetime) -> set[str]:
    found = tables.open_table(uri)
    if found is None:
        return set()
    recent = found.to_pyarrow_dataset().to_table(columns=["prediction_id"], filter=ds.field("predicted_at") > pa.scalar(since, tables.ARROW["timestamp"]))
    return set(recent["prediction_id"].to_pylist())


def _ids(project: Project, rows: pd.DataFrame) -> pd.Series:
    """One id for each thing and prediction time, the same whoever computes it."""
    columns = [*project.example_key, "event_timestamp"]
    text = pd.Series(project.name, index=rows.index)
    for column in columns:
        value = rows[column]
        text = text + "|" + (value.dt.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value.dtype, pd.DatetimeTZDtype) else value.astype(str))
    return text.map(lambda t: hashlib.sha256(t.encode()).hexdigest()[:24])


def _schema(table: pa.Table) -> pa.Schema:
    """Timestamps in microseconds: DuckDB and Delta read nothing finer."""
    return pa.schema([pa.field(f.name, tables.ARROW["timestamp"] if pa.types.is_timestamp(f.type) else f.type) for f in table.schema])
