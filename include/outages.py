"""Classify errors by whether a later try can succeed.

Either a server is unavailable and a later try may succeed, or every later try fails in the same
way.

An unavailable server is recognized by the names of the exception classes, so that nothing has to be
imported. Where a library does not have a class for it, the message is searched for known phrases.
"""

from collections.abc import Iterator

# Exit codes of a training step, from sysexits.h: a server is unavailable, or every later try fails
# in the same way. The workers use 70 and 75 (include/training/workers.py).
EX_UNAVAILABLE = 69
EX_DATAERR = 65
# The same code on the same data raises these again. OSError and RuntimeError are not in this list,
# because a disk, a network or a graphics card may recover.
DETERMINISTIC = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    SyntaxError,
    TypeError,
    ValueError,
)
# A truncated response, a response from a proxy, or a temporarily unavailable service for secrets or
# connections.
NOT_DETERMINISTIC = (
    "json.decoder.JSONDecodeError",
    "include.secrets_manager.SecretsManagerError",
    "include.dag_kit.storage.ConnectionNotFoundError",
)
OUTAGE_CLASSES = {
    "include.dag_kit.compute.BackendUnavailableError",
    "builtins.ConnectionError",
    "builtins.TimeoutError",
    "include.data.storage.StorageUnavailableError",
    "include.stack.stores.migrations.MigrationError",
    "psycopg2.OperationalError",
    "psycopg2.InterfaceError",
    "psycopg.OperationalError",
    "psycopg.InterfaceError",
    "redis.exceptions.ConnectionError",
    "redis.exceptions.TimeoutError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
    "httpx.TransportError",
    "urllib3.exceptions.HTTPError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.ConnectionError",
    "aiohttp.client_exceptions.ClientConnectionError",
}
# Phrases in errors of delta-rs (which raises its own OSError) and MLflow. MLflow has one exception
# class. It also raises it for a server error that it has retried for minutes.
OUTAGE_PHRASES = (
    "error sending request",
    "Connection refused",
    "Connection reset",
    "connection closed before",
    "error trying to connect",
    "Max retries exceeded",
    "too many 500 error responses",
    "too many 503 error responses",
    "SlowDown",
    "ServiceUnavailable",
    "database is locked",
)


def outage_of(error: BaseException) -> str | None:
    """Return one line that describes an unavailable server, or None if the error has another cause.

    The error and the errors that caused it are examined.
    """
    for one in _chain(error):
        names = {f"{c.__module__}.{c.__qualname__}" for c in type(one).__mro__} | {
            f"{_top(c)}.{c.__qualname__}" for c in type(one).__mro__
        }
        status = getattr(getattr(one, "response", None), "status_code", None)
        if (
            names & OUTAGE_CLASSES
            or any(word in str(one) for word in OUTAGE_PHRASES)
            or (isinstance(status, int) and status >= 500)
        ):
            return f"{type(one).__name__}: {str(one).strip().partition(chr(10))[0][:200]}"
    return None


def will_fail_again(error: BaseException) -> bool:
    """Return whether the same code on the same data raises this error again.

    Examples are bad data, a wrong name or a bug. Only the error itself counts, not its cause: the
    code that translates an error decides its kind. An error that reports an unavailable store never
    counts.
    """
    names = {f"{c.__module__}.{c.__qualname__}" for c in type(error).__mro__}
    return isinstance(error, DETERMINISTIC) and not names.intersection(NOT_DETERMINISTIC) and outage_of(error) is None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _top(of: type) -> str:
    """Return the top-level package of a class, e.g. ``httpx`` for ``httpx._exceptions``.

    Libraries name their exceptions by where they are imported from.
    """
    return of.__module__.partition(".")[0]
