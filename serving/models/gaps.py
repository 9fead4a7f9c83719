"""Classify the gaps of a lookup for an instance and apply the project's policy.

* ``unknown_entity``: the view does not have a row of the entity.
* ``stale_feature``: the row is older than the view's TTL.
* ``missing_feature``: the row does not contain a value.

A join key that is null in the request does not name an entity, so this is not a gap. Values that
the request contains are not gaps either.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from serving.features.feast_registry import FeatureService
from serving.features.feature_values import FeatureValues
from serving.models.contract import Action, Kind, LookupPolicy, Value
from serving.models.inputs import Inputs, Instance
from serving.problems import ProblemError

TITLES: dict[Kind, str] = {
    "unknown_entity": "Unknown entity",
    "stale_feature": "A feature is stale",
    "missing_feature": "A feature is missing",
}


class ViewUsed(NamedTuple):
    """A view as a model uses it."""

    name: str
    keys: tuple[str, ...]
    features: tuple[str, ...]
    lives: float | None  # The view's TTL in seconds.


@dataclass(frozen=True, slots=True)
class Gap:
    kind: Kind
    view: str
    features: tuple[str, ...]  # The features without a value.
    entity: dict[str, Value]
    action: Action
    feature_time: datetime | None = None  # The time of the existing row.

    def document(self) -> dict[str, Any]:
        """Return the gap as it appears in answers."""
        return {"kind": self.kind, **self.members(), "action": self.action}

    def members(self) -> dict[str, Any]:
        at = {"feature_time": iso(self.feature_time)} if self.feature_time else {}
        return {"entity": self.entity, "view": self.view, "features": list(self.features), **at}


class LookupRefusedError(ProblemError):
    """Raised if the project's policy refuses a request with this gap."""

    def __init__(self, gap: Gap, number: int) -> None:
        entity = ", ".join(f"{key} {value!r}" for key, value in gap.entity.items())
        at = f" of {iso(gap.feature_time)}" if gap.feature_time else ""
        reason = {
            "unknown_entity": f"feature view '{gap.view}' has no row of {entity}",
            "stale_feature": f"feature view '{gap.view}' has of {entity} only values{at}, older than its TTL",
            "missing_feature": f"feature view '{gap.view}' has no value of {', '.join(gap.features)} for {entity}",
        }[gap.kind]
        detail = (
            f"{reason}; the model is not asked without (its project's look-up policy). Features that the request gives"
            " are not looked up"
        )
        named = next(iter(gap.entity)) if gap.kind == "unknown_entity" else gap.features[0]
        super().__init__(
            422,
            gap.kind.replace("_", "-"),
            TITLES[gap.kind],
            detail,
            field=f"instances[{number}].{named}",
            members=gap.members(),
        )
        self.gap = gap


def views_used(inputs: Inputs, service: FeatureService) -> tuple[ViewUsed, ...]:
    """Return the views that contain the features which a model looks up."""
    features_by_view: dict[str, list[str]] = {}
    for name in inputs.view_features:
        features_by_view.setdefault(service.view_of[name], []).append(name)
    return tuple(
        ViewUsed(view, service.keys_of[view], tuple(features), service.ttls.get(view))
        for view, features in features_by_view.items()
    )


def judge(
    views: Sequence[ViewUsed],
    policy: LookupPolicy,
    now: float | None,
    instance: Instance,
    feature_values: FeatureValues,
    ages: list[tuple[str, float]],
) -> tuple[FeatureValues, tuple[Gap, ...]]:
    """Return the completed values of an instance and its gaps.

    Args:
        now: The time of the project's clock, or None if it is unknown. Then no value is stale.
        ages: Receives each view with values, and their age in seconds.

    Returns:
        The values, with the project's defaults for gaps, and the times of the views whose values
            are used. Then the gaps.
    """
    values = feature_values.values
    gaps: list[Gap] = []
    times: dict[str, datetime | None] = dict.fromkeys(feature_values.times)
    for view, keys, features, lives in views:
        lacking = needed = (
            features
            if instance.keys().isdisjoint(features)
            else tuple([name for name in features if name not in instance])
        )
        if not needed:
            continue
        at = feature_values.times[view]
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
                lacking = tuple([name for name in needed if values[name] is None])
                kind = "missing_feature" if lacking else None
        if kind is None:
            continue
        gaps.append(Gap(kind, view, lacking, {key: instance[key] for key in keys}, policy.action(kind, view), at))
        for name in lacking:
            values[name] = policy.defaults.get(name)
    return FeatureValues(values, times), tuple(gaps)


@lru_cache(65536)
def iso(moment: datetime) -> str:
    """Return the time in the form ``2013-06-01T10:00:00Z``."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
