"""Read feature services from Feast's SQL registry without importing Feast."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from serving.features.feast_wire import TYPES, collect, entity_key, moment, seconds

# The value of a feature service's tag "clock" if the project's time is not the current time.
REPLAY = "replay"


class NotPlainError(Exception):
    """Raised if only Feast can read the registry or the store. The message contains the reason."""


@dataclass(frozen=True)
class FeatureView:
    """A feature view as a service uses it."""

    name: str  # The name in answers.
    stored: str  # The name in the online store.
    # Join keys as stored, with their Feast type, sorted by name.
    keys: tuple[tuple[str, str], ...]
    # The same keys with the names that requests use.
    request_keys: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class EntityGroup:
    """Views of one service with the same entity, which are read together.

    Groups are created once per service and compared by identity.
    """

    keys: tuple[tuple[str, str], ...]
    request_keys: tuple[str, ...]
    views: tuple[FeatureView, ...]

    def entity(self, row: Mapping[str, Any]) -> bytes | None:
        """Return the key of the row's entity in the online store, or None if a join key is null."""
        values = tuple([row[name] for name in self.request_keys])
        return None if None in values else entity_key(self.keys, values)


@dataclass(frozen=True)
class Clock:
    """The current time of a project.

    For a project that replays past data, the current time is the end of the last materialization
    plus the time that has passed since. Serving does not have another source for a replay's time.
    All other projects use the system time.
    """

    # The time up to which features are materialized, or None if a replay's time is not known yet.
    until: float | None = None
    at: float = 0.0  # The time of that materialization.
    replay: bool = False

    def now(self) -> float | None:
        """Return the seconds since 1970, or None if the time is unknown."""
        if not self.replay:
            return time.time()
        return None if self.until is None else self.until + max(0.0, time.time() - self.at)

    @classmethod
    def from_tags(cls, tags: dict[str, str], materialized: list[tuple[datetime | None, datetime | None]]) -> "Clock":
        """Return the clock for a feature service's tags and its views' last materializations.

        Each materialization is a pair: its end in feature time, and the time when it ran.
        """
        if tags.get("clock") != REPLAY:
            return cls()
        known = [(until.timestamp(), at.timestamp()) for until, at in materialized if until and at]
        until, at = max(known, key=lambda one: one[0] - one[1], default=(None, 0.0))
        return cls(until, at, replay=True)


@dataclass(frozen=True)
class FeatureService:
    """The current state of a feature service in the registry."""

    view_of: dict[str, str]  # Feature -> view.
    # View -> join keys with the names that requests use.
    keys_of: dict[str, tuple[str, ...]]
    types: dict[str, str]  # Join key -> Feast's value type.
    # View -> TTL of its values in seconds. Values of other views do not expire.
    ttls: dict[str, float] = field(default_factory=dict)
    clock: Clock = Clock()
    views: tuple[FeatureView, ...] = ()
    # feast.FeatureService, if features are read with Feast itself.
    feast: Any = field(default=None, compare=False)

    @cached_property
    def groups(self) -> tuple[EntityGroup, ...]:
        """Return the views grouped by entity."""
        views_by_keys: dict[tuple[Any, ...], list[FeatureView]] = {}
        for view in self.views:
            views_by_keys.setdefault((view.keys, view.request_keys), []).append(view)
        return tuple(
            EntityGroup(keys, request_keys, tuple(views)) for (keys, request_keys), views in views_by_keys.items()
        )


