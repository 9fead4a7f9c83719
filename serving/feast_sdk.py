"""Features by way of Feast's own client: for stores that are not read directly. Importing it takes seconds, and a look-up a thread."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.feast_registry import Clock, Service
from serving.looked_up import LookedUp


class FeastStore:
    """Feast's store of a feature_store.yaml, for reading online only.

    The offline store is left out: it can be code of the feature repository, which is not there in the service's image.
    """

    def __init__(self, repo: Path, config: dict[str, Any]) -> None:
        from feast import FeatureStore
        from feast.repo_config import RepoConfig

        config = {name: part for name, part in config.items() if name != "offline_store"}
        registry = config.get("registry")
        config["registry"] = {"path": registry} if isinstance(registry, str) else dict(registry or {})
        config["registry"]["cache_ttl_seconds"] = 0  # for ever: refreshed here, not within a request
        if config["registry"].get("registry_type") == "sql":
            config["registry"]["schema_mode"] = "verify"  # the tables are made by who fills them
            config["registry"]["serve_features_while_materializing"] = True  # else Feast refuses to read a view while it is being filled
        parsed = RepoConfig(**config)
        parsed.repo_path = repo
        self._store = FeatureStore(config=parsed)
        self._store.registry  # noqa: B018  opened now, not within a request
        self._refreshed_at: Any = None

    def refresh(self) -> None:
        """Read the registry again.

        Raises:
            ConnectionError: it does not answer.
        """
        registry = self._store.registry
        registry.refresh()
        if registry.cached_registry_proto_created == self._refreshed_at:
            raise ConnectionError("Feast's registry could not be read again; the one read before is used")  # Feast does not raise
        self._refreshed_at = registry.cached_registry_proto_created

    def service(self, name: str) -> Service | None:
        """A feature service as the registry was when it was last read; None: there is none, or not all of its views."""
        from feast.errors import FeastObjectNotFoundException

        try:
            return self._service(name)
        except FeastObjectNotFoundException:
            return None

    def read_at_once(self, service: Service, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: it is asked in a thread."""

    async def read(self, service: Service, rows: Sequence[Mapping[str, Any]]) -> list[LookedUp]:
        return await asyncio.to_thread(self._read, service, rows)

    def _read(self, service: Service, rows: Sequence[Mapping[str, Any]]) -> list[LookedUp]:
        columns = {key: _without_none([row[key] for row in rows], service.types[key]) for key in service.types}
        proto = self._store.get_online_features(features=service.feast, entity_rows=columns).proto
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

    def _service(self, name: str) -> Service:
        registry, project = self._store.registry, self._store.project
        service = registry.get_feature_service(name, project, allow_cache=True)
        view_of: dict[str, str] = {}
        keys_of: dict[str, tuple[str, ...]] = {}
        types: dict[str, str] = {}
        ttls: dict[str, float] = {}
        materialized = []
        for projection in service.feature_view_projections:
            view = registry.get_any_feature_view(projection.name, project, allow_cache=True)
            renamed = {column.name: projection.join_key_map.get(column.name, column.name) for column in getattr(view, "entity_columns", [])}
            keys_of[projection.name_to_use()] = tuple(renamed.values())
            types |= {renamed[column.name]: column.dtype.to_value_type().name for column in getattr(view, "entity_columns", [])}
            view_of |= {feature.name: projection.name_to_use() for feature in projection.features}
            if lives := getattr(view, "ttl", None):
                ttls[projection.name_to_use()] = lives.total_seconds()
            if getattr(view, "materialization_intervals", None):
                materialized.append((_utc(view.most_recent_end_time), _utc(view.last_updated_timestamp)))
        return Service(view_of, keys_of, types, ttls, Clock.of(dict(service.tags or {}), materialized), feast=service)


def _utc(moment: datetime | None) -> datetime | None:
    """Feast gives times without a zone that mean UTC."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


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
