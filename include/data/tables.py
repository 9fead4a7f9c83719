"""Delta Lake tables: appended exactly once, versioned, readable as of a cutoff."""

from collections.abc import Iterable
from datetime import UTC, datetime

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from include.data import layout, storage
from include.projects.base import DType, Project, Source

ARROW: dict[DType, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    # DuckDB cannot materialize nanoseconds through Feast.
    "timestamp": pa.timestamp("us", tz="UTC"),
}


ATTEMPTS = 5


def arrow_schema(columns: dict[str, DType]) -> pa.Schema:
    return pa.schema([(name, ARROW[dtype]) for name, dtype in columns.items()])


def to_pandas(rows: pa.Table, nullable: Iterable[str] | None = None) -> pd.DataFrame:
    """Return rows as a frame with exact values.

    By default, pandas converts integers to floats in columns with missing values, which changes
    those beyond 2**53.

    Args:
        nullable: columns whose int64 and bool become pandas' nullable Int64 and boolean, whether a
            value is missing or not. None: all columns. Other columns must not have missing values.
    """
    columns = set(rows.column_names if nullable is None else nullable)
    types = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frames = {
        name: rows[name].to_pandas(types_mapper=types.get) if name in columns else rows[name].to_pandas()
        for name in rows.column_names
    }
    return pd.DataFrame(frames, index=pd.RangeIndex(len(rows)))


def open_table(uri: str) -> DeltaTable | None:
    """Return the table, or None if nothing was ever written there."""
    try:
        return DeltaTable(uri, storage_options=storage.delta_options(uri))
    except TableNotFoundError:
        return None


def table_version(uri: str) -> int | None:
    table = open_table(uri)
    return None if table is None else table.version()


def append(uri: str, rows: pa.Table, *, writer: str, sequence: int) -> int:
    """Append rows once: repeating a call with the same writer and sequence changes nothing.

    A sequence not above the writer's last one counts as repeated. The pair is stored in the commit
    itself (Delta's application transactions). So a process that is killed after the commit and run
    again does not duplicate the rows.

    Args:
        uri: the table. It is created with the rows' schema if missing.
        rows: the rows to append.
        writer: the name of the writer, e.g. ``ingest/<sha256>`` or ``build_features``.
        sequence: rises with every append of that writer.

    Returns:
        The table's version that contains the rows (the current one if they existed already).
    """
    for attempt in range(ATTEMPTS):
        existing = open_table(uri)
        if existing is not None:
            done = existing.transaction_version(writer)
            if done is not None and done >= sequence:
                return existing.version()
        try:
            once = CommitProperties(app_transactions=[Transaction(app_id=writer, version=sequence)])
            write_deltalake(
                uri, rows, mode="append", commit_properties=once, storage_options=storage.delta_options(uri)
            )
            break
        # Two writers created the table concurrently: the quarantine has a writer per source.
        except CommitFailedError:
            if attempt == ATTEMPTS - 1:
                raise
    return DeltaTable(uri, storage_options=storage.delta_options(uri)).version()


def replace(uri: str, rows: pa.Table, *, key: tuple[str, ...], writer: str, sequence: int) -> int:
    """Replace rows with the same key, or add them, once; arguments and result as of ``append``.

    Earlier versions of the table keep the earlier rows.
    """
    existing = open_table(uri)
    if existing is None:
        return append(uri, rows, writer=writer, sequence=sequence)
    done = existing.transaction_version(writer)
    if done is not None and done >= sequence:
        return existing.version()
    once = CommitProperties(app_transactions=[Transaction(app_id=writer, version=sequence)])
    predicate = " AND ".join(f"t.{column} = s.{column}" for column in key)
    merge = existing.merge(rows, predicate, source_alias="s", target_alias="t", commit_properties=once)
    merge.when_matched_update_all().when_not_matched_insert_all().execute()
    return existing.version()


