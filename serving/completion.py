"""From instances as they come to every input of the model: checked one by one, and completed with what Feast has."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from serving.contract import Value
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


async def complete(served: Served, lookup: FeatureLookup, instances: Sequence[Instance], numbers: Sequence[int]) -> Completed:
    """Check instances, and look up what they do not give themselves.

    Args:
        numbers: the instances' places in the request, to name them by.

    Raises:
        Problem: 422 names the field that is wrong, or what is lacking (``Refused``); 503, the look-up is not possible now.
    """
    inputs = served.bundle.inputs
    needy = []
    for place, (number, instance) in enumerate(zip(numbers, instances, strict=True)):
        inputs.check(instance, number)
        if inputs.needs_look_up(instance):
            needy.append(place)
    gaps: list[tuple[Gap, ...]] = [NO_GAPS] * len(instances)
    if not needy:
        return Completed([inputs.row(instance) for instance in instances], [NO_TIMES] * len(instances), gaps)
    looked_up = [LookedUp({}, {}) for _ in instances]
    for place, found, lacking in await _look_up(served, lookup, instances, needy, numbers):
        looked_up[place], gaps[place] = found, lacking
    return Completed(rows_of(inputs, instances, [found.values for found in looked_up]), [found.times for found in looked_up], gaps)


async def _look_up(
    served: Served, lookup: FeatureLookup, instances: Sequence[Instance], needy: list[int], numbers: Sequence[int]
) -> list[tuple[int, LookedUp, tuple[Gap, ...]]]:
    """What Feast has for each instance that needs it, without what the instance gives itself; in one call."""
    inputs, contract = served.bundle.inputs, served.bundle.contract
    for place in needy:
        inputs.require_keys(instances[place], numbers[place])
    service = await lookup.find(contract.feature_service)
    views = served.views_used(service)
    for place in needy:
        for key in service.types:
            lookup.check_key(service, key, instances[place][key], f"instances[{numbers[place]}].{key}")
    answers = await lookup.fetch(service, [instances[place] for place in needy])
    now = service.clock.now()
    judged = []
    refused: Refused | None = None
    for place, answered in zip(needy, answers, strict=True):
        found, gaps = judge(views, contract.lookup, now, instances[place], answered, served.meters.note_age)
        for gap in gaps:
            served.count_gap(gap)
            if gap.action == "refuse" and refused is None:
                refused = Refused(gap, numbers[place])
        judged.append((place, found, gaps))
    if refused is not None:
        raise refused
    return judged
