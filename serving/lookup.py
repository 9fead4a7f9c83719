"""Features by entity keys, from Feast's online store.

Importing feast takes seconds, so the store is opened by a thread and look-up becomes ready apart from the rest. That thread
also reads Feast's registry again every few seconds, so that no request has to, and new services and views are found.
"""

import asyncio
import logging
import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from serving.problems import invalid, unavailable

KEY_TYPES = {"STRING": (str, "a string"), "INT32": (int, "an integer"), "INT64": (int, "an integer"), "BOOL": (bool, "true or false")}
INT64 = range(-(2**63), 2**63)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LookedUp:
    """What the online store holds for one instance: values by feature (None: no value), event time by view (None: no row)."""

    values: dict[str, Any]
    times: dict[str, datetime | None]


@dataclass(frozen=True)
class Service:
    """A feature service as the registry has it now."""

    feast: Any  # feast.FeatureService
    view_of: dict[str, str]  # feature -> view
    keys_of: dict[str, tuple[str, ...]]  # view -> join keys, as the request names them
    types: dict[str, str]  # join key -> Feast's value type


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
        self._refreshed_at: Any = None
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
        """The feature service, looked for in the registry if it was not known.

        Raises:
            Problem: 503, the store is not open yet, or has no such service.
        """
        if self._store is None:
            raise unavailable("lookup-not-ready", "Feature look-up is not ready", self.error or f"the feature store in {self.repo} is being opened")
        return self._services.get(name) or self._find(name)

    def look_up(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[LookedUp]:
        """The online store's newest values for each row, in one call of Feast.

        Args:
            name: of the feature service.
            rows: join key -> value; all rows have the service's join keys. A key of None belongs to no entity: its views have no values.

        Raises:
            Problem: 503, the store does not answer.
        """
        service = self.service(name)
        columns = {key: _without_none([row[key] for row in rows], service.types[key]) for key in service.types}
        try:
            proto = self._store.get_online_features(features=service.feast, entity_rows=columns).proto
        except Exception as error:  # every store has errors of its own
            log.warning("look-up of %s failed", name, exc_info=True)
            raise unavailable("lookup-failed", "Feature look-up failed", f"{type(error).__name__}: {error}") from error
        found = [LookedUp(dict.fromkeys(service.view_of), dict.fromkeys(service.keys_of)) for _ in rows]
        keyless = {view: {i for i, row in enumerate(rows) if any(row[key] is None for key in keys)} for view, keys in service.keys_of.items()}
        timed: set[str] = set()
        for feature, vector in zip(proto.metadata.feature_names.val, proto.results, strict=True):
            view = service.view_of.get(feature)
            if view is None:
                continue  # Feast gives the join keys back too
            for i, value in enumerate(vector.values):
                if i not in keyless[view]:
                    found[i].values[feature] = _python(value)
            if view not in timed:  # one row, and so one time, for all features of a view
                timed.add(view)
                for i, moment in enumerate(vector.event_timestamps):
                    if i not in keyless[view] and (moment.seconds or moment.nanos):  # an unset one: the store has no row
                        found[i].times[view] = moment.ToDatetime(tzinfo=UTC)
        return found

    async def fetch(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[LookedUp]:
        """``look_up``, without holding up the event loop."""
        return await asyncio.to_thread(self.look_up, name, rows)

    def check_key(self, service: Service, key: str, value: Any, field: str) -> None:
        """Whether Feast can be asked for an entity by this value.

        Raises:
            Problem: 422.
        """
        wanted, words = KEY_TYPES.get(service.types[key], (object, ""))
        if value is None:
            return
        if not isinstance(value, wanted) or (wanted is int and (isinstance(value, bool) or value not in INT64)):
            raise invalid("wrong-type", "A join key has the wrong type", f"'{key}' must be {words} or null", field)

    def status(self) -> dict[str, Any]:
        return {"state": self.state, "error": self.error, "feature_services": sorted(self._services)}

    def _run(self) -> None:
        if self._after:
            self._after.wait(10)
        while not self._stop.is_set():
            try:
                if self._store is None:
                    self._store = _open(self.repo)
                self._refresh()
                self.state, self.error = "ready", None
            except Exception as error:
                # Before the first materialization there may be no registry at all; and one that is away must not stop look-ups.
                self.error = f"{type(error).__name__}: {error}"
                self.state = "ready" if self._store else "failed"
                log.warning("feature store %s: %s", self.repo, self.error)
            self._stop.wait(self.refresh_seconds if self._store else min(1.0, self.refresh_seconds))

    def _refresh(self) -> None:
        """Read the registry again, and every known service from it."""
        with self._refreshing:
            registry = self._store.registry
            registry.refresh()
            if registry.cached_registry_proto_created == self._refreshed_at:
                raise ConnectionError("Feast's registry could not be read again; the one read before is used")  # Feast does not raise
            self._refreshed_at = registry.cached_registry_proto_created
            for name in list(self._services):
                service = self._resolve(name)
                if service:
                    self._services[name] = service
                else:
                    del self._services[name]

    def _find(self, name: str) -> Service:
        with self._refreshing:
            if name in self._services:
                return self._services[name]
            if time.monotonic() > self._not_found.get(name, 0):
                self._store.registry.refresh()
                service = self._resolve(name)
                if service:
                    self._services[name] = service
                    return service
                self._not_found[name] = time.monotonic() + 1
        detail = f"Feast has no feature service '{name}', or not all of its views"
        raise unavailable("no-feature-service", "The model's feature service is not registered", detail)

    def _resolve(self, name: str) -> Service | None:
        from feast.errors import FeastObjectNotFoundException

        try:
            return self._service(name)
        except FeastObjectNotFoundException:
            return None

    def _service(self, name: str) -> Service:
        registry, project = self._store.registry, self._store.project
        service = registry.get_feature_service(name, project, allow_cache=True)
        view_of: dict[str, str] = {}
        keys_of: dict[str, tuple[str, ...]] = {}
        types: dict[str, str] = {}
        for projection in service.feature_view_projections:
            view = registry.get_any_feature_view(projection.name, project, allow_cache=True)
            renamed = {column.name: projection.join_key_map.get(column.name, column.name) for column in getattr(view, "entity_columns", [])}
            keys_of[projection.name_to_use()] = tuple(renamed.values())
            types |= {renamed[column.name]: column.dtype.to_value_type().name for column in getattr(view, "entity_columns", [])}
            view_of |= {feature.name: projection.name_to_use() for feature in projection.features}
        return Service(service, view_of, keys_of, types)


def _open(repo: Path):
    """Feast's store of a feature_store.yaml, for reading online only.

    The offline store is left out: it can be code of the feature repository, which is not there in the service's image.
    """
    import yaml

    file = repo / "feature_store.yaml"
    config = yaml.safe_load(os.path.expandvars(file.read_text()))
    unset = sorted(set(re.findall(r"\$\{?\w+\}?", yaml.safe_dump(config))))
    if unset:  # else SQLite would make a file of that name
        raise ValueError(f"{file} names {', '.join(unset)}, which the environment lacks")
    config.pop("offline_store", None)
    if isinstance(config.get("registry"), str):
        config["registry"] = {"path": config["registry"]}
    config["registry"]["cache_ttl_seconds"] = 0  # for ever: refreshed here, not within a request
    if config["registry"].get("registry_type") == "sql":
        config["registry"]["schema_mode"] = "verify"  # the tables are made by who fills them
        config["registry"]["serve_features_while_materializing"] = True  # else Feast refuses to read a view while it is being filled
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    parsed = RepoConfig(**config)
    parsed.repo_path = repo
    store = FeatureStore(config=parsed)
    store.registry  # noqa: B018  opened now, not within a request
    return store


def _without_none(values: list[Any], value_type: str) -> list[Any]:
    """Feast cannot take None as a key; what it gives for the stand-in is not used."""
    stand_in = next((value for value in values if value is not None), "" if value_type == "STRING" else 0)
    return [stand_in if value is None else value for value in values]


def _python(value: Any) -> Any:
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    plain = getattr(value, kind)
    return None if isinstance(plain, float) and math.isnan(plain) else plain
