"""Classify errors: a server is away, so a later try helps; or the next try must fail in the same way, so none helps.

A server that is away is recognized by the names of the exceptions' classes, so that nothing has to be imported for it, and by words where a library has
no class for it.
"""

from collections.abc import Iterator

# Exit codes of a training step, from sysexits.h; 70 and 75 are the workers' own (include/training/workers.py).
STORE_AWAY = 69  # EX_UNAVAILABLE
WILL_FAIL_AGAIN = 65  # EX_DATAERR
# The same code on the same data raises these again. OSError and RuntimeError are not among them: a disk, a network or a graphics card may recover.
DETERMINISTIC = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, SyntaxError, TypeError, ValueError)
# An answer that was cut off, or that a proxy made; a service of secrets or connections that is away for a moment.
NOT_DETERMINISTIC = ("json.decoder.JSONDecodeError", "include.secrets_manager.SecretsManagerError", "include.dag_kit.storage.NoSuchConnection")
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


def will_fail_again(error: BaseException) -> bool:
    """Return whether the same code on the same data raises this error again: bad data, a wrong name, a fault in the code.

    The error itself counts, not its cause: who translates an error decides what it is. An error that says that a store is away never counts.
    """
    names = {f"{c.__module__}.{c.__qualname__}" for c in type(error).__mro__}
    return isinstance(error, DETERMINISTIC) and not names.intersection(NOT_DETERMINISTIC) and away(error) is None


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
