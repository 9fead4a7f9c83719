"""What the service is made of, for those that answer requests."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving import predict as data_plane
from serving.access import Caller
from serving.inputs import Instance
from serving.lookup import FeatureLookup
from serving.predict import Answered, Prediction, now
from serving.prediction_log import PredictionLog
from serving.registry import ModelRegistry
from serving.served import Route
from serving.settings import Settings
from serving.version_files import Limits

POLL_PATIENCE = 1.0  # seconds by which versions that take long to load may delay the next poll


@dataclass(frozen=True)
class Parts:
    settings: Settings
    registry: ModelRegistry
    lookup: FeatureLookup
    prediction_log: PredictionLog
    shadow_log: PredictionLog

    @classmethod
    def of(cls, settings: Settings) -> "Parts":
        def log(folder: str) -> PredictionLog:
            return PredictionLog(
                settings.log_root, folder=folder, flush_seconds=settings.log_flush_seconds, capacity=settings.log_capacity,
                capacity_bytes=settings.log_bytes, endpoint=settings.s3_endpoint, region=settings.s3_region,
            )  # fmt: skip

        registry = ModelRegistry(
            settings.mlflow_uri, settings.cache, names=settings.model_names, poll_seconds=settings.poll_seconds, threads=settings.threads,
            limits=Limits(settings.max_model_files, settings.max_model_bytes, settings.max_model_bytes), fetch_seconds=settings.fetch_seconds,
            check_seconds=settings.check_seconds, check_bytes=settings.check_bytes, stale_seconds=settings.registry_stale_seconds or None,
            patience=POLL_PATIENCE,
        )  # fmt: skip
        lookup = FeatureLookup(settings.feature_repo, refresh_seconds=settings.feature_registry_seconds)
        return cls(settings, registry, lookup, log("prediction_log"), log("shadow_log"))

    def start(self) -> None:
        self.prediction_log.start()
        self.shadow_log.start()
        self.registry.start()
        self.lookup.start(after=self.registry.imported)

    def close(self) -> None:
        self.lookup.close()
        self.registry.close()
        self.prediction_log.close()
        self.shadow_log.close()

    def keep(self, route: Route, instances: Sequence[Instance], predictions: Sequence[Prediction], started: float, caller: Caller, body_bytes: int) -> None:
        """Log answered predictions, count them, and ask the shadows.

        Args:
            body_bytes: of the request. What a prediction takes in memory until it is written is estimated from them.
        """
        seconds = time.perf_counter() - started
        answered = Answered(predictions, now(), seconds * 1000, caller.name, body_bytes)
        self.prediction_log.append(answered)
        if not route.arms:
            route.champion.meters.note(len(predictions), seconds)
        else:
            for served in {id(p.served): p.served for p in predictions}.values():
                served.meters.note(sum(p.served is served for p in predictions), seconds)
        if route.shadows:
            data_plane.shadow(route, instances, answered, self.lookup, self.shadow_log.append)

    def state(self) -> dict[str, Any]:
        """For the gauges."""
        return {
            "meters": [served.meters for route in self.registry.routes.values() for served in route.all],
            "registry": self.registry.up,
            "registry_age": self.registry.age,
            "rollouts": {name: error is None for name, error in self.registry.rollout_errors().items()},
            "lookup": self.lookup.state == "ready",
            "models": {name: model.state == "ready" for name, model in self.registry.models.items()},
            "lost": {name: model.state == "lost" for name, model in self.registry.models.items()},
            "log": self.prediction_log.stats() | {"oldest": self.prediction_log.oldest},
        }
