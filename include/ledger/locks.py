"""A project's deployment lock, held by each task or user that changes the deployment.

MLflow does not have compare-and-set. The lock belongs to the ledger's database: on Postgres an
advisory lock. SQLite runs on one machine, so there it is a lock on a file next to the database. It
is released when its holder ends, even after kill -9.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError

from include.ledger.database import connect
from include.settings import get_settings


class LockTimeoutError(TimeoutError):
    """Raised when another process holds the lock for longer than the timeout."""


@contextmanager
def one_at_a_time(project: str, *, timeout_s: float = 60) -> Iterator[None]:
    """Hold the lock around code that reads the deployment and then changes it.

    Raises:
        LockTimeoutError: the lock was not released within ``timeout_s``.
    """
    url = get_settings().ledger
    busy = LockTimeoutError(
        f"{project}: somebody else has been changing what is deployed for {timeout_s:g} s; try again"
    )
    if url.startswith("sqlite"):
        with _file(Path(make_url(url).database or "ledger.db").with_suffix(f".{project}.lock"), timeout_s, busy):
            yield
        return
    engine = connect(url)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT set_config('lock_timeout', :ms, true)"), {"ms": str(int(timeout_s * 1000))})
            try:
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
                    {"key": f"airloop rollout {project}"},
                )
            except OperationalError as error:
                if "lock timeout" not in str(error):
                    raise
                raise busy from error
            yield
    finally:
        engine.dispose()


@contextmanager
def _file(path: Path, timeout_s: float, busy: LockTimeoutError) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with path.open("a") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise busy from None
                time.sleep(0.05)
        yield
