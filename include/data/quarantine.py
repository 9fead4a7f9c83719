"""The quarantine: rows that were rejected from their table, as received, with the reason."""

from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa

from include.data import tables
from include.data.printable import printable
from include.data.reading import Rows
from include.projects.base import DType

QUARANTINE: dict[str, DType] = {
    "source": "string",
    "file": "string",
    "row": "int64",
    "rule": "string",
    "message": "string",
    "row_json": "string",
    "cutoff": "timestamp",
}


def quarantined(
    source: str, file: str, rows: Rows, rule_of: np.ndarray, message_of: np.ndarray, cutoff: datetime
) -> pa.Table:
    """Return the faulty rows of a file.

    Args:
        rule_of, message_of: [rows of the file]. None for a good row.
    """
    faulty = np.flatnonzero(pd.notna(rule_of))
    columns = {
        "source": [source] * len(faulty),
        "file": [file] * len(faulty),
        "row": faulty + 1,
        "rule": [printable(rule) for rule in rule_of[faulty]],
        "message": [printable(message) for message in message_of[faulty]],
        "row_json": rows.records(faulty),
        "cutoff": [cutoff] * len(faulty),
    }
    return pa.table(columns, schema=tables.arrow_schema(QUARANTINE))
