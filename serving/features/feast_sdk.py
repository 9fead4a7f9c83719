"""Read features with Feast's own client, for stores that are not read directly.

Importing Feast takes seconds, and each lookup occupies a thread.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.features.feast_registry import Clock, FeatureService
from serving.features.feature_values import FeatureValues


class FeastStore:
    """The online store of a feature_store.yaml, read with Feast's client.

    The offline store is omitted from the configuration. Its class can be part of the feature
    repository, which the service's image does not contain.
    """

    def __init__(self, repo: Path, config: dict[str, Any]) -> None:
        from feast import FeatureStore
        from feast.repo_config import RepoConfig

        config = {name: part for name, part in config.items() if name != "offline_store"}
        registry = config.get("registry")
        config["registry"] = {"path": registry} if isinstance(registry, str) else dict(registry or {})
        # The cache never expires. It is refreshed here and not within a request.
        config["registry"]["cache_ttl_seconds"] = 0
        if config["registry"].get("registry_type") == "sql":
            # The process that fills the tables creates them.
            config["registry"]["schema_mode"] = "verify"
            # Without this setting, Feast does not read a view while it is being materialized.
            config["registry"]["serve_features_while_materializing"] = True
        parsed = RepoConfig(**config)
        parsed.repo_path = repo
        self._store = FeatureStore(config=parsed)
        self._store.registry  # noqa: B018  opened now, not within a request
        self._refreshed_at: Any = None

    def refresh(self) -> None:
        """Read the registry again.

        Raises:
            ConnectionError: The registry is unavailable.
        """
        registry = self._store.registry
        registry.refresh()
        if registry.cached_registry_proto_created == self._refreshed_at:
            # Feast does not raise an error.
            raise ConnectionError("Feast's registry could not be read again; the one read before is used")
        self._refreshed_at = registry.cached_registry_proto_created

    def service(self, name: str) -> FeatureService | None:
        """Return a feature service as of the last refresh, or None if it or a view is missing."""
        from feast.errors import FeastObjectNotFoundException

        try:
            return self._service(name)
        except FeastObjectNotFoundException:
            return None

    def read_at_once(self, service: FeatureService, rows: Sequence[Mapping[str, Any]]) -> None:
        """Return None, because Feast's client must be called in a thread."""

    async def read(self, service: FeatureService, rows: Sequence[Mapping[str, Any]]) -> list[FeatureValues]:
        return await asyncio.to_thread(self._read, service, rows)

    def _read(self, service: FeatureService, rows: Sequence[Mapping[str, Any]]) -> list[FeatureValues]:
        columns = {key: _without_none([row[key] for row in rows], service.types[key]) for key in service.types}
        proto = self._store.get_online_features(features=service.feast, entity_rows=columns).proto
        features = [FeatureValues(dict.fromkeys(service.view_of), dict.fromkeys(service.keys_of)) for _ in rows]
        keyless = {
            view: {i for i, row in enumerate(rows) if any(row[key] is None for key in keys)}
            for view, keys in service.keys_of.items()
        }
        timed: set[str] = set()
        for feature, vector in zip(proto.metadata.feature_names.val, proto.results, strict=True):
            view = service.view_of.get(feature)
            if view is None:
                continue  # Feast also returns the join keys.
            for i, value in enumerate(vector.values):
                if i not in keyless[view]:
                    features[i].values[feature] = _python(value)
            # All features of a view come from one row and have the same time.
            if view not in timed:
                timed.add(view)
                for i, moment in enumerate(vector.event_timestamps):
                    # An unset time means that the store does not have a row.
                    if i not in keyless[view] and (moment.seconds or moment.nanos):
                        features[i].times[view] = moment.ToDatetime(tzinfo=UTC)
        return features

    def _service(self, name: str) -> FeatureService:
        registry, project = self._store.registry, self._store.project
        service = registry.get_feature_service(name, project, allow_cache=True)
        view_of: dict[str, str] = {}
        keys_of: dict[str, tuple[str, ...]] = {}
        types: dict[str, str] = {}
        ttls: dict[str, float] = {}
        materialized = []
        for projection in service.feature_view_projections:
            view = registry.get_any_feature_view(projection.name, project, allow_cache=True)
            renamed = {
                column.name: projection.join_key_map.get(column.name, column.name)
                for column in getattr(view, "entity_columns", [])
            }
            keys_of[projection.name_to_use()] = tuple(renamed.values())
            types |= {
                renamed[column.name]: column.dtype.to_value_type().name
                for column in getattr(view, "entity_columns", [])
            }
            view_of |= {feature.name: projection.name_to_use() for feature in projection.features}
            if lives := getattr(view, "ttl", None):
                ttls[projection.name_to_use()] = lives.total_seconds()
            if getattr(view, "materialization_intervals", None):
                materialized.append((_utc(view.most_recent_end_time), _utc(view.last_updated_timestamp)))
        return FeatureService(
            view_of, keys_of, types, ttls, Clock.from_tags(dict(service.tags or {}), materialized), feast=service
        )


def _utc(moment: datetime | None) -> datetime | None:
    """Return the time with the zone UTC. Feast returns UTC times without a zone."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def _without_none(values: list[Any], value_type: str) -> list[Any]:
    """Replace None, which Feast does not accept as a key. The stand-in's results are not used."""
    stand_in = next((value for value in values if value is not None), "" if value_type == "STRING" else 0)
    return [stand_in if value is None else value for value in values]


def _python(value: Any) -> Any:
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    plain = getattr(value, kind)
    return None if isinstance(plain, float) and math.isnan(plain) else plain