def file_ranges(table: DeltaTable, column: str) -> list[tuple[int, datetime, datetime]]:
    """Return (rows, lowest, highest time) of each file of a table, from the statistics in its log.

    Files without a value are left out.
    """
    actions = pa.table(table.get_add_actions(flatten=True))
    low, high = f"min.{column}", f"max.{column}"
    # The column is too far to the right: Delta keeps statistics of the first 32 columns.
    if low not in actions.column_names or high not in actions.column_names:
        times = table.to_pyarrow_dataset().to_table(columns=[column])[column]
        ends = pa.compute.min_max(times).as_py()
        return [(len(times), ends["min"], ends["max"])] if ends["min"] is not None else []
    rows = zip(
        *(
            actions[name].cast(pa.int64() if name == "num_records" else ARROW["timestamp"]).to_pylist()
            for name in ("num_records", low, high)
        ),
        strict=True,
    )
    return [(count or 0, first, last) for count, first, last in rows if first is not None and last is not None]


def last_sequence(uri: str, writer: str) -> int | None:
    """Return the last sequence that a writer appended: its watermark.

    Return None if there is none.
    """
    existing = open_table(uri)
    return None if existing is None else existing.transaction_version(writer)


def sequence_by(uri: str, writer: str, until: int) -> int:
    """Return the newest sequence of a writer that is not above ``until``, in any table version.

    Return 0 if there is none, or if the older versions were removed.
    """
    existing = open_table(uri)
    if existing is None:
        return 0
    for version in range(existing.version(), -1, -1):
        try:
            existing.load_as_version(version)
        except (DeltaError, OSError):  # its log was cleaned up
            return 0
        done = existing.transaction_version(writer)
        if done is None or done <= until:
            return done or 0
    return 0


def rewind(uri: str, *, writer: str, sequence: int, column: str, after: datetime) -> tuple[int, int | None]:
    """Delete rows and reset a writer's watermark. Earlier versions of the table keep the rows.

    Args:
        sequence: the last sequence that counts as appended from now on.
        column: a column of times. Rows whose time is later than ``after`` are deleted.

    Returns:
        How many rows were deleted, and the table's version before, or None if the table does not
            exist.
    """
    existing = open_table(uri)
    if existing is None:
        return 0, None
    before = existing.version()
    mark = CommitProperties(app_transactions=[Transaction(app_id=writer, version=sequence)])
    predicate = (
        f"{column} > arrow_cast('{after.astimezone(UTC):%Y-%m-%dT%H:%M:%S}', 'Timestamp(Microsecond, Some(\"UTC\"))')"
    )
    deleted = int(existing.delete(predicate, commit_properties=mark).get("num_deleted_rows") or 0)
    if last_sequence(uri, writer) != sequence:  # a delete of no rows does not create a version
        empty = existing.to_pyarrow_dataset().schema.empty_table()
        write_deltalake(uri, empty, mode="append", commit_properties=mark, storage_options=storage.delta_options(uri))
    return deleted, before


def known_after(source: Source, time: datetime) -> ds.Expression:
    """Return a filter for rows of a source's table that became known after a time."""
    return ds.field(source.known_at) > pa.scalar(time, ARROW["timestamp"])


def read(
    project: Project,
    name: str,
    *,
    known_by: datetime,
    since: datetime | None = None,
    columns: Iterable[str] | None = None,
    version: int | None = None,
    root: str | None = None,
) -> pd.DataFrame:
    """Return rows of a source's table that were known by a time: known_at in (since, known_by].

    Args:
        project: the project that owns the table.
        name: the source.
        known_by: the run's cutoff. Rows known later are not returned.
        since: exclude rows that were known by then.
        columns: return only these.
        version: read that version of the table instead of the current one.
        root: folder of the project's data. None: the one in the store.

    Returns:
        A frame with the source's dtypes (timestamps in UTC, microseconds; nullable int64 and bool
            as pandas' Int64 and boolean). It is empty if nothing was ingested yet.
    """
    source: Source = project.source(name)
    names = list(columns or source.columns)
    table = open_table(f"{root}/tables/{name}" if root else layout.table(project, name))
    if table is None:
        return to_pandas(arrow_schema({c: source.columns[c] for c in names}).empty_table(), source.nullable)
    if version is not None:
        table.load_as_version(version)
    condition = ds.field(source.known_at) <= pa.scalar(known_by, ARROW["timestamp"])
    if since is not None:
        condition &= ds.field(source.known_at) > pa.scalar(since, ARROW["timestamp"])
    return to_pandas(table.to_pyarrow_dataset().to_table(columns=names, filter=condition), source.nullable)
