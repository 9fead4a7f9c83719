"""From instances as they come to every input of the model: checked one by one, and completed with what Feast has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from serving.contract import Value
from serving.feast_registry import Service
from serving.gaps import Gap, Refused, judge
from serving.inputs import Instance
from serving.looked_up import LookedUp
from serving.lookup import FeatureLookup
from serving.served import Served
from serving.turns import in_turns

NO_TIMES: dict[str, datetime | None] = {}
NO_GAPS: tuple[Gap, ...] = ()
# Entities in one round trip. A store answers them in one step of the event loop, or in one of its threads.
LOOKED_UP_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Completed:
    """Of each instance: every input of the model, the times of the views that were used, and what the look-up lacked."""

    rows: Sequence[dict[str, Value]]
    times: Sequence[dict[str, datetime | None]]
    gaps: Sequence[tuple[Gap, ...]]


class Judged(NamedTuple):
    """What the look-up gave for the instance at a place, and what it lacked."""

    place: int
    found: LookedUp
    gaps: tuple[Gap, ...]
    ages: list[tuple[str, float]]  # of the views whose values were found, in seconds


async def complete(served: Served, lookup: FeatureLookup, instances: Sequence[Instance], numbers: Sequence[int]) -> Completed:
    """Check instances, and look up what they do not give themselves.

    Args:
        numbers: the instances' places in the request, to name them by.

    Raises:
        Problem: 422 names the field that is wrong, or what is lacking (``Refused``); 503, the look-up is not possible now.
    """
    every = range(len(instances))
    needy = await in_turns(lambda part: check(served, instances, numbers, part), every)
    if not needy:
        return _with(await in_turns(lambda part: _rows(served, instances, {}, part), every), [])
    service = await lookup.find(served.bundle.contract.feature_service)
    await in_turns(lambda part: check_keys(served, lookup, service, instances, part, numbers), needy)
    judged: list[Judged] = []
    for start in range(0, len(needy), LOOKED_UP_AT_ONCE):
        places = needy[start : start + LOOKED_UP_AT_ONCE]
        found = list(zip(places, await lookup.fetch(service, [instances[place] for place in places]), strict=True))
        judged += await in_turns(lambda part: judge_all(served, service, instances, *zip(*part, strict=True)), found)
    note(served, judged)
    for place, _, gaps, _ in judged:
        for gap in gaps:
            if gap.action == "refuse":
                raise Refused(gap, numbers[place])
    values = _values(judged)
    return _with(await in_turns(lambda part: _rows(served, instances, values, part), every), judged)


def check(served: Served, instances: Sequence[Instance], numbers: Sequence[int], places: Sequence[int]) -> list[int]:
    """Return those of some places whose instances need a look-up.

    Raises:
        Problem: 422, what is wrong with one.
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
    served: Served, lookup: FeatureLookup, service: Service, instances: Sequence[Instance], needy: Sequence[int], numbers: Sequence[int]
) -> list[int]:
    """Return the places ``needy``, if the service has what the model looks up, for such keys.

    Raises:
        Problem: 503, it has not; 422, a key is of another type.
    """
    served.views_used(service)
    for place in needy:
        for key in service.types:
            lookup.check_key(service, key, instances[place][key], f"instances[{numbers[place]}].{key}")
    return list(needy)


def judge_all(served: Served, service: Service, instances: Sequence[Instance], needy: Sequence[int], answers: Sequence[LookedUp]) -> list[Judged]:
    """What the look-up gave, without what the instances give themselves. Nothing is counted by it."""
    views, policy, now = served.views_used(service), served.bundle.contract.lookup, service.clock.now()
    judged = []
    for place, answered in zip(needy, answers, strict=True):
        ages: list[tuple[str, float]] = []
        found, gaps = judge(views, policy, now, instances[place], answered, ages)
        judged.append(Judged(place, found, gaps, ages))
    return judged


def note(served: Served, judged: Sequence[Judged]) -> None:
    """Count gaps and ages."""
    for _, _, gaps, ages in judged:
        for gap in gaps:
            served.count_gap(gap)
        for view, seconds in ages:
            served.meters.note_age(view, seconds)


def completed(served: Served, instances: Sequence[Instance], judged: Sequence[Judged]) -> Completed:
    """Every input of the model for each instance."""
    return _with(_rows(served, instances, _values(judged), range(len(instances))), judged)


def _values(judged: Sequence[Judged]) -> dict[int, dict[str, Any]]:
    return {place: found.values for place, found, _, _ in judged}


def _rows(served: Served, instances: Sequence[Instance], values: Mapping[int, dict[str, Any]], places: Sequence[int]) -> list[dict[str, Value]]:
    """Return every input of the model for the instances at some places: what the instance gives, else what was looked up for it."""
    row = served.bundle.inputs.row
    return [row({**values[place], **instances[place]} if place in values else instances[place]) for place in places]


def _with(rows: Sequence[dict[str, Value]], judged: Sequence[Judged]) -> Completed:
    times, gaps = [NO_TIMES] * len(rows), [NO_GAPS] * len(rows)
    for place, found, lacking, _ in judged:
        times[place], gaps[place] = found.times, lacking
    return Completed(rows, times, gaps)
