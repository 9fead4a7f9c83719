"""Delta Lake tables: appended exactly once, versioned, readable as of a cutoff."""

from collections.abc import Iterable
from datetime import datetime

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from include.data import layout, storage
from include.projects.base import DType, Project, Source

ARROW: dict[DType, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),  # DuckDB cannot materialize nanoseconds through Feast
}


ATTEMPTS = 5


def arrow_schema(columns: dict[str, DType]) -> pa.Schema:
    return pa.schema([(name, ARROW[dtype]) for name, dtype in columns.items()])


def open_table(uri: str) -> DeltaTable | None:
    """The table, or None if nothing was ever written there."""
    try:
        return DeltaTable(uri, storage_options=storage.delta_options(uri))
    except TableNotFoundError:
        return None


def table_version(uri: str) -> int | None:
    found = open_table(uri)
    return None if found is None else found.version()


def append(uri: str, rows: pa.Table, *, writer: str, sequence: int) -> int:
    """Append rows once: a second call with the same writer and a sequence not above its last one changes nothing.

    The pair is stored in the commit itself (Delta's application transactions), so a process that is killed after
    the commit and run again does not double the rows.

    Args:
        uri: the table; made with the rows' schema if missing.
        rows: what to append.
        writer: who appends, e.g. ``ingest/<sha256>`` or ``build_features``.
        sequence: rises with every append of that writer.

    Returns:
        The table's version that holds the rows (the current one if they were there already).
    """
    for attempt in range(ATTEMPTS):
        existing = open_table(uri)
        if existing is not None:
            done = existing.transaction_version(writer)
            if done is not None and done >= sequence:
                return existing.version()
        try:
            once = CommitProperties(app_transactions=[Transaction(app_id=writer, version=sequence)])
            write_deltalake(uri, rows, mode="append", commit_properties=once, storage_options=storage.delta_options(uri))
            break
        except CommitFailedError:  # two made the table at once: the quarantine has a writer per source
            if attempt == ATTEMPTS - 1:
                raise
    return DeltaTable(uri, storage_options=storage.delta_options(uri)).version()


def last_sequence(uri: str, writer: str) -> int | None:
    """The last sequence that a writer appended: its watermark."""
    existing = open_table(uri)
    return None if existing is None else existing.transaction_version(writer)


def read(
    project: Project,
    name: str,
    *,
    known_by: datetime,
    since: datetime | None = None,
    columns: Iterable[str] | None = None,
    version: int | None = None,
) -> pd.DataFrame:
    """Rows of a source's table that were known by a time: known_at in (since, known_by].

    Args:
        project: whose table.
        name: the source.
        known_by: the run's cutoff; nothing known later is returned.
        since: leave out what was known by then already.
        columns: only these.
        version: the table as it was at that version, instead of now.

    Returns:
        A frame with the source's dtypes (timestamps in UTC, microseconds); empty if nothing was ingested yet.
    """
    source: Source = project.source(name)
    wanted = list(columns or source.columns)
    found = open_table(layout.table(project, name))
    if found is None:
        return arrow_schema({c: source.columns[c] for c in wanted}).empty_table().to_pandas()
    if version is not None:
        found.load_as_version(version)
    condition = ds.field(source.known_at) <= pa.scalar(known_by, ARROW["timestamp"])
    if since is not None:
        condition &= ds.field(source.known_at) > pa.scalar(since, ARROW["timestamp"])
    return found.to_pyarrow_dataset().to_table(columns=wanted, filter=condition).to_pandas()
