"""Access to the ledger's database (SQLite or Postgres): connections, transactions, migrations.

The first connection of a process checks the version of the tables. If they are older than this
code, the migrations run in one transaction, under a lock of the database itself. If several
processes start concurrently, one migrates while the others wait. After a kill in the middle,
nothing has changed.
"""

import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, insert, inspect, make_url, text, update
from sqlalchemy.exc import IntegrityError, ProgrammingError

from include.settings import get_settings

MIGRATIONS = Path(__file__).parent / "migrations"
# Not Alembic's default name, so that another product can share the database.
VERSION_TABLE = "ledger_version"
HEAD = max(file.stem.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))
# The key of Postgres's advisory lock: "ledger".
LOCK = 0x6C6564676572

_engines: dict[str, Engine] = {}
_opening = threading.Lock()


class LedgerError(RuntimeError):
    """Raised when this code cannot use the ledger. The message states the reason and the fix."""


@contextmanager
def transaction() -> Iterator[Connection]:
    """Begin a transaction of the configured ledger, after migrating its tables if needed."""
    with _engine(get_settings().ledger).begin() as connection:
        yield connection


def migrate(url: str | None = None, *, to: str = HEAD) -> str:
    """Migrate the ledger's tables to this code's version. Return the version that they had before.

    The result is "" if there were no tables. Repeating it changes nothing.

    Args:
        url: the database. None: the one of the settings.
        to: an older version, to load a backup's rows into.

    Raises:
        LedgerError: the tables are of newer code, or this user may not change them.
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
                raise LedgerError(
                    f"the ledger is at version {before}, this code knows {HEAD}: it was made by a newer Airloop. Use"
                    " that, or restore a backup"
                )
            if before < to:
                _upgrade(connection, to)
            return before
    except ProgrammingError as error:
        if "permission denied" not in str(error).lower():
            raise
        whom = f"user '{engine.url.username}' of database '{engine.url.database}'"
        raise LedgerError(
            f"the ledger's tables must be made or changed, and {whom} may not: let its owner run `airloop migrate`"
        ) from error
    finally:
        engine.dispose()


def version_of(connection: Connection) -> str:
    """Return the version of the ledger's tables.

    Return "" if there are none, or if they were created before versions existed.
    """
    if not inspect(connection).has_table(VERSION_TABLE):
        return ""
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar() or ""


def connect(url: str) -> Engine:
    """Return an engine for the ledger's database. It does not connect until it is used."""
    place = make_url(url)
    if place.drivername == "postgresql":
        place = place.set(drivername="postgresql+psycopg2")
    if place.get_backend_name() == "sqlite":
        Path(place.database or "").parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(place, json_serializer=to_json)
        # By default, an SQLite transaction begins as a reader. If two of them become writers,
        # SQLite refuses one of them immediately. So each begins as a writer, and waits for the
        # other.
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine
    # After a server restart, pooled connections are stale, so each is tested before use.
    arguments = {"connect_timeout": 10, "application_name": "airloop-ledger"}
    return create_engine(place, json_serializer=to_json, pool_pre_ping=True, pool_size=2, connect_args=arguments)


def upsert(table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Insert one row, or update it if it exists.

    It tries twice, because another process may insert the row in between.
    """
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
    """Return JSON that every database accepts: non-finite numbers become null.

    SQLite would store a NaN, but Postgres refuses it.
    """
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
    # Import Alembic only if a migration is needed, because it is slow to load.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Stop the driver from beginning transactions itself.
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 30000")


def _forget_in_child() -> None:
    """Drop the parent's connections in a forked child, without closing them.

    The child opens its own.
    """
    for engine in _engines.values():
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_in_child)
