"""Serving's answers: its prediction log, and that of the shadows, as frames.

The columns are those of ``serving/prediction_log/schema.json``.
"""

import json
import logging
from datetime import datetime
from typing import Any

import pandas as pd
import pyarrow as pa
from upath import UPath

from include.data import layout, prediction_log, storage
from include.projects.base import Project

COLUMNS = (
    "prediction_id",
    "model_version",
    "arm",
    "failed_arm",
    "predicted_at",
    "key",
    "prediction",
    "caller",
    "latency_ms",
)
# Key in a frame's attrs: number of log files that cannot be read.
UNREADABLE = "unreadable_files"
LOG = logging.getLogger(__name__)
CHAMPION = "champion"
EMPTY = {"prediction": "float64", "latency_ms": "float64", "predicted_at": "datetime64[us, UTC]"}


def answers(project: Project, *, since: datetime, until: datetime) -> pd.DataFrame:
    """Return predictions answered at (since, until], wall clock, with the columns ``COLUMNS``."""
    return _read(layout.prediction_log(project), since, until)


def shadowed(project: Project, *, since: datetime, until: datetime) -> pd.DataFrame:
    """Return requests to shadows at (since, until]. A failed shadow has a NaN prediction."""
    return _read(layout.shadow_log(project), since, until)


def entity_of(project: Project, key: str) -> Any:
    """Return the entity of a row's ``key``, for grouping.

    It is the join keys, or the whole key if it does not contain them.
    """
    fields = json.loads(key)
    return (
        tuple(fields.get(name) for name in project.entities)
        if any(name in fields for name in project.entities)
        else key
    )


def _read(folder: UPath, since: datetime, until: datetime) -> pd.DataFrame:
    files = [
        file
        for file in prediction_log.files(folder)
        if (prediction_log.written(file.name) or since) >= since - prediction_log.SKEW
    ]
    tables = [prediction_log.table(content, COLUMNS) for _, content in storage.read_all(files)]
    parts = [rows for rows in tables if rows is not None]
    if len(parts) < len(tables):
        LOG.warning(
            "%s: %d of %d files cannot be read; their answers are not counted",
            folder,
            len(tables) - len(parts),
            len(tables),
        )
    if not parts:
        frame = pd.DataFrame({name: pd.Series(dtype=EMPTY.get(name, "object")) for name in COLUMNS})
    else:
        frame = pa.concat_tables(parts).to_pandas()
        frame = frame[
            (frame["predicted_at"] > pd.Timestamp(since)) & (frame["predicted_at"] <= pd.Timestamp(until))
        ].reset_index(drop=True)
    frame.attrs[UNREADABLE] = len(tables) - len(parts)
    return frame
