"""Authenticate and authorize callers.

Without a key file the service answers requests of its own machine only, whatever address it listens
on.
"""

import ipaddress
import logging
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from serving.access.buckets import Bucket, SharedBucket, SharedFile
from serving.keys import Key, KeysError, Role, digest, read
from serving.problems import ProblemError

# Paths for process supervisors. Their answers do not contain details.
OPEN = frozenset({"/live", "/ready", "/v2/health/live", "/v2/health/ready"})
RELOAD_SECONDS = 1.0
# A folder that all workers of a service share. ``python -m serving`` creates it.
SHARED_FOLDER = "SERVING_SHARED_FOLDER"
LOCAL_HOST = re.compile(
    rb"(?:localhost|(?:[a-z0-9-]+\.)*localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE
)

# A refused body counts as so many requests and rows. Its first bytes are free.
BYTES_PER_REQUEST, BYTES_PER_ROW = 64 * 1024, 16 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """A caller that was admitted.

    Attributes:
        models: The models that the caller may use, or None for all models.
        labels_of: The callers for whose predictions this caller may send labels, or None for all.
        corrects: True if the caller may replace labels that were sent before.
        details: True if the caller may see the state of the service's components.
        requests, rows: The caller's token buckets. None means that the rate is not limited.
    """

    name: str
    models: frozenset[str] | None = None
    labels_of: frozenset[str] | None = None
    corrects: bool = True
    details: bool = True
    requests: Bucket | SharedBucket | None = None
    rows: Bucket | SharedBucket | None = None

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models

    def check_model(self, model: str) -> None:
        """Check that the caller may use a model.

        Raises:
            ProblemError: 403, also for a model that does not exist, so that a caller cannot
                discover the names of other models.
        """
        if not self.may_use(model):
            raise ProblemError(
                403,
                "model-not-allowed",
                "The key may not use this model",
                f"key '{self.name}' is not for model '{model}'",
            )

    def take_rows(self, rows: int) -> None:
        """Take rows (instances or labels) from the caller's rate.

        Raises:
            ProblemError: 429 if the caller sends too many rows per second.
        """
        if self.rows is not None and (wait := self.rows.take(rows)):
            detail = (
                f"key '{self.name}' may send {self.rows.rate:g} rows a second, to all workers of this service together"
            )
            raise ProblemError(429, "too-many-rows", "Too many rows", detail, retry_after=wait)

    def charge(self, body_bytes: int) -> None:
        """Take what a refused body is worth from the caller's rates. What they lack they owe."""
        for bucket, each in ((self.requests, BYTES_PER_REQUEST), (self.rows, BYTES_PER_ROW)):
            if bucket is not None and (amount := body_bytes // each):
                bucket.take(amount)


# The caller of every request if no key file is configured.
NOBODY = Caller("-")


def role_for(path: str) -> Role | None:
    """Return the role that a path requires, or None if any key is sufficient.

    Unknown paths also need a key, so that clients without one cannot discover which paths exist.
    """
    if path.startswith(("/models", "/v2")):
        return "predict"
    if path.startswith("/feedback"):
        return "feedback"
    if path.startswith("/metrics"):
        return "metrics"
    return None


def model_of(path: str) -> str | None:
    """Return the model that a path names, or None if it does not name one."""
    parts = path.split("/")
    at = 2 if parts[1:2] == ["models"] else 3 if parts[1:3] == ["v2", "models"] else len(parts)
    return parts[at] if at < len(parts) and parts[at] else None


class Access:
    """The key file, reloaded when it changes, and the callers' rates.

    Args:
        hosts: Names under which clients may call the service if no key file is configured, in
            addition to the loopback names.

    Raises:
        KeysError: The file is not usable at the start. If it becomes unusable later, the previous
            keys stay valid and ``error`` contains the reason.
    """

    def __init__(self, file: Path | None, *, hosts: Iterable[str] = ()) -> None:
        self.file = file
        self.error: str | None = None
        self._hosts = frozenset(host.lower().encode() for host in hosts)
        self._keys: dict[str, tuple[Key, Caller]] = {}
        self._seen: tuple[int, int, int] | None = None
        self._next_look = 0.0
        shared = os.environ.get(SHARED_FOLDER)
        self._shared = SharedFile(Path(shared) / "rates") if shared else None
        if file is not None:
            self._load(file)

    def admit(self, path: str, headers: Iterable[tuple[bytes, bytes]], client: tuple[str, int] | None) -> Caller | None:
        """Return the caller, or None if an open path was requested without a key.

        Raises:
            ProblemError: 401 if the key is missing or unknown. 403 if the key does not have the
                role or the model, or if a web page of another site sent the request. 421 if the
                host is not a name of this service. 429 if the caller exceeds its request rate.
        """
        if self.file is None:
            return self._admit_without_key(path, headers, client)
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + RELOAD_SECONDS
            self._look_again(self.file)
        given = _key_of(headers)
        if given is None:
            if path in OPEN:
                return None
            raise _unauthorized("a key is needed: 'Authorization: Bearer <key>' or 'X-API-Key: <key>'")
        key, caller = self._keys.get(digest(given), (None, NOBODY))
        if key is None or (key.expires is not None and datetime.now(UTC) >= key.expires):
            raise _unauthorized("the key is not known here, or is no longer valid")
        role = role_for(path)
        if not key.may(role):
            raise ProblemError(
                403, "role-lacking", "The key may not do this", f"key '{key.name}' has not the role '{role}'"
            )
        if caller.models is not None and (model := model_of(path)) is not None:
            caller.check_model(model)
        if caller.requests is not None and (wait := caller.requests.take()):
            detail = f"key '{key.name}' may ask {key.rate:g} times a second, all workers of this service together"
            raise ProblemError(429, "too-many-requests", "Too many requests", detail, retry_after=wait)
        return caller

    def _admit_without_key(
        self, path: str, headers: Iterable[tuple[bytes, bytes]], client: tuple[str, int] | None
    ) -> Caller | None:
        """Admit requests of this machine, but not those of other sites' pages in a local browser.

        A page of another site can send requests to this machine, also under its own host name that
        resolves to this machine (DNS rebinding). Browsers mark such requests in headers that pages
        cannot change.
        """
        if client is not None and not _is_loopback(client[0]):
            if path in OPEN:
                return None
            raise _unauthorized("this service has no keys (SERVING_KEYS_FILE) and answers its own machine only")
        host = None
        origins = []
        for name, value in headers:
            if name == b"host":
                host = value
            elif name == b"origin":
                origins.append(value)
            elif name == b"sec-fetch-site" and value not in (b"same-origin", b"none"):
                raise _cross_site(f"Sec-Fetch-Site is '{_shown(value)}'")
        if host is not None and not self._is_host(host):
            if path in OPEN:
                return None
            detail = f"'{_shown(host)}' is not a name of this service; SERVING_HOSTS adds names"
            raise ProblemError(421, "unknown-host", "Unknown host", detail, field="Host")
        for origin in origins:
            if origin not in (b"http://" + (host or b""), b"https://" + (host or b"")):
                raise _cross_site(f"its Origin is '{_shown(origin)}'")
        return NOBODY

    def _is_host(self, host: bytes) -> bool:
        return _is_local_host(host) or host.lower() in self._hosts or host.rpartition(b":")[0].lower() in self._hosts

    def _load(self, file: Path) -> None:
        known = {caller.name: (key, caller) for key, caller in self._keys.values()}
        keys = {}
        for key in read(file).keys:
            before = known.get(key.name)
            # An unchanged key keeps its buckets.
            keys[key.sha256] = (key, before[1] if before is not None and before[0] == key else self._caller_of(key))
        self._keys, self._seen = keys, _stamp(file)

    def _caller_of(self, key: Key) -> Caller:
        return Caller(
            key.name,
            models=frozenset(key.models) if key.models is not None else None,
            labels_of=frozenset(key.labels_of) if key.labels_of is not None else None,
            corrects=key.corrects or "admin" in key.roles,
            details=not {"admin", "metrics"}.isdisjoint(key.roles),
            requests=self._bucket(f"requests {key.name}", key.rate, key.burst),
            rows=self._bucket(f"rows {key.name}", key.rows, None),
        )

    def _bucket(self, name: str, rate: float | None, burst: int | None) -> Bucket | SharedBucket | None:
        if rate is None:
            return None
        at_once = max(1.0, burst or 2 * rate)
        return SharedBucket(self._shared, name, rate, at_once) if self._shared is not None else Bucket(rate, at_once)

    def _look_again(self, file: Path) -> None:
        try:
            stamp = _stamp(file)
            if stamp == self._seen and self.error is None:
                return
            self._load(file)
            self.error = None
        except (OSError, KeysError) as error:
            if self.error is None:
                log.error("the keys are unchanged: %s", error)
            self.error = str(error)


def _stamp(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _key_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    for name, value in headers:
        if name == b"x-api-key":
            return value
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
    return None


@lru_cache(1024)
def _is_local_host(host: bytes) -> bool:
    return LOCAL_HOST.fullmatch(host) is not None


@lru_cache(1024)
def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, "no-key", "Not let in", detail)


def _cross_site(why: str) -> ProblemError:
    detail = (
        f"a web page of another site sent this request ({why}); without keys the service answers programs of this"
        " machine only"
    )
    return ProblemError(403, "cross-site", "Request of another site", detail)


def _shown(value: bytes) -> str:
    return value[:100].decode("ascii", "replace")
