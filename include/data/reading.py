"""Reading what an upstream dropped: strictly, with a reason for everything that is not as declared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from include.data import added, contents
from include.data.added import WrongExpression
from include.data.contents import Unreadable
from include.data.conversion import Typed, convert
from include.data.parsing import Parsed, parse
from include.data.printable import printable, said, shown
from include.data.tables import ARROW, to_pandas
from include.projects.base import Source
from include.projects.source import KNOWN_AT

KINDS = {"csv": "csv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet"}  # ending of the name -> what is in the file


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
        parsed: the values as written, for the quarantine.
        typed: the source's columns with its dtypes (int64 and bool as pandas' nullable ones); what cannot be that is missing.
        faults: (rule, message, mask over the rows), in the order in which they were found.
    """

    parsed: Parsed
    typed: pd.DataFrame
    faults: list[tuple[str, str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.typed)

    def records(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Rows as they came, each as JSON."""
        return [self.parsed.record(int(row)) for row in rows]


def read(source: Source, name: str, content: bytes) -> Rows:
    """Parse a file of a source, by the ending of its name: csv, json (jsonl, ndjson) or parquet; each may be compressed with gzip or zstd.

    A source's own format is what its sample feed writes; files may come in any of them.

    Raises:
        FileRefused: it is empty, cannot be parsed (cut off, say), or its columns are not those of the source; or a library fails on it, however.
        WrongExpression: known_at of the source cannot be evaluated, whatever the file.
    """
    try:
        return _read(source, name, content)
    except (FileRefused, WrongExpression):
        raise
    except Exception as error:  # what a file of an outsider does to a library is the file's fault: the others must go on
        message = f"{name}: reading it failed ({said(error)}); look at the file, have it sent again in another form, and report this error"
        raise FileRefused(Reason("failed", 0, message)) from error


def to_table(source: Source, rows: pd.DataFrame) -> pa.Table:
    """Rows as the source's Delta table holds them."""
    return pa.table([pa.array(rows[c], type=ARROW[dtype], from_pandas=True) for c, dtype in source.columns.items()], names=list(source.columns))


def _read(source: Source, name: str, content: bytes) -> Rows:
    kind = _kind(source, name)
    try:
        plain = contents.unpack(content, source.max_bytes)
        if not plain.strip():
            raise FileRefused(Reason("empty_file", 0, f"{name}: the file is empty; have it sent again"))
        content = plain
        parsed = parse(source, kind, content)
    except Unreadable as error:
        raise _refusal(source, name, kind, content, str(error), error.todo, error.rule) from error
    except (ValueError, pa.ArrowException, OSError, RecursionError) as error:
        raise _refusal(source, name, kind, content, said(error), "", "unreadable") from error
    if not parsed.rows:
        raise FileRefused(Reason("empty_file", 0, f"{name}: there are no rows in the file; have it sent again"))
    _check_columns(source, name, kind, content, parsed)
    columns, faults = {}, []
    for column, dtype in source.file_columns.items():
        found = convert(source, column, dtype, parsed.columns[column], kind)
        columns[column] = found.values
        faults += _faults(source, name, column, parsed, found)
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
        message = f"{name}: files of '{source.name}' end in one of {endings} (and .gz or .zst after it); name it by what is in it"
        raise FileRefused(Reason("unreadable", 0, message))
    return kind


def _refusal(source: Source, name: str, kind: str, content: bytes, why: str, todo: str, rule: str) -> FileRefused:
    # The lines of CSV but its header; of other formats, and of what is still compressed, nobody can tell.
    count = max(len(content.splitlines()) - 1, 0) if kind == "csv" and not contents.is_packed(content) else 0
    like, instead = contents.looks_like(source, content, kind) if rule == "unreadable" else ("", "")
    todo = instead or todo or "was it cut off on its way? Have it sent again"
    return FileRefused(Reason(rule, count, f"{name}: not readable as {kind} ({why}){'; ' if like else ''}{like}; {todo}"))


def _check_columns(source: Source, name: str, kind: str, content: bytes, parsed: Parsed) -> None:
    wanted, found = source.file_columns, parsed.names
    missing = [column for column in wanted if column not in found]
    extra = [column for position, column in enumerate(found) if column not in wanted or column in found[:position]]
    if missing:
        like, todo = contents.looks_like(source, content, kind)
        what = f"; {like}: {todo}" if like else f"; the file has {_some(found)}, and needs {', '.join(wanted)}"
        raise FileRefused(Reason("missing_column", parsed.rows, f"{name}: column {', '.join(map(shown, missing))} is missing ({parsed.rows} rows){what}"))
    if extra:
        message = f"{name}: column {_some(extra)} is not declared ({parsed.rows} rows); take it out, or declare it for source '{source.name}'"
        raise FileRefused(Reason("extra_column", parsed.rows, message))


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _faults(source: Source, name: str, column: str, parsed: Parsed, found: Typed) -> list[tuple[str, str, np.ndarray]]:
    faults, dtype = [], source.columns[column]
    if found.wrong.any():
        example = shown(parsed.value(column, int(np.flatnonzero(found.wrong)[0])))
        message = f"{name}: column '{column}' must be {dtype}; {int(found.wrong.sum())} values are not, e.g. {example}"
        faults.append(("wrong_type", f"{message}; {found.hint}" if found.hint else message, found.wrong))
    missing = ~found.present
    if missing.any() and column not in source.nullable:
        faults.append(("missing_value", f"{name}: column '{column}' has no value in {int(missing.sum())} rows; it is not nullable", missing))
    return faults


def _unknown_when(source: Source, name: str, columns: dict[str, pa.Array], faults: list[Any]) -> list[tuple[str, str, np.ndarray]]:
    """Rows without other faults for which the expression of known_at gives nothing."""
    if not source.known_at_expression:
        return []
    nothing = columns[KNOWN_AT].is_null().to_numpy(zero_copy_only=False)
    for _, _, mask in faults:
        nothing = nothing & ~mask
    if not nothing.any():
        return []
    message = f"{name}: known_at, which is {printable(source.known_at_expression)}, gives nothing for {int(nothing.sum())} rows"
    return [("missing_value", message, nothing)]
