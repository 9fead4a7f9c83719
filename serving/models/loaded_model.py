"""A loaded version, and the arms among which a model's requests are divided."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from serving import metrics
from serving.features.feast_registry import FeatureService
from serving.models.batching import Batcher
from serving.models.bundle import Bundle
from serving.models.gaps import Gap, ViewUsed, views_used
from serving.models.inputs import Inputs, Instance
from serving.models.rollout import CHAMPION, Arm, Breaker, Shadow, place
from serving.problems import unavailable

# Types of an instance's values. Other ones are refused by every version.
SCALARS = frozenset((float, int, str, bool, type(None)))


@dataclass(frozen=True)
class LoadedModel:
    """A version of a model that answers."""

    name: str
    version: str
    source: str
    bundle: Bundle
    loaded_at: datetime
    arm: str = CHAMPION
    batcher: Batcher = field(init=False, repr=False, compare=False)
    # The queue of the baseline rule.
    rule: Batcher | None = field(init=False, repr=False, compare=False)
    model_metrics: metrics.ModelMetrics = field(init=False, repr=False, compare=False)
    _series: dict[tuple[str, ...], Any] = field(init=False, repr=False, compare=False, default_factory=dict)
    _views: list[Any] = field(init=False, repr=False, compare=False, default_factory=lambda: [None, ()])

    def __post_init__(self) -> None:
        # The champion's fast graphs run in the event loop. An arm's graph must not be able to block
        # the event loop.
        object.__setattr__(self, "batcher", Batcher(self.bundle.graph, always_in_thread=self.arm != CHAMPION))
        object.__setattr__(self, "rule", Batcher(self.bundle.baseline) if self.bundle.baseline else None)
        object.__setattr__(self, "model_metrics", metrics.ModelMetrics(self.name, self.version, self.arm))

    def begin(self) -> None:
        """Start the version's series in the metrics."""
        metrics.answering.labels(*self.model_metrics.labels).set(1)

    def end(self) -> None:
        """End the version's series in the metrics."""
        self.model_metrics.forget()

    def views_used(self, service: FeatureService) -> tuple[ViewUsed, ...]:
        """Return the views of a service that the model uses.

        The result is cached until Feast's registry is read again.

        Raises:
            ProblemError: 503 if the service differs from the model's contract.
        """
        if self._views[0] is not service:
            _check_service(self.bundle.inputs, service)
            self._views[:] = service, views_used(self.bundle.inputs, service)
        views: tuple[ViewUsed, ...] = self._views[1]
        return views

    def count_gap(self, gap: Gap) -> None:
        self._labelled(metrics.gaps, gap.view, gap.kind, gap.action).inc()

    def count_ruled(self, instances: int) -> None:
        self._labelled(metrics.by_baseline, self.version).inc(instances)

    def _labelled(self, metric: Any, *labels: str) -> Any:
        key = (metric._name, *labels)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = metric.labels(self.name, *labels)
        return series


@dataclass(frozen=True)
class Member:
    """An arm with the version that answers for it."""

    arm: Arm
    served: LoadedModel
    breaker: Breaker

    def note_failure(self, error: Exception, instances: int) -> None:
        late = isinstance(error, TimeoutError)
        self.breaker.note(
            f"no answer within {self.arm.max_seconds:g} s" if late else str(error) or type(error).__name__
        )
        if late:  # Other failures are counted where they occur.
            self.served.model_metrics.failures.inc(instances)


@dataclass(frozen=True)
class Route:
    """The versions that answer for one model.

    It is replaced as a whole, so a request sees a consistent state.
    """

    champion: LoadedModel
    salt: str = ""
    arms: tuple[Member, ...] = ()
    shadows: tuple[tuple[Shadow, LoadedModel], ...] = ()

    def arm_of(self, instance: Instance) -> Member | None:
        """Return the arm of the instance's entity, or None for the champion.

        The join keys define the entity. An instance without any join key is its own entity.
        Instances are not checked yet. The champion gets an instance that no version accepts, and
        refuses it.
        """
        if len(instance) > self._most_names or not SCALARS.issuperset(map(type, instance.values())):
            return None
        keys = self.champion.bundle.contract.join_keys
        entity = (
            [instance.get(key) for key in keys] if any(key in instance for key in keys) else sorted(instance.items())
        )
        where, upper = place(self.salt, entity), 0.0
        for member in self.arms:
            upper += member.arm.weight
            if where < upper:
                return None if member.breaker.stopped else member
        return None

    @cached_property
    def _most_names(self) -> int:
        """Names that an instance may have: those that some version takes."""
        return len(frozenset().union(*(served.bundle.inputs.known for served in self.all)))

    @property
    def all(self) -> tuple[LoadedModel, ...]:
        """Return all versions that answer or are shadows."""
        return (self.champion, *(member.served for member in self.arms), *(served for _, served in self.shadows))

    def version(self, version: str) -> LoadedModel | None:
        """Return the champion or arm with a version number, or None if neither has it."""
        return next(
            (
                served
                for served in (self.champion, *(member.served for member in self.arms))
                if served.version == version
            ),
            None,
        )


def _check_service(inputs: Inputs, service: FeatureService) -> None:
    contract = inputs.contract
    lacking = [
        *(name for name in inputs.view_features if name not in service.view_of),
        *(key for key in service.types if key not in contract.join_keys),
    ]
    if lacking:
        detail = f"feature service '{contract.feature_service}' and the model's contract differ in {', '.join(lacking)}"
        raise unavailable("feature-service-differs", "The feature service is not the model's", detail)
