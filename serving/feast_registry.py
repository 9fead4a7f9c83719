"""Feast's SQL registry, read without Feast: what a feature service is made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.feast_wire import TYPES, collect


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


@dataclass(frozen=True)
class Service:
    """A feature service as the registry has it now."""

    view_of: dict[str, str]  # feature -> view
    keys_of: dict[str, tuple[str, ...]]  # view -> join keys, as the request names them
    types: dict[str, str]  # join key -> Feast's value type
    views: tuple[View, ...] = ()
    feast: Any = None  # feast.FeatureService, where Feast itself is asked


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
            views = []
            for projection in collect(collect(row)[1][0]).get(3, []):
                parts = collect(projection)
                stored = parts[1][0].decode()
                found = self._one(connection, "feature_view", stored)
                if found is None:
                    if self._elsewhere(connection, stored):
                        raise NotPlain(f"feature view '{stored}' is a stream or on-demand view")
                    return None
                views.append(_view(stored, parts, collect(collect(found)[1][0])))
        view_of = {feature: view.name for view in views for feature in view.features}
        types = {asked: kind for view in views for asked, (_, kind) in zip(view.asked, view.keys, strict=True)}
        return Service(view_of, {view.name: view.asked for view in views}, types, tuple(views))

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


def _column(message: bytes) -> tuple[str, str]:
    parts = collect(message)
    return parts[1][0].decode(), TYPES.get(parts.get(2, [0])[0], "")
