"""Migrate the tables of every store to this version of the code: `airloop migrate`.

If several processes start it concurrently, each migration still runs once.

The version of a database is compared with the version that the installed code needs, without
importing that code (importing Airflow alone takes ten seconds). Each product's last migration is
found in its folder of migrations. The version table of the database contains the current one. If
the database is outdated, one process migrates under a lock in the database. The others wait and
find it done. A killed process releases the lock with its connection. The next process repeats its
unfinished work.
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
from include.stack.accounts import mlflow_users, users
from include.stack.environment import airflow_environment

# The key of Postgres's advisory lock: "airloop".
LOCK = 0x616972_6C6F6F70
# The version of accounts whose passwords follow the settings.
AS_SET = "as the settings say"
# The version table of products without their own.
OURS = "airloop_schema"


class MigrationError(Exception):
    """Raised when a store's tables cannot be created or migrated.

    The message names the store and the fix. It contains no password.
    """


@dataclass(frozen=True)
class Migration:
    """One product's tables in one database.

    Attributes:
        name: Name shown to users.
        setting: The variable that names the database.
        url: URL of the database.
        read_version: Returns the version of the tables in an engine's database, or None if they are
            missing.
        wanted: The version that the installed code needs.
        run: Creates or upgrades the tables.
    """

    name: str
    setting: str
    url: str
    read_version: Callable[[Engine], str | None]
    wanted: str
    run: Callable[[], None]


def migrate(
    settings: Settings,
    say: Callable[[str], None] = lambda line: None,
    which: Callable[[Settings], list["Migration"]] | None = None,
) -> list[str]:
    """Migrate every store. Return the names of the migrations that this process ran.

    The list is empty if nothing had to be migrated.

    Args:
        which: Returns the migrations. Default: all of them.

    Raises:
        MigrationError: A database is unavailable, or a migration failed. Completed migrations stay,
            and the command can be run again.
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
                raise MigrationError(
                    f"{migration.name}: its migration ended well, and its tables are still not at {migration.wanted}"
                )
            ran.append(migration.name)
            say(f"{migration.name}: at {migration.wanted}, done")
    return ran


def pending(settings: Settings) -> list[str]:
    """Return the names of outdated stores. This is fast.

    Raises:
        MigrationError: A database is unavailable.
    """
    return [migration.name for migration in migrations(settings) if not _is_done(migration)]


def migrations(settings: Settings) -> list[Migration]:
    """Return the migrations for these settings, as far as the products are installed here."""
    from include.ledger.database import HEAD

    listed = [
        Migration(
            "ledger",
            "AIRLOOP_LEDGER_URL",
            settings.ledger,
            _from_table("ledger_version"),
            HEAD,
            partial(_ledger, settings.ledger),
        )
    ]
    if _installed("airflow"):
        of_airflow = ("AIRLOOP_AIRFLOW_DATABASE_URL", settings.airflow_database)
        # This command migrates both.
        run = partial(_airflow, settings)
        listed.append(
            Migration(
                "airflow", *of_airflow, _from_table("alembic_version"), _head("airflow", "migrations/versions"), run
            )
        )
        if settings.users == "fab":
            head = _head("airflow", "providers/fab/migrations/versions")
            listed.append(Migration("airflow's users", *of_airflow, _from_table("alembic_version_fab"), head, run))
            # Otherwise this process may create tables, and another process creates the account.
            if settings.airflow_admin_password is not None:
                listed.append(
                    Migration(
                        "airflow's admin", *of_airflow, _if(users.in_order, settings), AS_SET, partial(_users, settings)
                    )
                )
        # In the embedded profile, `airloop up` creates them after Airflow answers.
        if settings.profile != "embedded":
            listed.append(
                Migration("airflow's pools", *of_airflow, _if(_has_pools, settings), AS_SET, partial(_pools, settings))
            )
    listed += of_mlflow(settings)
    for name, package, setting, place, make in (
        ("feast", "feast", "AIRLOOP_FEAST_REGISTRY_URL", settings.feast_registry, _feast),
        ("studies", "optuna", "AIRLOOP_OPTUNA_URL", settings.studies, _studies),
    ):
        if _installed(package):
            wanted = f"{package} {version(package)}"
            listed.append(Migration(name, setting, place, _from_ours(name), wanted, partial(make, place, wanted)))
    return listed


def of_mlflow(settings: Settings) -> list[Migration]:
    """Return MLflow's migrations.

    They also work where only MLflow's server is installed (``include.stack.component``).
    """
    # Otherwise the server belongs to another installation.
    if not _installed("mlflow") or not (settings.mlflow_uri is None or settings.mlflow_database_url is not None):
        return []
    url, head = settings.mlflow_database, _head("mlflow", "store/db_migrations/versions")
    listed = [
        Migration(
            "mlflow", "AIRLOOP_MLFLOW_DATABASE_URL", url, _from_table("alembic_version"), head, partial(_mlflow, url)
        )
    ]
    if accounts := mlflow_users.users(settings):
        check, bring_up = _if(mlflow_users.in_order, accounts), partial(mlflow_users.make, url, accounts)
        listed.append(Migration("mlflow's users", "AIRLOOP_MLFLOW_DATABASE_URL", url, check, AS_SET, bring_up))
    return listed


# --- Versions: of a database, and those that the code needs


