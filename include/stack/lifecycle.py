"""Start, monitor and stop the embedded stack: `airloop up|status|down` without terminal output."""

import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import httpx

from include.data import storage
from include.settings import REPOSITORY, Settings
from include.stack.accounts import mlflow_users
from include.stack.accounts.access import is_exposed_without_auth
from include.stack.pod_settings import validate_pod_settings
from include.stack.ports import PortTakenError, require_free
from include.stack.processes import ProcessBook, Record, last_lines
from include.stack.services import KEEPER, Service, migrate_all, migration, services
from include.stack.stores.migrations import MigrationError, pending
from include.stack.stores.pools import PoolsError, pools_of_settings, set_pools

State = Literal["answering", "not answering", "died", "stopped"]
Progress = Callable[[str, str], None]
MIGRATE = "migrate"


__all__ = ["PortTakenError", "ServiceStatus", "StackError", "down", "services", "status", "up"]


class StackError(Exception):
    """Raised when the stack could not be started. The message contains the cause and the fix."""


@dataclass(frozen=True)
class ServiceStatus:
    """One line of `airloop status`.

    Attributes:
        uptime: In seconds.
        restarts: Restarts after the service died, since `airloop up`.
    """

    name: str
    state: State
    pid: int | None = None
    uptime: float | None = None
    address: str = ""
    log: str = ""
    restarts: int = 0


def up(settings: Settings, progress: Progress = lambda name, state: None, timeout: float = 900.0) -> list[str]:
    """Start missing services and wait until all services answer.

    Args:
        progress: Called with a service's name and its state (``starting``, ``answering``) at each
            change.
        timeout: Seconds until a service that does not answer counts as failed.

    Returns:
        Names of the started services. Empty if all were running already.

    Raises:
        StackError: A port is in use (then nothing was started), or a process ended or does not
            answer (then the started processes are stopped again).
        StorageUnavailableError: The data is on an object store that cannot be reached (then nothing
            was started).
    """
    with _one_at_a_time(settings):
        book = ProcessBook(settings.home, REPOSITORY)
        try:
            pools = pools_of_settings(settings)
        except PoolsError as error:
            raise StackError(str(error)) from None
        if settings.compute == "kubernetes" and (wrong := validate_pod_settings(settings, settings.mlflow_url)):
            raise StackError(wrong)
        if wrong := is_exposed_without_auth(settings):
            raise StackError(wrong)
        if settings.users == "fab" and settings.airflow_admin_password is None:
            raise StackError(
                "AIRLOOP_AUTH_MANAGER is fab, and AIRLOOP_AIRFLOW_ADMIN_PASSWORD is not set, so no user could log in"
            )
        wanted = services(settings)
        records = book.records()
        dead = [record for record in records.values() if record.process() is None or record.name == MIGRATE]
        # Remaining child processes of a killed process would hold its port and its locks.
        book.stop(dead)
        running = records.keys() - {record.name for record in dead}
        missing = [service for service in wanted if service.name not in running]
        for service in wanted:
            if service.name in running:
                progress(service.name, "running")
        require_free(settings, missing)
        if missing:
            # Otherwise the stack would start and then fail in each task.
            storage.path(settings.store)
        started: list[Record] = []
        try:
            _start(settings, book, missing, started, progress, time.monotonic() + timeout)
            set_pools(settings, pools)
        except BaseException:
            book.stop(started)
            raise
        return [service.name for service in missing]


def down(settings: Settings) -> list[str]:
    """Stop all processes that `up` started in this home, and their children. Return the names."""
    with _one_at_a_time(settings):
        book = ProcessBook(settings.home, REPOSITORY)
        # Stop the keeper first, because it would restart the others.
        records = sorted(book.records().values(), key=lambda record: record.name != KEEPER)
        for some in (records[:1], records[1:]):
            book.stop(some)
        return [record.name for record in records]


def status(settings: Settings) -> list[ServiceStatus]:
    """Return the current state of each service."""
    records = ProcessBook(settings.home, REPOSITORY).records()
    return [_status(service, records.get(service.name)) for service in services(settings)]


