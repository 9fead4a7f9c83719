"""Who is let in. Without a file of keys only this machine is: the service is open to nobody else, whatever it listens on."""

import ipaddress
import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from serving.keys import Bucket, Key, KeysError, Role, digest, read
from serving.problems import Problem

NOBODY = "-"  # the caller's name where there are no keys
OPEN = frozenset({"/live", "/ready", "/v2/health/live", "/v2/health/ready"})  # for whoever watches the process; without details
RELOAD_SECONDS = 1.0

log = logging.getLogger(__name__)


def role_for(path: str) -> Role | None:
    """The role that a path asks for; None: any key will do (what is not there is told to no stranger either)."""
    if path.startswith(("/models", "/v2")):
        return "predict"
    if path.startswith("/feedback"):
        return "feedback"
    if path.startswith("/metrics"):
        return "metrics"
    return None


class Access:
    """The file of keys, read again when it changes, and the callers' rates.

    Args:
        workers: processes that share the load, and so each caller's rate.

    Raises:
        KeysError: the file cannot be used. Later on a file that cannot be used leaves the keys as they were (``error`` says so).
    """

    def __init__(self, file: Path | None, *, workers: int = 1) -> None:
        self.file, self.workers = file, workers
        self.error: str | None = None
        self._keys: dict[str, Key] = {}
        self._buckets: dict[str, Bucket] = {}
        self._seen: tuple[int, int, int] | None = None
        self._next_look = 0.0
        if file is not None:
            self._load(file)

    def admit(self, path: str, headers: Iterable[tuple[bytes, bytes]], client: tuple[str, int] | None) -> str | None:
        """The caller's name; None: an open path, asked without a key.

        Raises:
            Problem: 401, there is no key that is known; 403, it has not the role; 429, it asks too often.
        """
        if self.file is None:
            if client is not None and not _is_loopback(client[0]):
                if path in OPEN:
                    return None
                raise _unauthorized("this service has no keys (SERVING_KEYS_FILE) and answers its own machine only")
            return NOBODY
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + RELOAD_SECONDS
            self._look_again(self.file)
        given = _key_of(headers)
        if given is None:
            if path in OPEN:
                return None
            raise _unauthorized("a key is needed: 'Authorization: Bearer <key>' or 'X-API-Key: <key>'")
        key = self._keys.get(digest(given))
        if key is None or (key.expires is not None and datetime.now(UTC) >= key.expires):
            raise _unauthorized("the key is not known here, or is no longer valid")
        role = role_for(path)
        if not key.may(role):
            raise Problem(403, "role-lacking", "The key may not do this", f"key '{key.name}' has not the role '{role}'")
        bucket = self._buckets.get(key.name)
        if bucket is not None and (wait := bucket.take()):
            detail = f"key '{key.name}' may ask {key.rate:g} times a second"
            raise Problem(429, "too-many-requests", "Too many requests", detail, retry_after=wait)
        return key.name

    def _load(self, file: Path) -> None:
        keys = {key.sha256: key for key in read(file).keys}
        rates = {key.name: (key.rate, key.burst) for key in self._keys.values()}
        self._buckets = {
            key.name: self._buckets[key.name] if rates.get(key.name) == (key.rate, key.burst) else self._bucket(key.rate, key.burst)
            for key in keys.values()
            if key.rate is not None
        }
        self._keys, self._seen = keys, _stamp(file)

    def _bucket(self, rate: float, burst: int | None) -> Bucket:
        return Bucket(rate / self.workers, max(1.0, (burst or 2 * rate) / self.workers))

    def _look_again(self, file: Path) -> None:
        try:
            stamp = _stamp(file)
            if stamp == self._seen and self.error is None:
                return
            self._load(file)
            self.error = None
        except (OSError, KeysError) as error:
            if self.error is None:
                log.error("the keys stay as they were: %s", error)
            self.error = str(error)


def _stamp(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _key_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    for name, value in headers:
        if name == b"x-api-key":
            return value
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
    return None


@lru_cache(1024)
def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unauthorized(detail: str) -> Problem:
    return Problem(401, "no-key", "Not let in", detail)
