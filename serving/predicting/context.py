"""The components of the service, for the request handlers."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.access.callers import Caller
from serving.features.lookup import FeatureLookup
from serving.models.inputs import Instance
from serving.models.loaded_model import Route
from serving.models.registry import ModelRegistry
from serving.models.version_files import FileLimits
from serving.predicting import predict as data_plane
from serving.predicting.predict import AnsweredRequest, Prediction, now
from serving.prediction_log.writer import PredictionLog
from serving.settings import Settings
from serving.turns import CallerTurns

# Seconds by which slow version loads may delay the next poll.
POLL_PATIENCE = 1.0


@dataclass(frozen=True)
class ServingContext:
    settings: Settings
    registry: ModelRegistry
    lookup: FeatureLookup
    prediction_log: PredictionLog
    shadow_log: PredictionLog
    # The checks of feedback.
    turns: CallerTurns

    @classmethod
    def from_settings(cls, settings: Settings) -> "ServingContext":
        def log(folder: str) -> PredictionLog:
            return PredictionLog(
                settings.log_root,
                folder=folder,
                flush_seconds=settings.log_flush_seconds,
                capacity=settings.log_capacity,
                capacity_bytes=settings.log_bytes,
                endpoint=settings.s3_endpoint,
                region=settings.s3_region,
            )

        registry = ModelRegistry(
            settings.mlflow_uri,
            settings.cache,
            names=settings.model_names,
            poll_seconds=settings.poll_seconds,
            threads=settings.threads,
            limits=FileLimits(settings.max_model_files, settings.max_model_bytes, settings.max_model_bytes),
            fetch_seconds=settings.fetch_seconds,
            check_seconds=settings.check_seconds,
            check_bytes=settings.check_bytes,
            stale_seconds=settings.registry_stale_seconds or None,
            patience=POLL_PATIENCE,
        )
        lookup = FeatureLookup(settings.feature_repo, refresh_seconds=settings.feature_registry_seconds)
        return cls(settings, registry, lookup, log("prediction_log"), log("shadow_log"), CallerTurns())

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

    def keep(
        self,
        route: Route,
        instances: Sequence[Instance],
        predictions: Sequence[Prediction],
        started: float,
        caller: Caller,
        body_bytes: int,
    ) -> None:
        """Log answered predictions, update the metrics, and call the shadows.

        Args:
            body_bytes: Length of the request. It is used to estimate the memory that a prediction
                takes until it is written.
        """
        seconds = time.perf_counter() - started
        answered = AnsweredRequest(predictions, now(), seconds * 1000, caller.name, body_bytes)
        self.prediction_log.append(answered)
        if not route.arms:
            route.champion.model_metrics.note(len(predictions), seconds)
        else:
            for served in {id(p.served): p.served for p in predictions}.values():
                served.model_metrics.note(sum(p.served is served for p in predictions), seconds)
        if route.shadows:
            data_plane.shadow(route, instances, answered, self.lookup, self.shadow_log.append)

    def state(self) -> dict[str, Any]:
        """Return the values of the gauges."""
        return {
            "model_metrics": [served.model_metrics for route in self.registry.routes.values() for served in route.all],
            "registry": self.registry.up,
            "registry_age": self.registry.age,
            "rollouts": {name: error is None for name, error in self.registry.rollout_errors().items()},
            "lookup": self.lookup.state == "ready",
            "models": {name: model.state == "ready" for name, model in self.registry.models.items()},
            "lost": {name: model.state == "lost" for name, model in self.registry.models.items()},
            "log": self.prediction_log.stats() | {"oldest": self.prediction_log.oldest},
        }