def _start(
    settings: Settings,
    book: ProcessBook,
    missing: list[Service],
    started: list[Record],
    progress: Progress,
    deadline: float,
) -> None:
    """Start the services concurrently. Services that need a database wait for its migration."""
    waiting = list(missing)
    pending: dict[str, tuple[Service, Record]] = {}
    migrating: Record | None = None
    if any(service.needs_migration for service in missing) and not _migrated(settings):
        progress(MIGRATE, "starting")
        migrating = book.start(migration(settings) if _is_plain(settings) else migrate_all(settings))
        started.append(migrating)
    while waiting or pending:
        if migrating and (exit_status := book.exit_status(migrating)) is not None:
            if exit_status != 0:
                raise StackError(
                    f"the databases could not be made. The end of {migrating.log}:\n{last_lines(migrating.log)}"
                )
            book.stop([migrating])
            if settings.airflow_database_url is None:
                _enable_wal(settings.home / "airflow" / "airflow.db")
            if _is_plain(settings):
                (settings.home / "airflow" / "migrated").write_text(version("apache-airflow"))
            progress(MIGRATE, "done")
            migrating = None
        for service in [s for s in waiting if not (migrating and s.needs_migration)]:
            record = book.start(service.command)
            started.append(record)
            pending[service.name] = service, record
            waiting.remove(service)
            progress(service.name, "starting")
        for service, record in list(pending.values()):
            if book.exit_status(record) is not None:
                raise StackError(
                    f"{service.name} ended as it started. The end of {record.log}:\n{last_lines(record.log)}"
                )
            if _answers(service, record):
                del pending[service.name]
                progress(service.name, "answering")
        if time.monotonic() > deadline:
            late = [record for _, record in pending.values()] or ([migrating] if migrating else [])
            ends = "\n".join(f"The end of {record.log}:\n{last_lines(record.log)}" for record in late)
            raise StackError(f"no answer in time from {', '.join(record.name for record in late)}. {ends}")
        time.sleep(0.4)


def _status(service: Service, record: Record | None) -> ServiceStatus:
    if record is None:
        return ServiceStatus(service.name, "stopped", address=service.address)
    if record.process() is None:
        return ServiceStatus(
            service.name, "died", record.pid, address=service.address, log=record.log, restarts=record.restarts
        )
    state: State = "answering" if _answers(service, record) else "not answering"
    return ServiceStatus(
        service.name, state, record.pid, time.time() - record.started, service.address, record.log, record.restarts
    )


def _answers(service: Service, record: Record) -> bool:
    try:
        return service.answers(record)
    except httpx.HTTPError:
        return False


def _enable_wal(database: Path) -> None:
    """Enable write-ahead logging, which the database file remembers.

    Otherwise a writer and readers wait for each other until one of them times out.
    """
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


def _is_plain(settings: Settings) -> bool:
    """Return whether all stores are SQLite files and no accounts have to be created.

    Then only Airflow's database needs a migration. The other stores create their files when needed.
    """
    urls = (settings.airflow_database, settings.mlflow_database, settings.feast_registry, settings.ledger)
    return (
        all(url.startswith("sqlite") for url in urls)
        and settings.users == "simple"
        and not mlflow_users.users(settings)
    )


def _migrated(settings: Settings) -> bool:
    if not _is_plain(settings):
        try:
            return not pending(settings)
        except MigrationError as error:
            raise StackError(str(error)) from None
    mark = settings.home / "airflow" / "migrated"
    return mark.exists() and mark.read_text() == version("apache-airflow")


@contextmanager
def at_once(settings: Settings) -> Iterator[bool]:
    """Yield whether the lock against `up` and `down` in this home is free.

    If it is, it is held in the meantime, so that neither can begin.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / ".stack.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    """Hold the lock of this home, so that a second `up` waits for the first.

    Two concurrent calls would start all services twice.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / ".stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
