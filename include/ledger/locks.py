"""One at a time: whoever changes what is deployed holds the project's lock meanwhile, be it a task or a person at a terminal.

MLflow has no compare-and-set. The lock is the ledger's database's own (Postgres: an advisory lock; SQLite, which is one machine: a lock on a file beside
it), so it ends with whoever held it, also with kill -9.
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


class Busy(TimeoutError):
    """Somebody else is changing what is deployed, for longer than one waits."""


@contextmanager
def one_at_a_time(project: str, *, timeout_s: float = 60) -> Iterator[None]:
    """Around everything that reads what is deployed and then changes it.

    Raises:
        Busy: nobody else let go within ``timeout_s``.
    """
    url = get_settings().ledger
    busy = Busy(f"{project}: somebody else has been changing what is deployed for {timeout_s:g} s; try again")
    if url.startswith("sqlite"):
        with _file(Path(make_url(url).database or "ledger.db").with_suffix(f".{project}.lock"), timeout_s, busy):
            yield
        return
    engine = connect(url)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT set_config('lock_timeout', :ms, true)"), {"ms": str(int(timeout_s * 1000))})
            try:
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": f"airloop rollout {project}"})
            except OperationalError as error:
                if "lock timeout" not in str(error):
                    raise
                raise busy from error
            yield
    finally:
        engine.dispose()


@contextmanager
def _file(path: Path, timeout_s: float, busy: Busy) -> Iterator[None]:
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
