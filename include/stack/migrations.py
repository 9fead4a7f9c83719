"""Every store's tables brought up to this code: `airloop migrate`. However many start it together, each migration runs once.

What a database has is compared with what the installed code knows without importing that code (Airflow alone takes ten seconds): each product's last
migration is found in its folder of migrations, and the database says in its version table how far it is. Where it is behind, one process migrates under a
lock that the database keeps, the others wait and find it done. A process that is killed gives the lock back with its connection; what it left half-done its
successor does again.
"""

import fcntl
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from include.settings import REPOSITORY, Settings
from include.stack import mlflow_users, users
from include.stack.environment import airflow_environment

LOCK = 0x616972_6C6F6F70  # the key of Postgres's advisory lock: "airloop"
AS_SET = "as the settings say"  # what accounts are, whose passwords follow their secrets
OURS = "airloop_schema"  # the version table of what has none of its own


class MigrationError(Exception):
    """A store's tables cannot be made or brought up; the message names the store and what to do. It holds no password."""


@dataclass(frozen=True)
class Migration:
    """One product's tables in one database.

    Attributes:
        name: as people know it.
        setting: the variable that names the database.
        url: of the database.
        found: what the database has, None for nothing; given an engine.
        wanted: what the installed code needs.
        run: makes or upgrades the tables.
    """

    name: str
    setting: str
    url: str
    found: Callable[[Engine], str | None]
    wanted: str
    run: Callable[[], None]


def migrate(settings: Settings, say: Callable[[str], None] = lambda line: None, which: Callable[[Settings], list["Migration"]] | None = None) -> list[str]:
    """Bring every store up; gives the names of the migrations that this very process ran, none if there was nothing to do.

    Args:
        which: gives the migrations; default: all of them.

    Raises:
        MigrationError: a database is away, or a migration failed; nothing that was done before is undone, and it can be run again.
    """
    ran = []
    for migration in (which or migrations)(settings):
        if _is_done(migration):
            say(f"{migration.name}: at {migration.wanted}")
            continue
        with _only_one(migration, settings):
            if _is_done(migration):
                say(f"{migration.name}: at {migration.wanted}, by another process")
                continue
            say(f"{migration.name}: to {migration.wanted} ...")
            migration.run()
            if not _is_done(migration):
                raise MigrationError(f"{migration.name}: its migration ended well, and its tables are still not at {migration.wanted}")
            ran.append(migration.name)
            say(f"{migration.name}: at {migration.wanted}, done")
    return ran


def pending(settings: Settings) -> list[str]:
    """The names of what is behind; cheap.

    Raises:
        MigrationError: a database is away.
    """
    return [migration.name for migration in migrations(settings) if not _is_done(migration)]


def migrations(settings: Settings) -> list[Migration]:
    """What there is to migrate, as the settings have it and as far as it is installed here."""
    from include.ledger.database import HEAD

    found = [Migration("ledger", "AIRLOOP_LEDGER_URL", settings.ledger, _from_table("ledger_version"), HEAD, partial(_ledger, settings.ledger))]
    if _installed("airflow"):
        of_airflow = ("AIRLOOP_AIRFLOW_DATABASE_URL", settings.airflow_database)
        run = partial(_airflow, settings)  # brings up both
        found.append(Migration("airflow", *of_airflow, _from_table("alembic_version"), _head("airflow", "migrations/versions"), run))
        if settings.users == "fab":
            head = _head("airflow", "providers/fab/migrations/versions")
            found.append(Migration("airflow's users", *of_airflow, _from_table("alembic_version_fab"), head, run))
            if settings.airflow_admin_password is not None:  # else this process may make tables, and somebody else makes the account
                found.append(Migration("airflow's admin", *of_airflow, _if(users.in_order, settings), AS_SET, partial(_users, settings)))
        if settings.profile != "embedded":  # there `airloop up` makes them, once Airflow answers
            found.append(Migration("airflow's pools", *of_airflow, _if(_has_pools, settings), AS_SET, partial(_pools, settings)))
    found += of_mlflow(settings)
    for name, package, setting, place, make in (
        ("feast", "feast", "AIRLOOP_FEAST_REGISTRY_URL", settings.feast_registry, _feast),
        ("studies", "optuna", "AIRLOOP_STUDIES_URL", settings.studies, _studies),
    ):
        if _installed(package):
            wanted = f"{package} {version(package)}"
            found.append(Migration(name, setting, place, _from_ours(name), wanted, partial(make, place, wanted)))
    return found


def of_mlflow(settings: Settings) -> list[Migration]:
    """MLflow's own: also where nothing but its server is (``include.stack.component``)."""
    if not _installed("mlflow") or not (settings.mlflow_uri is None or settings.mlflow_database_url is not None):  # else its server is somebody else's
        return []
    url, head = settings.mlflow_database, _head("mlflow", "store/db_migrations/versions")
    found = [Migration("mlflow", "AIRLOOP_MLFLOW_DATABASE_URL", url, _from_table("alembic_version"), head, partial(_mlflow, url))]
    if accounts := mlflow_users.users(settings):
        theirs, bring_up = _if(mlflow_users.in_order, accounts), partial(mlflow_users.make, url, accounts)
        found.append(Migration("mlflow's users", "AIRLOOP_MLFLOW_DATABASE_URL", url, theirs, AS_SET, bring_up))
    return found


# --- what a database has, and what the code needs -------------------------------------------------------------------------------------


def _is_done(migration: Migration) -> bool:
    try:
        with _engine(migration.url) as engine:
            return migration.found(engine) == migration.wanted
    except OperationalError as error:
        raise MigrationError(f"{_where(migration)} does not answer: {_first_line(error)}") from None


