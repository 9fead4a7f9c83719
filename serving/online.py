"""Features straight from Feast's online store, in SQLite or Redis: one round trip for all views and instances, no pandas, no import of Feast."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.feast_registry import NotPlain, Service, SqlRegistry
from serving.feast_wire import entity_key
from serving.looked_up import LookedUp

NO_ROW: tuple[None, dict[str, Any]] = (None, {})


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

    async def read(self, service: Service, rows: Sequence[Mapping[str, Any]]) -> list[LookedUp]:
        keys: list[list[bytes | None]] = []
        for view in service.views:
            mine: list[bytes | None] = []
            for row in rows:
                values = tuple([row[name] for name in view.asked])
                mine.append(None if None in values else entity_key(view.keys, values))
            keys.append(mine)
        asked = [list(dict.fromkeys(key for key in mine if key is not None)) for mine in keys]
        wanted = [number for number, some in enumerate(asked) if some]
        read = await self._store.read([service.views[number] for number in wanted], [asked[number] for number in wanted]) if wanted else []
        found = dict(zip(wanted, read, strict=True))
        answers = []
        for place in range(len(rows)):
            values_of: dict[str, Any] = dict.fromkeys(service.view_of)
            times: dict[str, Any] = dict.fromkeys(service.keys_of)
            for number, view in enumerate(service.views):
                key = keys[number][place]
                at, stored = found[number].get(key, NO_ROW) if key is not None else NO_ROW
                if at is not None:
                    times[view.name] = at
                    for feature in view.features:
                        values_of[feature] = stored.get(feature)
            answers.append(LookedUp(values_of, times))
        return answers
