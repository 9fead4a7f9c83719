"""What serving answered: its prediction log, and that of the shadows, as frames. The columns are those of ``serving/prediction_log.schema.json``."""

import io
import json
from datetime import datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from include.data import layout, prediction_log, storage
from include.projects.base import Project

COLUMNS = ("prediction_id", "model_version", "arm", "failed_arm", "predicted_at", "key", "prediction", "latency_ms")
CHAMPION = "champion"
EMPTY = {"prediction": "float64", "latency_ms": "float64", "predicted_at": "datetime64[us, UTC]"}


def answers(project: Project, *, since: datetime, until: datetime) -> pd.DataFrame:
    """Predictions that were answered at (since, until], wall clock; with the columns ``COLUMNS``."""
    return _read(layout.prediction_log(project), since, until)


def shadowed(project: Project, *, since: datetime, until: datetime) -> pd.DataFrame:
    """What shadows were asked at (since, until]; a prediction that is NaN: asked in vain."""
    return _read(layout.shadow_log(project), since, until)


def entity_of(project: Project, key: str) -> Any:
    """The entity of a row's ``key``: its join keys, or all of it where it has none. Something to count by."""
    said = json.loads(key)
    return tuple(said.get(name) for name in project.entities) if any(name in said for name in project.entities) else key


def _read(folder: UPath, since: datetime, until: datetime) -> pd.DataFrame:
    wanted = [file for file in prediction_log.files(folder) if (prediction_log.written(file.name) or since) >= since - prediction_log.SKEW]
    parts = [_columns(pq.read_table(io.BytesIO(content))) for _, content in storage.read_all(wanted)]
    if not parts:
        return pd.DataFrame({name: pd.Series(dtype=EMPTY.get(name, "object")) for name in COLUMNS})
    found = pa.concat_tables(parts).to_pandas()
    return found[(found["predicted_at"] > pd.Timestamp(since)) & (found["predicted_at"] <= pd.Timestamp(until))].reset_index(drop=True)


def _columns(rows: pa.Table) -> pa.Table:
    if "failed_arm" not in rows.column_names:  # version 1 of the schema
        rows = rows.append_column("failed_arm", pa.array([""] * len(rows), pa.string()))
    return rows.select(list(COLUMNS)).replace_schema_metadata(None)