class SqlRegistry:
    """The tables of a registry of type ``sql``."""

    def __init__(self, url: str, project: str) -> None:
        import sqlalchemy

        self.project = project
        self._url = sqlalchemy.make_url(url)
        self._text = sqlalchemy.text
        self._engine = sqlalchemy.create_engine(self._url, pool_size=1, max_overflow=1, pool_pre_ping=True)

    def service(self, name: str) -> FeatureService | None:
        """Return a feature service with its views, or None if it or one of its views is missing.

        Raises:
            NotPlainError: The service has an on-demand view, or a feature that is not a scalar.
            sqlalchemy.exc.SQLAlchemyError, FileNotFoundError: The registry is unavailable.
        """
        if self._url.get_backend_name() == "sqlite" and not Path(self._url.database or "").exists():
            # SQLite would create an empty file.
            raise FileNotFoundError(f"Feast's registry {self._url.database} is not there yet")
        with self._engine.connect() as connection:
            row = self._one(connection, "feature_service", name)
            if row is None:
                return None
            views, ttls, materialized = [], {}, []
            spec = collect(collect(row)[1][0])
            for projection in spec.get(3, []):
                parts = collect(projection)
                stored = parts[1][0].decode()
                content = self._one(connection, "feature_view", stored)
                if content is None:
                    if self._elsewhere(connection, stored):
                        raise NotPlainError(f"feature view '{stored}' is a stream or on-demand view")
                    return None
                whole = collect(content)
                views.append(_view(stored, parts, collect(whole[1][0])))
                if lives := seconds(collect(whole[1][0]).get(6, [b""])[0]):
                    ttls[views[-1].name] = lives
                materialized.append(_materialized(collect(whole[2][0]) if 2 in whole else {}))
        view_of = {feature: view.name for view in views for feature in view.features}
        types = {key: kind for view in views for key, (_, kind) in zip(view.request_keys, view.keys, strict=True)}
        tags = {entry[1][0].decode(): entry.get(2, [b""])[0].decode() for entry in map(collect, spec.get(4, []))}
        return FeatureService(
            view_of,
            {view.name: view.request_keys for view in views},
            types,
            ttls,
            Clock.from_tags(tags, materialized),
            tuple(views),
        )

    def ping(self) -> None:
        """Raise an error if the registry is unavailable."""
        self.service("")

    def _one(self, connection: Any, kind: str, name: str) -> bytes | None:
        query = self._text(f"SELECT {kind}_proto FROM {kind}s WHERE {kind}_name = :name AND project_id = :project")
        content = connection.execute(query, {"name": name, "project": self.project}).scalar()
        return None if content is None else bytes(content)

    def _elsewhere(self, connection: Any, name: str) -> bool:
        tables = ("stream_feature_views", "on_demand_feature_views")
        query = "SELECT 1 FROM {} WHERE feature_view_name = :name AND project_id = :project"
        given = {"name": name, "project": self.project}
        return any(connection.execute(self._text(query.format(table)), given).scalar() is not None for table in tables)


def _view(stored: str, projection: dict[int, list[Any]], spec: dict[int, list[Any]]) -> FeatureView:
    alias = projection.get(3, [b""])[0].decode()
    renamed = {entry[1][0].decode(): entry[2][0].decode() for entry in map(collect, projection.get(4, []))}
    columns = sorted(_column(column) for column in spec.get(12, []))
    features = [_column(column) for column in projection.get(2, [])]
    if any(kind not in ("STRING", "INT32", "INT64") for _, kind in columns) or any(not kind for _, kind in features):
        raise NotPlainError(f"feature view '{stored}' has keys or features of a type that only Feast reads")
    if any(name.startswith("__") for name, _ in columns):
        raise NotPlainError(f"feature view '{stored}' has no entity")
    return FeatureView(
        alias or stored,
        stored,
        tuple(columns),
        tuple(renamed.get(name, name) for name, _ in columns),
        tuple(name for name, _ in features),
    )


def _materialized(meta: dict[int, list[Any]]) -> tuple[datetime | None, datetime | None]:
    """Return the end of a view's materialized interval, and the time of the materialization.

    Each materialization rewrites the view's registry entry.
    """
    ends = [end for interval in map(collect, meta.get(3, [])) if (end := moment(interval.get(2, [b""])[0]))]
    return max(ends, default=None), moment(meta.get(2, [b""])[0])


def _column(message: bytes) -> tuple[str, str]:
    parts = collect(message)
    return parts[1][0].decode(), TYPES.get(parts.get(2, [0])[0], "")
