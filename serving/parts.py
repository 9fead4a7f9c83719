"""What the service is made of, for those that answer requests."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving import predict as data_plane
from serving.inputs import Instance
from serving.lookup import FeatureLookup
from serving.predict import Answered, Prediction, now
from serving.prediction_log import PredictionLog
from serving.registry import ModelRegistry
from serving.served import Route
from serving.settings import Settings


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
                endpoint=settings.s3_endpoint, region=settings.s3_region,
            )  # fmt: skip

        registry = ModelRegistry(settings.mlflow_uri, settings.cache, names=settings.model_names, poll_seconds=settings.poll_seconds, threads=settings.threads)
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

    def keep(self, route: Route, instances: Sequence[Instance], predictions: Sequence[Prediction], started: float) -> None:
        """Log answered predictions, count them, and ask the shadows."""
        seconds = time.perf_counter() - started
        self.prediction_log.append(Answered(predictions, now(), seconds * 1000))
        if not route.arms:
            route.champion.meters.note(len(predictions), seconds)
        else:
            for served in {id(p.served): p.served for p in predictions}.values():
                served.meters.note(sum(p.served is served for p in predictions), seconds)
        if route.shadows:
            data_plane.shadow(route, instances, predictions, self.lookup, self.shadow_log.append)

    def state(self) -> dict[str, Any]:
        """For the gauges."""
        return {
            "meters": [served.meters for route in self.registry.routes.values() for served in route.all],
            "registry": self.registry.polled_at is not None and self.registry.error is None,
            "lookup": self.lookup.state == "ready",
            "models": {name: model.state == "ready" for name, model in self.registry.models.items()},
            "log": self.prediction_log.stats() | {"oldest": self.prediction_log.oldest},
        }
