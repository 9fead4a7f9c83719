"""Look up features by entity keys in Feast's online store.

A thread opens the store, so the lookup becomes ready independently of the other components. That
thread also reads Feast's registry again every few seconds. So requests do not have to read it, and
new services and views are found.
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

from serving.features.feast_registry import FeatureService, NotPlainError
from serving.features.feature_values import FeatureValues
from serving.features.online import OnlineStore
from serving.problems import invalid, unavailable

KEY_TYPES = {
    "STRING": (str, "a string"),
    "INT32": (int, "an integer"),
    "INT64": (int, "an integer"),
    "BOOL": (bool, "true or false"),
}
RANGES = {"INT32": range(-(2**31), 2**31), "INT64": range(-(2**63), 2**63)}

log = logging.getLogger(__name__)


class FeatureLookup:
    """Feast's online store, opened and refreshed in the background.

    ``state`` is ``opening``, ``ready`` or ``failed``. If it is ``failed``, ``error`` contains the
    reason, and the store is opened again later.
    """

    def __init__(self, repo: Path, *, refresh_seconds: float = 10) -> None:
        self.repo, self.refresh_seconds = repo, refresh_seconds
        self.state: Literal["opening", "ready", "failed"] = "opening"
        self.error: str | None = None
        self._store: Any = None
        self._services: dict[str, FeatureService] = {}
        # Service -> time until which it is not searched for again.
        self._not_found: dict[str, float] = {}
        self._refreshing = threading.Lock()
        self._stop = threading.Event()
        self._after: threading.Event | None = None
        self._thread = threading.Thread(target=self._run, name="feature-lookup", daemon=True)

    def start(self, after: threading.Event | None = None) -> None:
        """Open the store in the background.

        Args:
            after: An event to wait for, at most ten seconds. Two threads that import big libraries
                concurrently slow each other down.
        """
        self._after = after
        self._thread.start()

    def close(self) -> None:
        self._stop.set()

    def service(self, name: str) -> FeatureService:
        """Return the feature service. Read it from the registry if it is unknown, which may block.

        Raises:
            ProblemError: 503 if the store is not open yet, or if the service does not exist.
        """
        if self._store is None:
            raise unavailable(
                "lookup-not-ready",
                "Feature look-up is not ready",
                self.error or f"the feature store in {self.repo} is being opened",
            )
        return self._services.get(name) or self._find(name)

    def known(self, name: str) -> FeatureService | None:
        """Return a service that was requested before, without blocking, or None."""
        return self._services.get(name)

    async def find(self, name: str) -> FeatureService:
        """Return the result of ``service`` without blocking the event loop."""
        known = self.known(name)
        return known if known is not None else await asyncio.to_thread(self.service, name)

    def fetch_at_once(self, service: FeatureService, rows: Sequence[Mapping[str, Any]]) -> list[FeatureValues] | None:
        """Return the result of ``fetch`` if the store can answer without waiting.

        Return None if the caller must wait, or after an error, which ``fetch`` reports.
        """
        features: list[FeatureValues] | None = self._store.read_at_once(service, rows)
        return features

    async def fetch(self, service: FeatureService, rows: Sequence[Mapping[str, Any]]) -> list[FeatureValues]:
        """Return the online store's newest values for each row, in one round trip.

        Args:
            rows: Join key -> value. All rows contain the service's join keys. A key that is None
                does not name an entity, so its views do not have values.

        Raises:
            ProblemError: 503 if the store is unavailable.
        """
        try:
            features: list[FeatureValues] = await self._store.read(service, rows)
            return features
        except Exception as error:  # Each store has its own exception classes.
            log.warning("look-up failed: %s: %s", type(error).__name__, error)
            raise unavailable("lookup-failed", "Feature look-up failed", f"{type(error).__name__}: {error}") from error

    def check_key(self, service: FeatureService, key: str, value: Any, field: str) -> None:
        """Check that Feast can look up an entity by this value.

        Raises:
            ProblemError: 422 if the value has the wrong type.
        """
        wanted, words = KEY_TYPES.get(service.types[key], (object, ""))
        if value is None:
            return
        if not isinstance(value, wanted) or (
            wanted is int and (isinstance(value, bool) or value not in RANGES[service.types[key]])
        ):
            raise invalid("wrong-type", "A join key has the wrong type", f"'{key}' must be {words} or null", field)

    def status(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "error": self.error,
            "feature_services": sorted(self._services),
            "read_by": type(self._store).__name__,
        }

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
                # Before the first materialization the registry may not exist. If it is unavailable
                # later, lookups must continue.
                known, self.error = self.error, f"{type(error).__name__}: {error}"
                self.state = "ready" if self._store else "failed"
                if self.error != known:
                    log.warning("feature store %s: %s", self.repo, self.error)
            self._stop.wait(self.refresh_seconds if self._store else min(1.0, self.refresh_seconds))

    def _refresh(self) -> None:
        """Read the registry again, and all known services from it."""
        with self._refreshing:
            self._store.refresh()
            services = {name: self._resolve(name) for name in self._services}
            self._services = {name: service for name, service in services.items() if service is not None}

    def _find(self, name: str) -> FeatureService:
        with self._refreshing:
            if name in self._services:
                return self._services[name]
            if time.monotonic() > self._not_found.get(name, 0):
                try:
                    self._store.refresh()
                    service = self._resolve(name)
                except Exception as error:  # An error of the registry or the database.
                    raise unavailable(
                        "lookup-failed", "Feature look-up failed", f"Feast's registry: {type(error).__name__}: {error}"
                    ) from error
                if service:
                    self._services = {**self._services, name: service}
                    return service
                self._not_found[name] = time.monotonic() + 1
        detail = f"Feast has no feature service '{name}', or not all of its views"
        raise unavailable("no-feature-service", "The model's feature service is not registered", detail)

    def _resolve(self, name: str) -> FeatureService | None:
        try:
            service: FeatureService | None = self._store.service(name)
            return service
        except NotPlainError as reason:
            log.info("%s: read by way of Feast's client from now on", reason)
            self._store = _by_feast(self.repo, _config(self.repo))
            self._store.refresh()
            read_by_feast: FeatureService | None = self._store.service(name)
            return read_by_feast


def _open(repo: Path) -> Any:
    config = _config(repo)
    try:
        return OnlineStore(repo, config)
    except NotPlainError as reason:
        log.info("%s: read by way of Feast's client", reason)
        return _by_feast(repo, config)


def _by_feast(repo: Path, config: dict[str, Any]) -> Any:
    from serving.features.feast_sdk import FeastStore  # This import takes seconds.

    return FeastStore(repo, config)


def _config(repo: Path) -> dict[str, Any]:
    """Return the content of a feature_store.yaml with environment variables expanded."""
    import yaml

    file = repo / "feature_store.yaml"
    text = file.read_text()
    # Variables are collected before the expansion, because their values may contain a $.
    named = set(re.findall(r"\$\{?\w+\}?", yaml.safe_dump(yaml.safe_load(text))))
    unset = sorted(name for name in named if name.strip("${}") not in os.environ)
    if unset:  # SQLite would create a file with that name.
        raise ValueError(f"{file} names {', '.join(unset)}, which the environment lacks")
    config: dict[str, Any] = yaml.safe_load(os.path.expandvars(text))
    return config