def _from_table(table: str) -> Callable[[Engine], str | None]:
    def found(engine: Engine) -> str | None:
        if not inspect(engine).has_table(table):
            return None
        with engine.connect() as connection:
            return connection.execute(text(f"SELECT version_num FROM {table}")).scalar()

    return found


def _from_ours(component: str) -> Callable[[Engine], str | None]:
    def found(engine: Engine) -> str | None:
        if not inspect(engine).has_table(OURS):
            return None
        with engine.connect() as connection:
            return connection.execute(text(f"SELECT version FROM {OURS} WHERE component = :component"), {"component": component}).scalar()

    return found


def _if(in_order: Callable[[Engine, Any], bool], what: Any) -> Callable[[Engine], str | None]:
    return lambda engine: AS_SET if in_order(engine, what) else None


def _head(package: str, folder: str) -> str:
    """The last one of a package's migrations: the one that no other one comes after. Read as text, since importing them imports the whole product."""
    spec = find_spec(package)
    assert spec and spec.submodule_search_locations, package
    scripts = [file.read_text() for file in (Path(spec.submodule_search_locations[0]) / folder).glob("*.py")]
    assigned = {name: [m[1] for s in scripts for m in re.finditer(rf"^{name}(?:: [^=]+)? = (.*)$", s, re.MULTILINE)] for name in ("revision", "down_revision")}
    known, followed = ({r for line in lines for r in re.findall(r"[\"'](\w+)[\"']", line)} for lines in assigned.values())
    heads = known - followed
    if len(heads) != 1:
        raise MigrationError(f"{package}/{folder} has not one last migration but {sorted(heads)}")
    return heads.pop()


def _installed(package: str) -> bool:
    return find_spec(package) is not None


# --- one at a time -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _engine(url_of: str) -> Iterator[Engine]:
    url = make_url(url_of)
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url)
    else:
        engine = create_engine(url.set(drivername="postgresql+psycopg2"), connect_args={"connect_timeout": 10, "application_name": "airloop-migrate"})
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _only_one(migration: Migration, settings: Settings) -> Iterator[None]:
    """Whoever else migrates this database waits; the lock goes with this process, however that ends."""
    with _engine(migration.url) as engine:
        if engine.dialect.name == "sqlite":
            name = hashlib.sha256(migration.url.encode()).hexdigest()[:12]
            with (settings.home / f".migrate-{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            return
        with closing(engine.raw_connection()) as connection:
            connection.driver_connection.autocommit = True  # an open transaction would make the migrations' own locks wait
            connection.cursor().execute("SELECT pg_advisory_lock(%s)", [LOCK])
            yield
            connection.cursor().execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def _where(migration: Migration) -> str:
    url = make_url(migration.url)
    return f"{migration.setting}: database '{url.database}'" + (f" on {url.host}:{url.port or 5432}, as user {url.username}," if url.host else "")


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


# --- the migrations themselves ------------------------------------------------------------------------------------------------------


def _airflow(settings: Settings) -> None:
    _by_airflow(settings, "db", "migrate")


def _by_airflow(settings: Settings, *arguments: str) -> None:
    command = [sys.executable, "-m", "airflow", *arguments]
    done = subprocess.run(command, env=airflow_environment(settings), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise MigrationError(f"airflow: `airflow {' '.join(arguments[:2])}` ended with {done.returncode}:\n{said}")


def _users(settings: Settings) -> None:
    try:
        users.sync(settings)
    except users.UsersError as error:
        raise MigrationError(f"airflow's admin: {error}") from None


def _has_pools(engine: Engine, settings: Settings) -> bool:
    from include.stack import pools

    return not pools.missing(engine, settings)


def _pools(settings: Settings) -> None:
    """Those that are missing: a step whose pool is not there waits for ever. Whoever resized one meant it."""
    from include.stack import pools  # they know the projects, which MLflow's server, that migrates itself by this module, does not have

    with _engine(settings.airflow_database) as engine:
        missing = pools.missing(engine, settings)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pools.json"
        file.write_text(pools.for_import(missing))
        _by_airflow(settings, "pools", "import", str(file))


def _mlflow(url: str) -> None:
    from mlflow.store.db import utils
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401  its models must be known, or nothing seems to be missing

    engine = utils.create_sqlalchemy_engine_with_retry(url)
    try:
        if utils._is_empty_database(engine):
            utils._initialize_tables(engine)
        else:
            utils._upgrade_db(engine)
    finally:
        engine.dispose()


def _feast(url: str, wanted: str) -> None:
    from feast.infra.registry.sql import metadata

    _set_ours(url, "feast", wanted, metadata.create_all)


def _studies(url: str, wanted: str) -> None:
    from include.training import search

    search.storage(url)
    _set_ours(url, "studies", wanted)


def _set_ours(url: str, component: str, wanted: str, make: Callable[[Engine], None] = lambda engine: None) -> None:
    with _engine(url) as engine:
        make(engine)
        with engine.begin() as connection:
            connection.execute(text(f"CREATE TABLE IF NOT EXISTS {OURS} (component VARCHAR(40) PRIMARY KEY, version VARCHAR(80) NOT NULL)"))
            connection.execute(text(f"DELETE FROM {OURS} WHERE component = :component"), {"component": component})
            connection.execute(text(f"INSERT INTO {OURS} VALUES (:component, :version)"), {"component": component, "version": wanted})


def _ledger(url: str) -> None:
    from include.ledger import LedgerError, migrate

    try:
        migrate(url)
    except (LedgerError, ProgrammingError) as error:
        raise MigrationError(f"ledger: {_first_line(error)}") from None
