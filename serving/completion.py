"""From instances as they come to every input of the model: checked one by one, and completed with what Feast has."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from serving.contract import Value
from serving.feast_registry import Service
from serving.gaps import Gap, Refused, judge
from serving.inputs import Instance, rows_of
from serving.looked_up import LookedUp
from serving.lookup import FeatureLookup
from serving.served import Served

NO_TIMES: dict[str, datetime | None] = {}
NO_GAPS: tuple[Gap, ...] = ()


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
    needy = check(served, instances, numbers)
    if not needy:
        return completed(served, instances, [])
    service = await lookup.find(served.bundle.contract.feature_service)
    check_keys(served, lookup, service, instances, needy, numbers)
    judged = judge_all(served, service, instances, needy, await lookup.fetch(service, [instances[place] for place in needy]))
    note(served, judged)
    for place, _, gaps, _ in judged:
        for gap in gaps:
            if gap.action == "refuse":
                raise Refused(gap, numbers[place])
    return completed(served, instances, judged)


def check(served: Served, instances: Sequence[Instance], numbers: Sequence[int]) -> list[int]:
    """The places of the instances that need a look-up.

    Raises:
        Problem: 422, what is wrong with one.
    """
    inputs = served.bundle.inputs
    needy = []
    for place, (number, instance) in enumerate(zip(numbers, instances, strict=True)):
        inputs.check(instance, number)
        if inputs.needs_look_up(instance):
            needy.append(place)
    for place in needy:
        inputs.require_keys(instances[place], numbers[place])
    return needy


def check_keys(served: Served, lookup: FeatureLookup, service: Service, instances: Sequence[Instance], needy: Sequence[int], numbers: Sequence[int]) -> None:
    """Whether the service has what the model looks up, for such keys.

    Raises:
        Problem: 503, it has not; 422, a key is of another type.
    """
    served.views_used(service)
    for place in needy:
        for key in service.types:
            lookup.check_key(service, key, instances[place][key], f"instances[{numbers[place]}].{key}")


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
    inputs = served.bundle.inputs
    gaps: list[tuple[Gap, ...]] = [NO_GAPS] * len(instances)
    if not judged:
        return Completed([inputs.row(instance) for instance in instances], [NO_TIMES] * len(instances), gaps)
    looked_up = [LookedUp({}, {}) for _ in instances]
    for place, found, lacking, _ in judged:
        looked_up[place], gaps[place] = found, lacking
    return Completed(rows_of(inputs, instances, [found.values for found in looked_up]), [found.times for found in looked_up], gaps)