def _is_done(migration: Migration) -> bool:
    try:
        with _engine(migration.url) as engine:
            return migration.read_version(engine) == migration.wanted
    except OperationalError as error:
        raise MigrationError(f"{_where(migration)} does not answer: {_first_line(error)}") from None


def _from_table(table: str) -> Callable[[Engine], str | None]:
    def read_version(engine: Engine) -> str | None:
        if not inspect(engine).has_table(table):
            return None
        with engine.connect() as connection:
            version: str | None = connection.execute(text(f"SELECT version_num FROM {table}")).scalar()
            return version

    return read_version


def _from_ours(component: str) -> Callable[[Engine], str | None]:
    def read_version(engine: Engine) -> str | None:
        if not inspect(engine).has_table(OURS):
            return None
        with engine.connect() as connection:
            version: str | None = connection.execute(
                text(f"SELECT version FROM {OURS} WHERE component = :component"), {"component": component}
            ).scalar()
            return version

    return read_version


def _if(in_order: Callable[[Engine, Any], bool], what: Any) -> Callable[[Engine], str | None]:
    return lambda engine: AS_SET if in_order(engine, what) else None


def _head(package: str, folder: str) -> str:
    """Return the last of a package's migrations: the one without a successor.

    The files are read as text, because importing them imports the whole product.
    """
    spec = find_spec(package)
    assert spec and spec.submodule_search_locations, package
    scripts = [file.read_text() for file in (Path(spec.submodule_search_locations[0]) / folder).glob("*.py")]
    assigned = {
        name: [m[1] for s in scripts for m in re.finditer(rf"^{name}(?:: [^=]+)? = (.*)$", s, re.MULTILINE)]
        for name in ("revision", "down_revision")
    }
    known, followed = (
        {r for line in lines for r in re.findall(r"[\"'](\w+)[\"']", line)} for lines in assigned.values()
    )
    heads = known - followed
    if len(heads) != 1:
        raise MigrationError(f"{package}/{folder} has not one last migration but {sorted(heads)}")
    head: str = heads.pop()
    return head


def _installed(package: str) -> bool:
    return find_spec(package) is not None


# --- Locks


@contextmanager
def _engine(url_of: str) -> Iterator[Engine]:
    url = make_url(url_of)
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url)
    else:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg2"),
            connect_args={"connect_timeout": 10, "application_name": "airloop-migrate"},
        )
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _only_one(migration: Migration, settings: Settings) -> Iterator[None]:
    """Hold the lock of this database. Other processes that migrate it wait.

    The lock is released when this process ends, in any way.
    """
    with _engine(migration.url) as engine:
        if engine.dialect.name == "sqlite":
            name = hashlib.sha256(migration.url.encode()).hexdigest()[:12]
            with (settings.home / f".migrate-{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            return
        with closing(engine.raw_connection()) as connection:
            # An open transaction would make the migrations' own locks wait.
            connection.driver_connection.autocommit = True
            connection.cursor().execute("SELECT pg_advisory_lock(%s)", [LOCK])
            yield
            connection.cursor().execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def _where(migration: Migration) -> str:
    url = make_url(migration.url)
    return f"{migration.setting}: database '{url.database}'" + (
        f" on {url.host}:{url.port or 5432}, as user {url.username}," if url.host else ""
    )


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


# --- The migrations


def _airflow(settings: Settings) -> None:
    _by_airflow(settings, "db", "migrate")


def _by_airflow(settings: Settings, *arguments: str) -> None:
    command = [sys.executable, "-m", "airflow", *arguments]
    process = subprocess.run(
        command, env=airflow_environment(settings), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if process.returncode:
        output = "\n".join((process.stdout + process.stderr).splitlines()[-15:])
        raise MigrationError(f"airflow: `airflow {' '.join(arguments[:2])}` ended with {process.returncode}:\n{output}")


def _users(settings: Settings) -> None:
    try:
        users.sync(settings)
    except users.UsersError as error:
        raise MigrationError(f"airflow's admin: {error}") from None


def _has_pools(engine: Engine, settings: Settings) -> bool:
    from include.stack.stores import pools

    return not pools.missing(engine, settings)


def _pools(settings: Settings) -> None:
    """Create missing pools. A step whose pool is missing waits forever.

    Existing pools keep their size, because an operator may have resized them.
    """
    # The module needs the projects. MLflow's server, which migrates its own tables with this
    # module, does not have them.
    from include.stack.stores import pools

    with _engine(settings.airflow_database) as engine:
        missing = pools.missing(engine, settings)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pools.json"
        file.write_text(pools.for_import(missing))
        _by_airflow(settings, "pools", "import", str(file))


def _mlflow(url: str) -> None:
    from mlflow.store.db import utils

    # Its models must be known. Otherwise no table seems to be missing.
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401

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
            connection.execute(
                text(
                    f"CREATE TABLE IF NOT EXISTS {OURS} (component VARCHAR(40) PRIMARY KEY, version VARCHAR(80) NOT"
                    " NULL)"
                )
            )
            connection.execute(text(f"DELETE FROM {OURS} WHERE component = :component"), {"component": component})
            connection.execute(
                text(f"INSERT INTO {OURS} VALUES (:component, :version)"), {"component": component, "version": wanted}
            )


def _ledger(url: str) -> None:
    from include.ledger import LedgerError, migrate

    try:
        migrate(url)
    except (LedgerError, ProgrammingError) as error:
        raise MigrationError(f"ledger: {_first_line(error)}") from None
