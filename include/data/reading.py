"""Reading what an upstream dropped: strictly, with a reason for everything that is not as declared."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from include.data.tables import ARROW
from include.projects.base import DType, Source


class Reason(NamedTuple):
    """Why a file, or rows of it, did not get into the table."""

    rule: str
    count: int
    message: str


class FileRefused(Exception):
    """The file as a whole cannot be taken."""

    def __init__(self, reason: Reason):
        super().__init__(reason.message)
        self.reason = reason


@dataclass
class Rows:
    """A file's rows: as they came, as typed values, and which of them have which fault.

    Attributes:
        raw: the values as read, for the quarantine.
        typed: the source's columns with its dtypes; what cannot be that is missing.
        faults: (rule, message, mask over the rows), in the order in which they were found.
    """

    raw: pd.DataFrame
    typed: pd.DataFrame
    faults: list[tuple[str, str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.raw)


def read(source: Source, name: str, content: bytes) -> Rows:
    """Parse a file of a source.

    Raises:
        FileRefused: it is empty, cannot be parsed (cut off, say), or its columns are not those of the source.
    """
    if not content.strip():
        raise FileRefused(Reason("empty_file", 0, f"{name}: the file is empty; have it sent again"))
    raw = _parse(source, name, content)
    _check_columns(source, name, raw)
    raw = raw[list(source.columns)]
    if raw.empty:
        raise FileRefused(Reason("empty_file", 0, f"{name}: the file has a header and no rows; have it sent again"))
    typed, faults = {}, []
    for column, dtype in source.columns.items():
        present = raw[column].notna()
        typed[column] = _TYPED[dtype](raw[column])
        wrong = (present & typed[column].isna()).to_numpy()
        if wrong.any():
            value = raw.loc[wrong, column].iloc[0]
            faults.append(("wrong_type", f"{name}: column '{column}' must be {dtype}; {int(wrong.sum())} values are not, e.g. {value!r}", wrong))
        missing = (~present).to_numpy()
        if missing.any() and column not in source.nullable:
            faults.append(("missing_value", f"{name}: column '{column}' has no value in {int(missing.sum())} rows; it is not nullable", missing))
    return Rows(raw.reset_index(drop=True), pd.DataFrame(typed).reset_index(drop=True), faults)


def to_table(source: Source, rows: pd.DataFrame) -> pa.Table:
    """Rows as the source's Delta table holds them."""
    arrays = [pa.array(rows[c].astype("int64") if dtype == "int64" else rows[c], type=ARROW[dtype], from_pandas=True) for c, dtype in source.columns.items()]
    return pa.table(arrays, names=list(source.columns))


def _parse(source: Source, name: str, content: bytes) -> pd.DataFrame:
    try:
        if source.format == "csv":
            return pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, na_values=[""], on_bad_lines="error")
        if source.format == "json":
            records = json.loads(content)
            if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
                raise ValueError("it is not a list of objects")
            return pd.DataFrame(records)
        return pq.read_table(io.BytesIO(content)).to_pandas()
    except (ValueError, pa.ArrowException, OSError) as error:
        message = f"{name}: not readable as {source.format} ({str(error).strip().splitlines()[0][:200]}); cut off on its way? Have it sent again"
        raise FileRefused(Reason("unreadable", 0, message)) from error


def _check_columns(source: Source, name: str, raw: pd.DataFrame) -> None:
    missing, extra = [c for c in source.columns if c not in raw], [str(c) for c in raw if c not in source.columns]
    if missing:
        message = f"{name}: column {', '.join(map(repr, missing))} is missing ({len(raw)} rows); the file needs {', '.join(source.columns)}"
        raise FileRefused(Reason("missing_column", len(raw), message))
    if extra:
        message = f"{name}: column {', '.join(map(repr, extra))} is not declared ({len(raw)} rows); take it out, or declare it for source '{source.name}'"
        raise FileRefused(Reason("extra_column", len(raw), message))


def _integers(values: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers.where(numbers == np.floor(numbers)).astype("Int64")


def _booleans(values: pd.Series) -> pd.Series:
    words = {"true": True, "1": True, "false": False, "0": False}
    return values.astype("string").str.lower().map(words).astype("boolean")


def _timestamps(values: pd.Series) -> pd.Series:
    """ISO 8601; without a zone it is UTC."""
    return pd.to_datetime(values, utc=True, format=None if isinstance(values.dtype, pd.DatetimeTZDtype) else "ISO8601", errors="coerce").astype("datetime64[us, UTC]")


_TYPED: dict[DType, Callable[[pd.Series], pd.Series]] = {
    "string": lambda values: values.astype("string").astype(object).where(values.notna(), None),
    "int64": _integers,
    "float64": lambda values: pd.to_numeric(values, errors="coerce").astype("float64"),
    "bool": _booleans,
    "timestamp": _timestamps,
}
