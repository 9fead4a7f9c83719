"""Read upstream files strictly, with a reason for every deviation from the declaration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from include.data import added, contents
from include.data.added import ExpressionError
from include.data.contents import UnreadableError
from include.data.conversion import Typed, convert
from include.data.parsing import Parsed, parse
from include.data.printable import error_text, printable, shown
from include.data.tables import ARROW, to_pandas
from include.projects.base import Source
from include.projects.source import KNOWN_AT

# Extension -> format of the content.
KINDS = {"csv": "csv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet"}


class Reason(NamedTuple):
    """Why a file, or some of its rows, did not get into the table."""

    rule: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants of a reason
    message: str
    severity: str = "error"  # a warning excludes nothing


class FileRefusedError(Exception):
    """Raised when a file as a whole cannot be accepted."""

    def __init__(self, reason: Reason):
        super().__init__(reason.message)
        self.reason = reason


@dataclass
class Rows:
    """A file's rows: as received, as typed values, and with their faults.

    Attributes:
        parsed: the values as written, for the quarantine.
        typed: the source's columns with its dtypes (int64 and bool as pandas' nullable ones).
            Unconvertible values are missing.
        faults: (rule, message, mask over the rows), in the order in which they were found.
    """

    parsed: Parsed
    typed: pd.DataFrame
    faults: list[tuple[str, str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.typed)

    def records(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Return rows as received, each as JSON."""
        return [self.parsed.record(int(row)) for row in rows]


def read(source: Source, name: str, content: bytes) -> Rows:
    """Parse a file of a source, by its extension: csv, json (jsonl, ndjson) or parquet.

    Each may be compressed with gzip or zstd. A source's own format is only that of its sample feed.
    Files may have any of these formats.

    Raises:
        FileRefusedError: it is empty, cannot be parsed (for example because it is truncated), its
            columns are not those of the source, or a library fails on it.
        ExpressionError: the source's known_at cannot be evaluated, whatever the file.
    """
    try:
        return _read(source, name, content)
    except (FileRefusedError, ExpressionError):
        raise
    # An external file that crashes a library is at fault itself. The other files must proceed.
    except Exception as error:
        message = (
            f"{name}: reading it failed ({error_text(error)}); look at the file, have it sent again in another form,"
            " and report this error"
        )
        raise FileRefusedError(Reason("failed", 0, message)) from error


def to_table(source: Source, rows: pd.DataFrame) -> pa.Table:
    """Return the rows in the schema of the source's Delta table."""
    return pa.table(
        [pa.array(rows[c], type=ARROW[dtype], from_pandas=True) for c, dtype in source.columns.items()],
        names=list(source.columns),
    )


def _read(source: Source, name: str, content: bytes) -> Rows:
    kind = _kind(source, name)
    try:
        plain = contents.unpack(content, source.max_bytes)
        if not plain.strip():
            raise FileRefusedError(Reason("empty_file", 0, f"{name}: the file is empty; have it sent again"))
        content = plain
        parsed = parse(source, kind, content)
    except UnreadableError as error:
        raise _refusal(source, name, kind, content, str(error), error.todo, error.rule) from error
    except (ValueError, pa.ArrowException, OSError, RecursionError) as error:
        raise _refusal(source, name, kind, content, error_text(error), "", "unreadable") from error
    if not parsed.rows:
        raise FileRefusedError(
            Reason("empty_file", 0, f"{name}: the file has only a header or is empty; send it again")
        )
    _check_columns(source, name, kind, content, parsed)
    columns, faults = {}, []
    for column, dtype in source.file_columns.items():
        typed = convert(source, column, dtype, parsed.columns[column], kind)
        columns[column] = typed.values
        faults += _faults(source, name, column, parsed, typed)
    every = added.add(source, content, columns, parsed.rows)
    faults += _unknown_when(source, name, every, faults)
    return Rows(parsed, to_pandas(pa.table(every)), faults)


def _kind(source: Source, name: str) -> str:
    lower = name.lower()
    for packed in contents.UNPACKED_NAMES:
        lower = lower.removesuffix(packed)
    kind = KINDS.get(lower.rpartition(".")[2])
    if kind is None:
        endings = ", ".join(f".{ending}" for ending in KINDS)
        message = (
            f"{name}: files of '{source.name}' end in one of {endings} (and .gz or .zst after it); name it by what is"
            " in it"
        )
        raise FileRefusedError(Reason("unreadable", 0, message))
    return kind


def _refusal(source: Source, name: str, kind: str, content: bytes, why: str, todo: str, rule: str) -> FileRefusedError:
    # The lines of CSV without its header. For other formats, and for compressed content, the number
    # is unknown.
    count = max(len(content.splitlines()) - 1, 0) if kind == "csv" and not contents.is_packed(content) else 0
    like, instead = contents.looks_like(source, content, kind) if rule == "unreadable" else ("", "")
    todo = instead or todo or "was it cut off on its way? Have it sent again"
    return FileRefusedError(
        Reason(rule, count, f"{name}: not readable as {kind} ({why}){'; ' if like else ''}{like}; {todo}")
    )


def _check_columns(source: Source, name: str, kind: str, content: bytes, parsed: Parsed) -> None:
    expected, names = source.file_columns, parsed.names
    missing = [column for column in expected if column not in names]
    extra = [column for position, column in enumerate(names) if column not in expected or column in names[:position]]
    if missing:
        like, todo = contents.looks_like(source, content, kind)
        what = f"; {like}: {todo}" if like else f"; the file has {_some(names)}, and needs {', '.join(expected)}"
        raise FileRefusedError(
            Reason(
                "missing_column",
                parsed.rows,
                f"{name}: column {', '.join(map(shown, missing))} is missing ({parsed.rows} rows){what}",
            )
        )
    if extra:
        message = (
            f"{name}: column {_some(extra)} is not declared ({parsed.rows} rows); take it out, or declare it for source"
            f" '{source.name}'"
        )
        raise FileRefusedError(Reason("extra_column", parsed.rows, message))


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _faults(source: Source, name: str, column: str, parsed: Parsed, typed: Typed) -> list[tuple[str, str, np.ndarray]]:
    faults, dtype = [], source.columns[column]
    if typed.wrong.any():
        example = shown(parsed.value(column, int(np.flatnonzero(typed.wrong)[0])))
        message = f"{name}: column '{column}' must be {dtype}; {int(typed.wrong.sum())} values are not, e.g. {example}"
        faults.append(("wrong_type", f"{message}; {typed.hint}" if typed.hint else message, typed.wrong))
    missing = ~typed.present
    if missing.any() and column not in source.nullable:
        faults.append(
            (
                "missing_value",
                f"{name}: column '{column}' has no value in {int(missing.sum())} rows; it is not nullable",
                missing,
            )
        )
    return faults


def _unknown_when(
    source: Source, name: str, columns: dict[str, pa.Array], faults: list[Any]
) -> list[tuple[str, str, np.ndarray]]:
    """Return rows without other faults for which the expression of known_at returns nothing."""
    if not source.known_at_expression:
        return []
    nothing = columns[KNOWN_AT].is_null().to_numpy(zero_copy_only=False)
    for _, _, mask in faults:
        nothing = nothing & ~mask
    if not nothing.any():
        return []
    message = (
        f"{name}: known_at, which is {printable(source.known_at_expression)}, gives nothing for {int(nothing.sum())}"
        " rows"
    )
    return [("missing_value", message, nothing)]
