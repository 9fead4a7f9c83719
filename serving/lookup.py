"""Features by entity keys, from Feast's online store.

The store is opened by a thread, so look-up becomes ready apart from the rest. That thread also reads Feast's registry again every few
seconds, so that no request has to, and new services and views are found.
"""

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from serving.feast_registry import NotPlain, Service
from serving.looked_up import LookedUp
from serving.online import OnlineStore
from serving.problems import invalid, unavailable

KEY_TYPES = {"STRING": (str, "a string"), "INT32": (int, "an integer"), "INT64": (int, "an integer"), "BOOL": (bool, "true or false")}
RANGES = {"INT32": range(-(2**31), 2**31), "INT64": range(-(2**63), 2**63)}

log = logging.getLogger(__name__)


class FeatureLookup:
    """Feast's online store, opened and kept fresh in the background.

    ``state`` is ``opening``, ``ready`` or ``failed`` (with ``error``; it is tried again).
    """

    def __init__(self, repo: Path, *, refresh_seconds: float = 10) -> None:
        self.repo, self.refresh_seconds = repo, refresh_seconds
        self.state: Literal["opening", "ready", "failed"] = "opening"
        self.error: str | None = None
        self._store: Any = None
        self._services: dict[str, Service] = {}
        self._not_found: dict[str, float] = {}  # service -> until when it is not looked for again
        self._refreshing = threading.Lock()
        self._stop = threading.Event()
        self._after: threading.Event | None = None
        self._thread = threading.Thread(target=self._run, name="feature-lookup", daemon=True)

    def start(self, after: threading.Event | None = None) -> None:
        """Open the store in the background.

        Args:
            after: wait for this first (for ten seconds at most): two threads that import big libraries at once both crawl.
        """
        self._after = after
        self._thread.start()

    def close(self) -> None:
        self._stop.set()

    def service(self, name: str) -> Service:
        """The feature service, looked for in the registry if it was not known; that may take a while.

        Raises:
            Problem: 503, the store is not open yet, or has no such service.
        """
        if self._store is None:
            raise unavailable("lookup-not-ready", "Feature look-up is not ready", self.error or f"the feature store in {self.repo} is being opened")
        return self._services.get(name) or self._find(name)

    def known(self, name: str) -> Service | None:
        """A service that has been asked for before, at once."""
        return self._services.get(name)

    async def find(self, name: str) -> Service:
        """``service``, without holding up the event loop."""
        known = self.known(name)
        return known if known is not None else await asyncio.to_thread(self.service, name)

    def fetch_at_once(self, service: Service, rows: Sequence[Mapping[str, Any]]) -> list[LookedUp] | None:
        """``fetch`` from a store that answers without waiting; None: it is to be waited for, or something is wrong with it (``fetch`` says what)."""
        found: list[LookedUp] | None = self._store.read_at_once(service, rows)
        return found

    async def fetch(self, service: Service, rows: Sequence[Mapping[str, Any]]) -> list[LookedUp]:
        """The online store's newest values for each row, in one round trip.

        Args:
            rows: join key -> value; all rows have the service's join keys. A key of None belongs to no entity: its views have no values.

        Raises:
            Problem: 503, the store does not answer.
        """
        try:
            return await self._store.read(service, rows)
        except Exception as error:  # every store has errors of its own
            log.warning("look-up failed: %s: %s", type(error).__name__, error)
            raise unavailable("lookup-failed", "Feature look-up failed", f"{type(error).__name__}: {error}") from error

    def check_key(self, service: Service, key: str, value: Any, field: str) -> None:
        """Whether Feast can be asked for an entity by this value.

        Raises:
            Problem: 422.
        """
        wanted, words = KEY_TYPES.get(service.types[key], (object, ""))
        if value is None:
            return
        if not isinstance(value, wanted) or (wanted is int and (isinstance(value, bool) or value not in RANGES[service.types[key]])):
            raise invalid("wrong-type", "A join key has the wrong type", f"'{key}' must be {words} or null", field)

    def status(self) -> dict[str, Any]:
        return {"state": self.state, "error": self.error, "feature_services": sorted(self._services), "read_by": type(self._store).__name__}

    def _run(self) -> None:
        if self._after:
            self._after.wait(10)
        while not self._stop.is_set():
            try:
                if self._store is None:
                    opened = _open(self.repo)
                    opened.refresh()
                    self._store = opened
                else:
                    self._refresh()
                self.state, self.error = "ready", None
            except Exception as error:
                # Before the first materialization there may be no registry at all; and one that is away must not stop look-ups.
                known, self.error = self.error, f"{type(error).__name__}: {error}"
                self.state = "ready" if self._store else "failed"
                if self.error != known:
                    log.warning("feature store %s: %s", self.repo, self.error)
            self._stop.wait(self.refresh_seconds if self._store else min(1.0, self.refresh_seconds))

    def _refresh(self) -> None:
        """Read the registry again, and every known service from it."""
        with self._refreshing:
            self._store.refresh()
            found = {name: self._resolve(name) for name in self._services}
            self._services = {name: service for name, service in found.items() if service is not None}

    def _find(self, name: str) -> Service:
        with self._refreshing:
            if name in self._services:
                return self._services[name]
            if time.monotonic() > self._not_found.get(name, 0):
                try:
                    self._store.refresh()
                    service = self._resolve(name)
                except Exception as error:  # the registry's, or the database's
                    raise unavailable("lookup-failed", "Feature look-up failed", f"Feast's registry: {type(error).__name__}: {error}") from error
                if service:
                    self._services = {**self._services, name: service}
                    return service
                self._not_found[name] = time.monotonic() + 1
        detail = f"Feast has no feature service '{name}', or not all of its views"
        raise unavailable("no-feature-service", "The model's feature service is not registered", detail)

    def _resolve(self, name: str) -> Service | None:
        try:
            return self._store.service(name)
        except NotPlain as reason:
            log.info("%s: read by way of Feast's client from now on", reason)
            self._store = _by_feast(self.repo, _config(self.repo))
            self._store.refresh()
            return self._store.service(name)


def _open(repo: Path) -> Any:
    config = _config(repo)
    try:
        return OnlineStore(repo, config)
    except NotPlain as reason:
        log.info("%s: read by way of Feast's client", reason)
        return _by_feast(repo, config)


def _by_feast(repo: Path, config: dict[str, Any]) -> Any:
    from serving.feast_sdk import FeastStore  # seconds

    return FeastStore(repo, config)


def _config(repo: Path) -> dict[str, Any]:
    """The content of a feature_store.yaml."""
    import yaml

    file = repo / "feature_store.yaml"
    text = file.read_text()
    named = set(re.findall(r"\$\{?\w+\}?", yaml.safe_dump(yaml.safe_load(text))))  # before their values are put in, which may hold a $ of their own
    unset = sorted(name for name in named if name.strip("${}") not in os.environ)
    if unset:  # else SQLite would make a file of that name
        raise ValueError(f"{file} names {', '.join(unset)}, which the environment lacks")
    return yaml.safe_load(os.path.expandvars(text))
