"""What a look-up lacks for an instance, told apart, and what the project's policy does about it.

A view has no row of the entity (``unknown_entity``), its row is older than the view's TTL (``stale_feature``), or the row has no value
(``missing_feature``). A join key that the caller gives as null names no entity: then nothing is lacking. Neither is what the caller gives itself.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from serving.contract import Action, Kind, LookupPolicy, Value
from serving.feast_registry import Service
from serving.inputs import Inputs, Instance
from serving.looked_up import LookedUp
from serving.problems import Problem

TITLES: dict[Kind, str] = {"unknown_entity": "Unknown entity", "stale_feature": "A feature is stale", "missing_feature": "A feature is missing"}


class ViewUsed(NamedTuple):
    """A view, as a model uses it."""

    name: str
    keys: tuple[str, ...]
    features: tuple[str, ...]
    lives: float | None  # seconds: the view's TTL


@dataclass(frozen=True, slots=True)
class Gap:
    kind: Kind
    view: str
    features: tuple[str, ...]  # those that lack a value
    entity: dict[str, Value]
    action: Action
    feature_time: datetime | None = None  # of the row that is there

    def document(self) -> dict[str, Any]:
        """As answers tell it."""
        return {"kind": self.kind, **self.members(), "action": self.action}

    def members(self) -> dict[str, Any]:
        at = {"feature_time": iso(self.feature_time)} if self.feature_time else {}
        return {"entity": self.entity, "view": self.view, "features": list(self.features), **at}


class Refused(Problem):
    """The project's policy is not to answer such a request."""

    def __init__(self, gap: Gap, number: int) -> None:
        entity = ", ".join(f"{key} {value!r}" for key, value in gap.entity.items())
        at = f" of {iso(gap.feature_time)}" if gap.feature_time else ""
        said = {
            "unknown_entity": f"feature view '{gap.view}' has no row of {entity}",
            "stale_feature": f"feature view '{gap.view}' has of {entity} only values{at}, older than its TTL",
            "missing_feature": f"feature view '{gap.view}' has no value of {', '.join(gap.features)} for {entity}",
        }[gap.kind]
        detail = f"{said}; the model is not asked without (its project's look-up policy). Features that the request gives are not looked up"
        named = next(iter(gap.entity)) if gap.kind == "unknown_entity" else gap.features[0]
        super().__init__(422, gap.kind.replace("_", "-"), TITLES[gap.kind], detail, field=f"instances[{number}].{named}", members=gap.members())
        self.gap = gap


def views_used(inputs: Inputs, service: Service) -> tuple[ViewUsed, ...]:
    """The views that hold what a model looks up."""
    wanted: dict[str, list[str]] = {}
    for name in inputs.view_features:
        wanted.setdefault(service.view_of[name], []).append(name)
    return tuple(ViewUsed(view, service.keys_of[view], tuple(features), service.ttls.get(view)) for view, features in wanted.items())


def judge(
    views: Sequence[ViewUsed], policy: LookupPolicy, now: float | None, instance: Instance, found: LookedUp, ages: list[tuple[str, float]]
) -> tuple[LookedUp, tuple[Gap, ...]]:
    """What an instance is completed with, and what it lacks.

    Args:
        now: by the project's clock; None: nobody can tell, so nothing is stale.
        ages: gets each view whose values were found, and their age in seconds.

    Returns:
        Values, with the project's defaults where something lacks; times of the views whose values are used; the gaps.
    """
    values = found.values
    gaps: list[Gap] = []
    times: dict[str, datetime | None] = dict.fromkeys(found.times)
    for view, keys, features, lives in views:
        lacking = wanted = features if instance.keys().isdisjoint(features) else tuple([name for name in features if name not in instance])
        if not wanted:
            continue
        at = found.times[view]
        kind: Kind | None = None
        if at is None:
            if all(instance[key] is not None for key in keys):
                kind = "unknown_entity"
        else:
            age = (time.time() if now is None else now) - at.timestamp()
            ages.append((view, age))
            if lives is not None and now is not None and age > lives:
                kind = "stale_feature"
            else:
                times[view] = at
                lacking = tuple([name for name in wanted if values[name] is None])
                kind = "missing_feature" if lacking else None
        if kind is None:
            continue
        gaps.append(Gap(kind, view, lacking, {key: instance[key] for key in keys}, policy.action(kind, view), at))
        for name in lacking:
            values[name] = policy.defaults.get(name)
    return LookedUp(values, times), tuple(gaps)


@lru_cache(65536)
def iso(moment: datetime) -> str:
    """As ``2013-06-01T10:00:00Z``."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
