"""Complete request instances to full model inputs.

Each instance is checked alone, and missing inputs are looked up in Feast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from serving.features.feast_registry import FeatureService
from serving.features.feature_values import FeatureValues
from serving.features.lookup import FeatureLookup
from serving.models.contract import Value
from serving.models.gaps import Gap, LookupRefusedError, judge
from serving.models.inputs import Instance
from serving.models.loaded_model import LoadedModel
from serving.turns import in_turns

NO_TIMES: dict[str, datetime | None] = {}
NO_GAPS: tuple[Gap, ...] = ()
# Maximum number of entities in one round trip. A store answers them in one step of the event loop
# or in one of its threads.
LOOKED_UP_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class CompletedInstances:
    """The result of ``complete``, per instance.

    It holds every input of the model, the times of the views that were used, and the lookup's gaps.
    """

    rows: Sequence[dict[str, Value]]
    times: Sequence[dict[str, datetime | None]]
    gaps: Sequence[tuple[Gap, ...]]


class LookupResult(NamedTuple):
    """The lookup's result for the instance at a position, and its gaps."""

    place: int
    features: FeatureValues
    gaps: tuple[Gap, ...]
    # Ages in seconds of the views with values.
    ages: list[tuple[str, float]]


async def complete(
    served: LoadedModel, lookup: FeatureLookup, instances: Sequence[Instance], numbers: Sequence[int]
) -> CompletedInstances:
    """Check instances, and look up the inputs that they do not contain.

    Args:
        numbers: The instances' positions in the request, for error messages.

    Raises:
        ProblemError: 422 names the field that is wrong or missing (``LookupRefusedError``). 503 if
            the lookup is unavailable.
    """
    every = range(len(instances))
    needy = await in_turns(lambda part: check(served, instances, numbers, part), every)
    if not needy:
        return _with(await in_turns(lambda part: _rows(served, instances, {}, part), every), [])
    service = await lookup.find(served.bundle.contract.feature_service)
    await in_turns(lambda part: check_keys(served, lookup, service, instances, part, numbers), needy)
    results: list[LookupResult] = []
    for start in range(0, len(needy), LOOKED_UP_AT_ONCE):
        places = needy[start : start + LOOKED_UP_AT_ONCE]
        rows = list(zip(places, await lookup.fetch(service, [instances[place] for place in places]), strict=True))
        results += await in_turns(lambda part: judge_all(served, service, instances, *zip(*part, strict=True)), rows)
    note(served, results)
    for place, _, gaps, _ in results:
        for gap in gaps:
            if gap.action == "refuse":
                raise LookupRefusedError(gap, numbers[place])
    values = _values(results)
    return _with(await in_turns(lambda part: _rows(served, instances, values, part), every), results)


def check(
    served: LoadedModel, instances: Sequence[Instance], numbers: Sequence[int], places: Sequence[int]
) -> list[int]:
    """Return the positions of the instances that need a lookup.

    Raises:
        ProblemError: 422 if an instance is invalid.
    """
    inputs = served.bundle.inputs
    needy = []
    for place in places:
        inputs.check(instances[place], numbers[place])
        if inputs.needs_look_up(instances[place]):
            needy.append(place)
    for place in needy:
        inputs.require_keys(instances[place], numbers[place])
    return needy


def check_keys(
    served: LoadedModel,
    lookup: FeatureLookup,
    service: FeatureService,
    instances: Sequence[Instance],
    needy: Sequence[int],
    numbers: Sequence[int],
) -> list[int]:
    """Return ``needy`` if the feature service can look up the model's features for these keys.

    Raises:
        ProblemError: 503 if the feature service does not have the features. 422 if a key has the
            wrong type.
    """
    served.views_used(service)
    for place in needy:
        for key in service.types:
            lookup.check_key(service, key, instances[place][key], f"instances[{numbers[place]}].{key}")
    return list(needy)


def judge_all(
    served: LoadedModel,
    service: FeatureService,
    instances: Sequence[Instance],
    needy: Sequence[int],
    answers: Sequence[FeatureValues],
) -> list[LookupResult]:
    """Evaluate the lookup's results, except for values that the instances contain.

    This function does not update metrics.
    """
    views, policy, now = served.views_used(service), served.bundle.contract.lookup, service.clock.now()
    results = []
    for place, answered in zip(needy, answers, strict=True):
        ages: list[tuple[str, float]] = []
        features, gaps = judge(views, policy, now, instances[place], answered, ages)
        results.append(LookupResult(place, features, gaps, ages))
    return results


def note(served: LoadedModel, results: Sequence[LookupResult]) -> None:
    """Count gaps and ages in the metrics."""
    for _, _, gaps, ages in results:
        for gap in gaps:
            served.count_gap(gap)
        for view, seconds in ages:
            served.model_metrics.note_age(view, seconds)


def completed(
    served: LoadedModel, instances: Sequence[Instance], results: Sequence[LookupResult]
) -> CompletedInstances:
    """Return every input of the model for each instance."""
    return _with(_rows(served, instances, _values(results), range(len(instances))), results)


def _values(results: Sequence[LookupResult]) -> dict[int, dict[str, Any]]:
    return {place: features.values for place, features, _, _ in results}


def _rows(
    served: LoadedModel, instances: Sequence[Instance], values: Mapping[int, dict[str, Any]], places: Sequence[int]
) -> list[dict[str, Value]]:
    """Return every input of the model for the instances at some positions.

    A value of the instance takes precedence over a value that was looked up.
    """
    row = served.bundle.inputs.row
    return [row({**values[place], **instances[place]} if place in values else instances[place]) for place in places]


def _with(rows: Sequence[dict[str, Value]], results: Sequence[LookupResult]) -> CompletedInstances:
    times, gaps = [NO_TIMES] * len(rows), [NO_GAPS] * len(rows)
    for place, features, lacking, _ in results:
        times[place], gaps[place] = features.times, lacking
    return CompletedInstances(rows, times, gaps)
