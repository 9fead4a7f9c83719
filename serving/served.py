"""A version that answers, and the arms among which a model's requests are shared out."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from serving import metrics
from serving.batching import Batcher
from serving.bundle import Bundle
from serving.feast_registry import Service
from serving.gaps import Gap, ViewUsed, views_used
from serving.inputs import Inputs, Instance
from serving.problems import unavailable
from serving.rollout import CHAMPION, Arm, Breaker, Shadow, place


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    name: str
    version: str
    source: str
    bundle: Bundle
    loaded_at: datetime
    arm: str = CHAMPION
    batcher: Batcher = field(init=False, repr=False, compare=False)
    rule: Batcher | None = field(init=False, repr=False, compare=False)  # the way into the baseline rule
    meters: metrics.Meters = field(init=False, repr=False, compare=False)
    _series: dict[tuple[str, ...], Any] = field(init=False, repr=False, compare=False, default_factory=dict)
    _views: list[Any] = field(init=False, repr=False, compare=False, default_factory=lambda: [None, ()])

    def __post_init__(self) -> None:
        # The champion's quick graphs run in the event loop; whatever an arm does, it must not hold up the loop.
        object.__setattr__(self, "batcher", Batcher(self.bundle.graph, always_in_thread=self.arm != CHAMPION))
        object.__setattr__(self, "rule", Batcher(self.bundle.baseline) if self.bundle.baseline else None)
        object.__setattr__(self, "meters", metrics.Meters(self.name, self.version, self.arm))

    def begin(self) -> None:
        """Show in the metrics that the version answers."""
        metrics.answering.labels(*self.meters.labels).set(1)

    def end(self) -> None:
        """Take the version out of the metrics."""
        self.meters.forget()

    def views_used(self, service: Service) -> tuple[ViewUsed, ...]:
        """The views of a service that the model uses; laid out once, until Feast's registry is read again.

        Raises:
            Problem: 503, the service is another one than the model's contract says.
        """
        if self._views[0] is not service:
            _check_service(self.bundle.inputs, service)
            self._views[:] = service, views_used(self.bundle.inputs, service)
        found: tuple[ViewUsed, ...] = self._views[1]
        return found

    def count_gap(self, gap: Gap) -> None:
        self._labelled(metrics.gaps, gap.view, gap.kind, gap.action).inc()

    def count_ruled(self, instances: int) -> None:
        self._labelled(metrics.by_baseline, self.version).inc(instances)

    def _labelled(self, metric: Any, *labels: str) -> Any:
        key = (metric._name, *labels)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = metric.labels(self.name, *labels)
        return found


@dataclass(frozen=True)
class Member:
    """An arm with the version that answers for it."""

    arm: Arm
    served: Served
    breaker: Breaker

    def note_failure(self, error: Exception, instances: int) -> None:
        late = isinstance(error, TimeoutError)
        self.breaker.note(f"no answer within {self.arm.max_seconds:g} s" if late else str(error) or type(error).__name__)
        if late:  # whatever else went wrong was counted where it did
            self.served.meters.failures.inc(instances)


@dataclass(frozen=True)
class Route:
    """Who answers for one model. Swapped whole, so a request sees one state of it."""

    champion: Served
    salt: str = ""
    arms: tuple[Member, ...] = ()
    shadows: tuple[tuple[Shadow, Served], ...] = ()

    def arm_of(self, instance: Instance) -> Member | None:
        """The arm that the instance's entity belongs to; None: the champion.

        The entity is what the join keys say; an instance without any is its own.
        """
        keys = self.champion.bundle.contract.join_keys
        entity = [instance.get(key) for key in keys] if any(key in instance for key in keys) else sorted(instance.items())
        where, upper = place(self.salt, entity), 0.0
        for member in self.arms:
            upper += member.arm.weight
            if where < upper:
                return None if member.breaker.stopped else member
        return None

    @property
    def all(self) -> tuple[Served, ...]:
        """Everything that answers, or is asked beside."""
        return (self.champion, *(member.served for member in self.arms), *(served for _, served in self.shadows))

    def version(self, version: str) -> Served | None:
        """The champion or arm of a version number."""
        return next((served for served in (self.champion, *(member.served for member in self.arms)) if served.version == version), None)


def _check_service(inputs: Inputs, service: Service) -> None:
    contract = inputs.contract
    lacking = [*(name for name in inputs.view_features if name not in service.view_of), *(key for key in service.types if key not in contract.join_keys)]
    if lacking:
        detail = f"feature service '{contract.feature_service}' and the model's contract differ in {', '.join(lacking)}"
        raise unavailable("feature-service-differs", "The feature service is not the model's", detail)
