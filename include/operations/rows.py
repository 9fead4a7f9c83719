"""Convert a database's rows to text that another kind of database can load.

For example, rows of SQLite can be loaded into Postgres, and vice versa. Each row is one JSON line.
Reading is one transaction that sees a single moment, even if other processes write concurrently.
Loading is one transaction too. At its end the rows are counted and hashed again: either all rows
are loaded unchanged, or none.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import (
    JSON,
    Connection,
    Engine,
    MetaData,
    Table,
    create_engine,
    delete,
    event,
    insert,
    make_url,
    null,
    select,
    text,
)

AT_ONCE = 1000
WRAP = 2**256


@dataclass(frozen=True)
class Content:
    """The content of a table: the number of rows and their hash.

    The hash does not depend on the order of rows, because databases sort text differently.
    """

    rows: int
    digest: str


class RowsError(ValueError):
    """Raised when rows cannot be read or do not fit.

    The message contains the database, the table and the reason.
    """


def engine(url: str) -> Engine:
    """Return an engine for reading and loading.

    A missing SQLite file is an error here, not an empty database.

    Raises:
        RowsError: The SQLite file does not exist.
    """
    place = make_url(url)
    if place.get_backend_name() == "sqlite":
        if not Path(place.database or "").exists():
            raise RowsError(f"there is no database {place.database}")
        made = create_engine(place.difference_update_query(["timeout"]), connect_args={"timeout": 60})
        # By default the driver begins no transaction for reading, so each SELECT could see another
        # state.
        event.listen(made, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(made, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        return made
    arguments = {"connect_timeout": 10, "application_name": "airloop-backup"}
    return create_engine(
        place.set(drivername="postgresql+psycopg2"), isolation_level="REPEATABLE READ", connect_args=arguments
    )


@contextmanager
def one_moment(url: str) -> Iterator[Connection]:
    """Provide a connection that sees the database's current state until it is closed."""
    with closing_engine(url) as made, made.connect() as connection:
        yield connection


@contextmanager
def closing_engine(url: str) -> Iterator[Engine]:
    made = engine(url)
    try:
        yield made
    finally:
        made.dispose()


def tables(connection: Connection, wanted: Callable[[str], bool]) -> list[Table]:
    """Return the wanted tables of a database. Referenced tables come first."""
    metadata = MetaData()
    metadata.reflect(connection, only=lambda name, _: wanted(name))
    return [table for table in metadata.sorted_tables if wanted(table.name)]


def contents(connection: Connection, of: Iterable[Table]) -> dict[str, Content]:
    """Return the content of tables. Tables without rows are omitted."""
    return {table.name: content for table in of if (content := _content(_lines(connection, table))).rows}


def save(connection: Connection, of: Iterable[Table], into: IO[bytes]) -> dict[str, Content]:
    """Write all rows. Return the written content per table."""
    saved = {}
    for table in of:
        count = total = 0
        for line in _lines(connection, table):
            if count == 0:
                into.write(json.dumps({"table": table.name, "columns": _columns(table)}).encode() + b"\n")
            into.write(line + b"\n")
            count, total = count + 1, (total + _hash(line)) % WRAP
        if count:
            saved[table.name] = Content(count, f"{total:064x}")
    return saved


def load(connection: Connection, into: list[Table], lines: Iterable[bytes], expected: dict[str, Content]) -> None:
    """Replace the content of tables within the connection's transaction, and verify it.

    Raises:
        RowsError: The rows do not fit these tables, or differ from the expected content.
    """
    known = {table.name: table for table in into}
    for table in reversed(into):
        connection.execute(delete(table))
    waiting: dict[str, list[dict[str, Any]]] = {table.name: [] for table in into}
    columns: list[str] = []
    table = None
    for line in lines:
        row = json.loads(line)
        if isinstance(row, dict):
            table, columns = known.get(row["table"]), row["columns"]
            if table is None or set(columns) - set(_columns(table)):
                raise RowsError(
                    f"table {row['table']} of the archive does not fit: here it is"
                    f" {_columns(table) if table is not None else 'not known'}"
                )
        elif table is not None:
            waiting[table.name].append(
                {name: _decoded(value, table.c[name].type) for name, value in zip(columns, row, strict=True)}
            )
    # Insert in the order of references. Another kind of database may have saved the tables in
    # another order.
    for table in into:
        rows = waiting[table.name]
        for begin in range(0, len(rows), AT_ONCE):
            connection.execute(insert(table), rows[begin : begin + AT_ONCE])
        _set_sequences(connection, table)
    actual = contents(connection, into)
    if wrong := sorted(name for name in actual.keys() | expected.keys() if actual.get(name) != expected.get(name)):
        raise RowsError(f"after loading, {', '.join(wrong)} did not hold what the archive says: nothing was kept")


def _columns(table: Table) -> list[str]:
    # The order of columns differs if a table was ever copied to be altered.
    return sorted(column.name for column in table.columns)


def _lines(connection: Connection, table: Table) -> Iterator[bytes]:
    query = select(*(table.c[name] for name in _columns(table))).order_by(*table.primary_key.columns)
    kinds = [table.c[name].type for name in _columns(table)]
    with connection.execute(query.execution_options(yield_per=AT_ONCE)) as result:
        for row in result:
            encoded = [_encoded(value, kind) for value, kind in zip(row, kinds, strict=True)]
            yield json.dumps(encoded, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _content(lines: Iterable[bytes]) -> Content:
    count = total = 0
    for line in lines:
        count, total = count + 1, (total + _hash(line)) % WRAP
    return Content(count, f"{total:064x}")


def _hash(line: bytes) -> int:
    return int.from_bytes(hashlib.sha256(line).digest())


def _encoded(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, JSON):
        return {"json": value}
    match value:
        case bool() | int() | float() | str():
            return value
        case bytes() | memoryview() | bytearray():
            return {"bytes": base64.b64encode(bytes(value)).decode()}
        case datetime() | date():
            return {"time": value.isoformat()}
    raise RowsError(f"a {type(value).__name__} cannot be written down")


def _decoded(value: Any, kind: Any) -> Any:
    if value is None:
        return null() if isinstance(kind, JSON) else None
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "bytes":
        return base64.b64decode(content)
    if tag == "time":
        return datetime.fromisoformat(content) if "T" in content else date.fromisoformat(content)
    return content


def _set_sequences(connection: Connection, table: Table) -> None:
    """Set Postgres's sequences, which would otherwise assign ids from 1 again."""
    if connection.dialect.name != "postgresql":
        return
    for column in table.primary_key.columns:
        named = {"table": f'"{table.name}"', "column": column.name}
        if sequence := connection.execute(text("SELECT pg_get_serial_sequence(:table, :column)"), named).scalar():
            connection.execute(
                text(f'SELECT setval(:sequence, (SELECT COALESCE(MAX("{column.name}"), 1) FROM "{table.name}"))'),
                {"sequence": sequence},
            )
