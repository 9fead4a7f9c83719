"""Reading what an upstream dropped: strictly, with a reason for everything that is not as declared."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from include.data.tables import ARROW
from include.projects.base import DType, Source


class Reason(NamedTuple):
    """Why a file, or rows of it, did not get into the table."""

    rule: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants of a reason
    message: str
    severity: str = "error"  # a warning keeps nothing out


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
    """Parse a file of a source, by the ending of its name: csv, json or parquet.

    A source's own format is what its upstream writes; history may come in any of the three.

    Raises:
        FileRefused: it is empty, cannot be parsed (cut off, say), or its columns are not those of the source.
    """
    if not content.strip():
        raise FileRefused(Reason("empty_file", 0, f"{name}: the file is empty; have it sent again"))
    raw = _parse(source, name, content)
    if not len(raw):
        raise FileRefused(Reason("empty_file", 0, f"{name}: there are no rows in the file; have it sent again"))
    _check_columns(source, name, raw)
    raw = raw[list(source.columns)]
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
    ending = name.rpartition(".")[2].lower()
    parse = {"csv": _csv, "json": _json, "parquet": lambda _, content: pq.read_table(io.BytesIO(content)).to_pandas()}.get(ending)
    if parse is None:
        raise FileRefused(Reason("unreadable", 0, f"{name}: files of '{source.name}' end in .csv, .json or .parquet; name it by what is in it"))
    try:
        return parse(source, content)
    except (ValueError, pa.ArrowException, OSError) as error:
        count = max(len(content.splitlines()) - 1, 0) if ending == "csv" else 0  # elsewhere nobody can tell
        message = f"{name}: not readable as {ending} ({str(error).strip().splitlines()[0][:200]}); cut off on its way? Have it sent again"
        raise FileRefused(Reason("unreadable", count, message)) from error


def _csv(source: Source, content: bytes) -> pd.DataFrame:
    """Every value as text. Arrow's reader, because pandas' fills up lines that are too short and shifts those that are too long."""
    text = pacsv.ConvertOptions(column_types=dict.fromkeys(source.columns, pa.string()), strings_can_be_null=True, null_values=[""])
    return pacsv.read_csv(io.BytesIO(content), parse_options=pacsv.ParseOptions(newlines_in_values=True), convert_options=text).to_pandas()


def _json(_source: Source, content: bytes) -> pd.DataFrame:
    records = json.loads(content)
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise ValueError("it is not a list of objects")
    if len({frozenset(r) for r in records}) > 1:
        raise ValueError("its objects differ in their names; write null for what is missing")
    return pd.DataFrame(records, dtype=object)  # as written: pandas would make 1 of true, and 1.0 of 1


def _check_columns(source: Source, name: str, raw: pd.DataFrame) -> None:
    missing = [c for c in source.columns if c not in raw]
    extra = [str(c) for position, c in enumerate(raw) if c not in source.columns or c in raw.columns[:position]]
    if missing:
        message = f"{name}: column {', '.join(map(repr, missing))} is missing ({len(raw)} rows); the file needs {', '.join(source.columns)}"
        raise FileRefused(Reason("missing_column", len(raw), message))
    if extra:
        message = f"{name}: column {', '.join(map(repr, extra))} is not declared ({len(raw)} rows); take it out, or declare it for source '{source.name}'"
        raise FileRefused(Reason("extra_column", len(raw), message))


def _strings(values: pd.Series) -> pd.Series:
    if pd.api.types.infer_dtype(values, skipna=True) not in {"string", "empty"}:
        values = values.where(values.map(lambda value: isinstance(value, str)))  # a number is no text
    return values.astype("string").astype(object).where(values.notna(), None)


def _numbers(values: pd.Series) -> pd.Series:
    """Infinity is no number that an upstream measured; nor is true, nor a time."""
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return pd.Series(np.nan, index=values.index)
    if values.dtype == object:
        values = values.where(~values.map(lambda value: isinstance(value, bool)))
    return pd.to_numeric(values, errors="coerce").replace([np.inf, -np.inf], np.nan)


def _integers(values: pd.Series) -> pd.Series:
    numbers = _numbers(values)
    return numbers.astype("Int64") if numbers.dtype.kind in "iu" else numbers.where(numbers == np.floor(numbers)).astype("Int64")


def _booleans(values: pd.Series) -> pd.Series:
    words = {"true": True, "1": True, "false": False, "0": False}
    return values.astype("string").str.lower().map(words).astype("boolean")


def _timestamps(values: pd.Series) -> pd.Series:
    """ISO 8601; without a zone it is UTC. A number is no time: nobody knows its unit."""
    if not pd.api.types.is_datetime64_any_dtype(values.dtype):
        values = _strings(values)
    return pd.to_datetime(values, utc=True, format="ISO8601" if values.dtype == object else None, errors="coerce").astype("datetime64[us, UTC]")


_TYPED: dict[DType, Callable[[pd.Series], pd.Series]] = {
    "string": _strings,
    "int64": _integers,
    "float64": lambda values: _numbers(values).astype("float64"),
    "bool": _booleans,
    "timestamp": _timestamps,
}
