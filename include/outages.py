"""Whether an error says that a server is away, as opposed to having been asked something wrong: then trying again later helps.

Told by the names of the exceptions' classes, so that nothing has to be imported for it, and by words where a library has no class for it.
"""

from collections.abc import Iterator

STORE_AWAY = 69  # a step's exit code that says so: EX_UNAVAILABLE of sysexits.h; 70 and 75 are the workers' own (include/training/workers.py)
AWAY = {
    "include.dag_kit.compute.StoreAway",
    "builtins.ConnectionError", "builtins.TimeoutError",
    "include.data.storage.StorageUnavailable", "include.stack.migrations.MigrationError",
    "psycopg2.OperationalError", "psycopg2.InterfaceError", "psycopg.OperationalError", "psycopg.InterfaceError",
    "redis.exceptions.ConnectionError", "redis.exceptions.TimeoutError",
    "requests.exceptions.ConnectionError", "requests.exceptions.Timeout", "httpx.TransportError", "urllib3.exceptions.HTTPError",
    "botocore.exceptions.HTTPClientError", "botocore.exceptions.ConnectionError",
    "aiohttp.client_exceptions.ClientConnectionError",
}  # fmt: skip
# delta-rs (an OSError of its own making) and MLflow (its one exception, also for a server's error that it has tried again for minutes).
WORDS = ("error sending request", "Connection refused", "Connection reset", "connection closed before", "error trying to connect", "Max retries exceeded",
         "too many 500 error responses", "too many 503 error responses", "SlowDown", "ServiceUnavailable", "database is locked")  # fmt: skip


def away(error: BaseException) -> str | None:
    """What the error, or one that it came of, says of a server that is away, in a line; None: it says something else."""
    for one in _chain(error):
        names = {f"{c.__module__}.{c.__qualname__}" for c in type(one).__mro__} | {f"{_top(c)}.{c.__qualname__}" for c in type(one).__mro__}
        status = getattr(getattr(one, "response", None), "status_code", None)
        if names & AWAY or any(word in str(one) for word in WORDS) or (isinstance(status, int) and status >= 500):
            return f"{type(one).__name__}: {str(one).strip().partition(chr(10))[0][:200]}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _top(of: type) -> str:
    """``httpx`` of ``httpx._exceptions``: libraries name their exceptions by where they are imported from."""
    return of.__module__.partition(".")[0]
