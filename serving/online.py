"""Features straight from Feast's online store, in SQLite or Redis: one round trip for all views and instances, no pandas, no import of Feast."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.feast_registry import NotPlain, Service, SqlRegistry
from serving.looked_up import LookedUp


class OnlineStore:
    """The registry and the online store of a feature_store.yaml.

    Raises:
        NotPlain: they are of a kind that only Feast itself reads.
    """

    def __init__(self, repo: Path, config: dict[str, Any]) -> None:
        registry, online = config.get("registry"), config.get("online_store")
        if not isinstance(registry, dict) or registry.get("registry_type") != "sql" or not isinstance(online, dict):
            raise NotPlain("the registry is no SQL registry")
        if registry.get("enable_online_feature_view_versioning") or config.get("entity_key_serialization_version", 3) != 3:
            raise NotPlain("the store has versions of views, or another version of entity keys than 3")
        project, kind = str(config["project"]), online.get("type")
        self._store: Any
        if kind == "sqlite":
            from serving.online_sqlite import SqliteOnline

            self._store = SqliteOnline(repo / online["path"], project)
        elif kind == "redis" and online.get("redis_type", "redis") == "redis":
            from serving.online_redis import RedisOnline

            self._store = RedisOnline(online["connection_string"], project)
        else:
            raise NotPlain(f"the online store is of type {kind}")
        self._registry = SqlRegistry(registry["path"], project)

    def refresh(self) -> None:
        """Raise if the registry does not answer."""
        self._registry.ping()

    def service(self, name: str) -> Service | None:
        return self._registry.service(name)

    def read_at_once(self, service: Service, rows: Sequence[Mapping[str, Any]]) -> list[LookedUp] | None:
        """``read`` without waiting; None: that cannot be done now, or with this store."""
        keys = _keys(service, rows)
        found = self._store.read_at_once(service.groups, _each_once(keys))
        return None if found is None else _answers(service, len(rows), keys, found)

    async def read(self, service: Service, rows: Sequence[Mapping[str, Any]]) -> list[LookedUp]:
        keys = _keys(service, rows)
        return _answers(service, len(rows), keys, await self._store.read(service.groups, _each_once(keys)))


def _keys(service: Service, rows: Sequence[Mapping[str, Any]]) -> list[list[bytes | None]]:
    """For each group of the service: each row's entity."""
    return [[group.entity(row) for row in rows] for group in service.groups]


def _each_once(keys: list[list[bytes | None]]) -> list[list[bytes]]:
    return [[key for key in dict.fromkeys(mine) if key is not None] for mine in keys]


def _answers(service: Service, count: int, keys: list[list[bytes | None]], found: Sequence[Mapping[bytes | None, LookedUp]]) -> list[LookedUp]:
    answers = []
    for place in range(count):
        answer = LookedUp(dict.fromkeys(service.view_of), dict.fromkeys(service.keys_of))
        for mine, rows_of in zip(keys, found, strict=True):
            if (row := rows_of.get(mine[place])) is not None:
                answer.values.update(row.values)
                answer.times.update(row.times)
        answers.append(answer)
    return answers
