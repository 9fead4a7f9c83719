"""Feast's SQL registry, read without Feast: what a feature service is made of."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from serving.feast_wire import TYPES, collect, entity_key, moment, seconds

REPLAY = "replay"  # the value of a feature service's tag "clock" whose project lives at another time than now


class NotPlain(Exception):
    """The registry or the store is of a kind that only Feast itself can read; the message says which."""


@dataclass(frozen=True)
class View:
    """A feature view as a service takes it."""

    name: str  # in answers
    stored: str  # in the online store
    keys: tuple[tuple[str, str], ...]  # join keys as stored, with their Feast type, sorted by name
    asked: tuple[str, ...]  # the same keys as requests name them
    features: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Views of one service that hang on the same entity: they are asked for together. Made once for each service, and told apart by which it is."""

    keys: tuple[tuple[str, str], ...]
    asked: tuple[str, ...]
    views: tuple[View, ...]

    def entity(self, row: Mapping[str, Any]) -> bytes | None:
        """The row's entity, as the online store has it; None: a key is null, which names none."""
        values = tuple([row[name] for name in self.asked])
        return None if None in values else entity_key(self.keys, values)


@dataclass(frozen=True)
class Clock:
    """What time it is for a project.

    A project whose upstream is a replay lives at the time up to which its features were last materialized, and as long after it as has passed since:
    nothing else that serving can see tells the time of 2013. All others live now.
    """

    until: float | None = None  # features are materialized up to here; None: nobody can tell the replay's time yet
    at: float = 0.0  # when they were
    replay: bool = False

    def now(self) -> float | None:
        """Seconds since 1970; None: it cannot be told."""
        if not self.replay:
            return time.time()
        return None if self.until is None else self.until + max(0.0, time.time() - self.at)

    @classmethod
    def of(cls, tags: dict[str, str], materialized: list[tuple[datetime | None, datetime | None]]) -> "Clock":
        """Of a feature service's tags and, of each of its views, until when and at what time it was last materialized."""
        if tags.get("clock") != REPLAY:
            return cls()
        known = [(until.timestamp(), at.timestamp()) for until, at in materialized if until and at]
        until, at = max(known, key=lambda one: one[0] - one[1], default=(None, 0.0))
        return cls(until, at, replay=True)


@dataclass(frozen=True)
class Service:
    """A feature service as the registry has it now."""

    view_of: dict[str, str]  # feature -> view
    keys_of: dict[str, tuple[str, ...]]  # view -> join keys, as the request names them
    types: dict[str, str]  # join key -> Feast's value type
    ttls: dict[str, float] = field(default_factory=dict)  # view -> seconds that its values live; those without a view live for ever
    clock: Clock = Clock()
    views: tuple[View, ...] = ()
    feast: Any = field(default=None, compare=False)  # feast.FeatureService, where Feast itself is asked

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The views by their entity."""
        found: dict[tuple[Any, ...], list[View]] = {}
        for view in self.views:
            found.setdefault((view.keys, view.asked), []).append(view)
        return tuple(Group(keys, asked, tuple(views)) for (keys, asked), views in found.items())


class SqlRegistry:
    """The tables of a registry of type ``sql``."""

    def __init__(self, url: str, project: str) -> None:
        import sqlalchemy

        self.project = project
        self._url = sqlalchemy.make_url(url)
        self._text = sqlalchemy.text
        self._engine = sqlalchemy.create_engine(self._url, pool_size=1, max_overflow=1, pool_pre_ping=True)

    def service(self, name: str) -> Service | None:
        """A feature service with its views; None: there is none of that name, or one of its views is not there.

        Raises:
            NotPlain: it has a view that is computed on demand, or a feature that is no scalar.
            sqlalchemy.exc.SQLAlchemyError, FileNotFoundError: the registry does not answer.
        """
        if self._url.get_backend_name() == "sqlite" and not Path(self._url.database or "").exists():
            raise FileNotFoundError(f"Feast's registry {self._url.database} is not there yet")  # SQLite would make an empty one
        with self._engine.connect() as connection:
            row = self._one(connection, "feature_service", name)
            if row is None:
                return None
            views, ttls, materialized = [], {}, []
            spec = collect(collect(row)[1][0])
            for projection in spec.get(3, []):
                parts = collect(projection)
                stored = parts[1][0].decode()
                found = self._one(connection, "feature_view", stored)
                if found is None:
                    if self._elsewhere(connection, stored):
                        raise NotPlain(f"feature view '{stored}' is a stream or on-demand view")
                    return None
                whole = collect(found)
                views.append(_view(stored, parts, collect(whole[1][0])))
                if lives := seconds(collect(whole[1][0]).get(6, [b""])[0]):
                    ttls[views[-1].name] = lives
                materialized.append(_materialized(collect(whole[2][0]) if 2 in whole else {}))
        view_of = {feature: view.name for view in views for feature in view.features}
        types = {asked: kind for view in views for asked, (_, kind) in zip(view.asked, view.keys, strict=True)}
        tags = {entry[1][0].decode(): entry.get(2, [b""])[0].decode() for entry in map(collect, spec.get(4, []))}
        return Service(view_of, {view.name: view.asked for view in views}, types, ttls, Clock.of(tags, materialized), tuple(views))

    def ping(self) -> None:
        """Raise if the registry does not answer."""
        self.service("")

    def _one(self, connection: Any, kind: str, name: str) -> bytes | None:
        query = self._text(f"SELECT {kind}_proto FROM {kind}s WHERE {kind}_name = :name AND project_id = :project")
        found = connection.execute(query, {"name": name, "project": self.project}).scalar()
        return None if found is None else bytes(found)

    def _elsewhere(self, connection: Any, name: str) -> bool:
        tables = ("stream_feature_views", "on_demand_feature_views")
        query = "SELECT 1 FROM {} WHERE feature_view_name = :name AND project_id = :project"
        given = {"name": name, "project": self.project}
        return any(connection.execute(self._text(query.format(table)), given).scalar() is not None for table in tables)


def _view(stored: str, projection: dict[int, list[Any]], spec: dict[int, list[Any]]) -> View:
    alias = projection.get(3, [b""])[0].decode()
    renamed = {entry[1][0].decode(): entry[2][0].decode() for entry in map(collect, projection.get(4, []))}
    columns = sorted(_column(column) for column in spec.get(12, []))
    features = [_column(column) for column in projection.get(2, [])]
    if any(kind not in ("STRING", "INT32", "INT64") for _, kind in columns) or any(not kind for _, kind in features):
        raise NotPlain(f"feature view '{stored}' has keys or features of a type that only Feast reads")
    if any(name.startswith("__") for name, _ in columns):
        raise NotPlain(f"feature view '{stored}' has no entity")
    return View(alias or stored, stored, tuple(columns), tuple(renamed.get(name, name) for name, _ in columns), tuple(name for name, _ in features))


def _materialized(meta: dict[int, list[Any]]) -> tuple[datetime | None, datetime | None]:
    """Until when a view is materialized, and when that was done: its entry is written anew by each materialization."""
    ends = [found for interval in map(collect, meta.get(3, [])) if (found := moment(interval.get(2, [b""])[0]))]
    return max(ends, default=None), moment(meta.get(2, [b""])[0])


def _column(message: bytes) -> tuple[str, str]:
    parts = collect(message)
    return parts[1][0].decode(), TYPES.get(parts.get(2, [0])[0], "")
