"""Read features directly from Feast's online store, in SQLite or Redis.

All views and instances are read in one round trip, without pandas and without importing Feast.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.features.feast_registry import FeatureService, NotPlainError, SqlRegistry
from serving.features.feature_values import FeatureValues


class OnlineStore:
    """The registry and the online store of a feature_store.yaml.

    Raises:
        NotPlainError: Only Feast itself can read a registry or store of this kind.
    """

    def __init__(self, repo: Path, config: dict[str, Any]) -> None:
        registry, online = config.get("registry"), config.get("online_store")
        if not isinstance(registry, dict) or registry.get("registry_type") != "sql" or not isinstance(online, dict):
            raise NotPlainError("the registry is no SQL registry")
        if (
            registry.get("enable_online_feature_view_versioning")
            or config.get("entity_key_serialization_version", 3) != 3
        ):
            raise NotPlainError("the store has versions of views, or another version of entity keys than 3")
        project, kind = str(config["project"]), online.get("type")
        self._store: Any
        if kind == "sqlite":
            from serving.features.online_sqlite import SqliteOnline

            self._store = SqliteOnline(repo / online["path"], project)
        elif kind == "redis" and online.get("redis_type", "redis") == "redis":
            from serving.features.online_redis import RedisOnline

            self._store = RedisOnline(online["connection_string"], project)
        else:
            raise NotPlainError(f"the online store is of type {kind}")
        self._registry = SqlRegistry(registry["path"], project)

    def refresh(self) -> None:
        """Raise an error if the registry is unavailable."""
        self._registry.ping()

    def service(self, name: str) -> FeatureService | None:
        return self._registry.service(name)

    def read_at_once(self, service: FeatureService, rows: Sequence[Mapping[str, Any]]) -> list[FeatureValues] | None:
        """Return the result of ``read`` without waiting, or None if that is not possible."""
        keys = _keys(service, rows)
        features = self._store.read_at_once(service.groups, _each_once(keys))
        return None if features is None else _answers(service, len(rows), keys, features)

    async def read(self, service: FeatureService, rows: Sequence[Mapping[str, Any]]) -> list[FeatureValues]:
        keys = _keys(service, rows)
        return _answers(service, len(rows), keys, await self._store.read(service.groups, _each_once(keys)))


def _keys(service: FeatureService, rows: Sequence[Mapping[str, Any]]) -> list[list[bytes | None]]:
    """Return the entity key of each row, per group of the service."""
    return [[group.entity(row) for row in rows] for group in service.groups]


def _each_once(keys: list[list[bytes | None]]) -> list[list[bytes]]:
    return [[key for key in dict.fromkeys(mine) if key is not None] for mine in keys]


def _answers(
    service: FeatureService,
    count: int,
    keys: list[list[bytes | None]],
    features: Sequence[Mapping[bytes | None, FeatureValues]],
) -> list[FeatureValues]:
    answers = []
    for place in range(count):
        answer = FeatureValues(dict.fromkeys(service.view_of), dict.fromkeys(service.keys_of))
        for mine, rows_of in zip(keys, features, strict=True):
            if (row := rows_of.get(mine[place])) is not None:
                answer.values.update(row.values)
                answer.times.update(row.times)
        answers.append(answer)
    return answers
