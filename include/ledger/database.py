"""The way into the ledger's database, SQLite or Postgres: connections, transactions, and its tables brought up to this code's version.

The first connection of a process looks at the version that the database has. Where it is behind, the migrations run in one transaction, under a lock
that the database itself keeps: however many processes start together, one migrates and the others wait and find it done. Killed in the middle, nothing
has happened.
"""

import json
import math
import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, insert, inspect, make_url, text, update
from sqlalchemy.exc import IntegrityError, ProgrammingError

from include.settings import get_settings

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "ledger_version"  # not alembic_version: whoever puts two products into one database still has two
HEAD = max(file.stem.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))
LOCK = 0x6C6564676572  # the key of Postgres's advisory lock: "ledger"

_engines: dict[str, Engine] = {}
_opening = threading.Lock()


class LedgerError(RuntimeError):
    """The ledger cannot be used by this code; the message says why and what to do."""


@contextmanager
def transaction():
    """One transaction of the ledger that the settings name; its tables are there and of this code's version."""
    with _engine(get_settings().ledger).begin() as connection:
        yield connection


def migrate(url: str | None = None, *, to: str = HEAD) -> str:
    """Bring the ledger's tables up to this code; gives the version that they had before ("" if there were none). Doing it again changes nothing.

    Args:
        url: of its database; None: that of the settings.
        to: an older version, to load a backup's rows into.

    Raises:
        LedgerError: they are of newer code, or this user may not change them.
    """
    engine = connect(url or get_settings().ledger)
    try:
        with engine.begin() as connection:
            before = version_of(connection)
            if before == to:
                return before
            if engine.dialect.name == "postgresql":  # SQLite's transaction is exclusive already
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
                before = version_of(connection)
            if before > HEAD:
                raise LedgerError(f"the ledger is at version {before}, this code knows {HEAD}: it was made by a newer Airloop. Use that, or restore a backup")
            if before < to:
                _upgrade(connection, to)
            return before
    except ProgrammingError as error:
        if "permission denied" not in str(error).lower():
            raise
        whom = f"user '{engine.url.username}' of database '{engine.url.database}'"
        raise LedgerError(f"the ledger's tables must be made or changed, and {whom} may not: let its owner run `airloop migrate`") from error
    finally:
        engine.dispose()


def version_of(connection: Connection) -> str:
    """The version of the ledger's tables; "" where there are none, or such as were made before they had one."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return ""
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar() or ""


def connect(url: str) -> Engine:
    """An engine for the ledger's database, which touches nothing by itself."""
    place = make_url(url)
    if place.drivername == "postgresql":
        place = place.set(drivername="postgresql+psycopg2")
    if place.get_backend_name() == "sqlite":
        Path(place.database or "").parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(place, json_serializer=to_json)
        # SQLite begins a transaction as a reader and refuses, at once, to make two of them writers: so each begins as a writer, and waits.
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine
    # A server that was away and is back has forgotten its connections: each is tried before it is used.
    arguments = {"connect_timeout": 10, "application_name": "airloop-ledger"}
    return create_engine(place, json_serializer=to_json, pool_pre_ping=True, pool_size=2, connect_args=arguments)


def upsert(table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Write one row, replacing it if it is there: two tries, since another process may insert in between."""
    where = [table.c[name] == value for name, value in key.items()]
    for _ in range(2):
        try:
            with transaction() as connection:
                if connection.execute(update(table).where(*where).values(**values)).rowcount == 0:
                    connection.execute(insert(table).values(**key, **values))
            return
        except IntegrityError:
            continue
    raise RuntimeError(f"could not write {key} to {table.name}")


def to_json(value: Any) -> str:
    """JSON as every database takes it: a figure that is no number is none. (SQLite would keep a NaN, Postgres refuses it.)"""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {name: _finite(one) for name, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
    return value


def _engine(url: str) -> Engine:
    with _opening:
        if url not in _engines:
            migrate(url)
            _engines[url] = connect(url)
        return _engines[url]


def _upgrade(connection: Connection, to: str) -> None:
    from alembic import command  # here: only who finds the tables behind pays for it
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def _prepare_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself
    connection.execute("PRAGMA busy_timeout = 30000")


def _forget_in_child() -> None:
    """A forked child must not speak on its parent's connections: it opens its own, and leaves those alone."""
    for engine in _engines.values():
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_in_child)
