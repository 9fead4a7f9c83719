"""From instances to predictions: check, look up, predict. It knows neither HTTP nor where models come from."""

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from serving import metrics
from serving.contract import Value
from serving.encoding import dumps
from serving.inputs import Inputs, Instance, rows_of
from serving.looked_up import LookedUp
from serving.lookup import FeatureLookup
from serving.problems import Problem, invalid, unavailable
from serving.served import Route, Served

NO_TIMES: dict[str, datetime | None] = {}
NO_TEXTS: list[str] = []
MOST_SHADOWED = 64  # requests that may wait for a shadow; more are not asked of it

log = logging.getLogger(__name__)
_shadowing: set[asyncio.Task[None]] = set()


@dataclass(slots=True)
class Prediction:
    """One answer and what it was made from: exactly what is told and what is logged."""

    prediction_id: str
    prediction: float
    key: Instance  # join keys and request features, as they came
    features: dict[str, Value]  # every input of the model, as it was used
    feature_times: dict[str, datetime | None]
    served: Served
    failed_arm: str = ""  # that should have answered, and did not

    @property
    def missing(self) -> list[str]:
        return [name for name, value in self.features.items() if value is None] if None in self.features.values() else []


async def answer(route: Route, lookup: FeatureLookup, instances: Sequence[Instance]) -> list[Prediction]:
    """One prediction per instance, each by the arm that its entity belongs to. An arm that fails is stood in for by the champion.

    Raises:
        Problem: see ``predict``; what concerns the champion, or the request.
    """
    numbers = range(len(instances))
    chosen = [route.arm_of(instance) for instance in instances] if route.arms else ()
    if not any(chosen):
        predictions = await predict(route.champion, lookup, instances, numbers)
    else:
        found: dict[int, Prediction] = {}
        for member in dict.fromkeys(chosen):
            its = [number for number in numbers if chosen[number] is member]
            part = [instances[number] for number in its]
            served = member.served if member else route.champion
            try:
                if member is None:
                    made = await predict(served, lookup, part, its)
                else:
                    async with asyncio.timeout(member.arm.max_seconds):
                        made = await predict(served, lookup, part, its)
                    member.breaker.note(None)
            except Exception as error:
                if member is None:
                    raise
                made = await predict(route.champion, lookup, part, its)  # raises if the request or the look-up is at fault, not the arm
                member.note_failure(error, len(part))
                for prediction in made:
                    prediction.failed_arm = member.arm.name
            found.update(zip(its, made, strict=True))
        predictions = [found[number] for number in numbers]
    return predictions


async def predict(served: Served, lookup: FeatureLookup, instances: Sequence[Instance], numbers: Sequence[int] | None = None) -> list[Prediction]:
    """One prediction of one version per instance.

    An instance holds the request features, the join keys, and may hold features of views, which then are not looked up; one that
    holds all of them needs no join keys and no feature store.

    Args:
        numbers: the instances' places in the request, to name them by.

    Raises:
        Problem: 422 names the field that is wrong, or the instance for which the model gave no number; 503, the look-up is not possible now.
    """
    inputs = served.bundle.inputs
    numbers = range(len(instances)) if numbers is None else numbers
    numeric: list[Sequence[float] | None] = [inputs.quick(instance) for instance in instances]
    rows: Sequence[dict[str, Value]]
    if None not in numeric:  # nothing to look up, nothing to complete
        rows, times = instances, [NO_TIMES] * len(instances)
        texts: list[list[str]] = [NO_TEXTS] * len(instances)
    else:
        rows, times = await _completed(served, lookup, instances, numbers)
        numeric = [inputs.numbers(row) for row in rows]
        texts = [inputs.texts(row) for row in rows]
    answers = await run(served, numeric, texts, numbers)
    given = inputs.given
    return [
        Prediction(
            os.urandom(16).hex(), answer, instance if given.issuperset(instance) else {name: value for name, value in instance.items() if name in given},
            row, found, served,
        )
        for answer, instance, row, found in zip(answers, instances, rows, times, strict=True)
    ]  # fmt: skip


async def _completed(
    served: Served, lookup: FeatureLookup, instances: Sequence[Instance], numbers: Sequence[int]
) -> tuple[list[dict[str, Value]], list[dict[str, datetime | None]]]:
    """Instances checked one by one, with what was looked up for those that need it: every input of the model, and the views' times."""
    inputs = served.bundle.inputs
    needy = []
    for place, (number, instance) in enumerate(zip(numbers, instances, strict=True)):
        inputs.check(instance, number)
        if inputs.needs_look_up(instance):
            needy.append(place)
    if not needy:
        return [{name: instance[name] for name in inputs.names} for instance in instances], [NO_TIMES] * len(instances)
    looked_up = await _look_up(served, lookup, instances, needy, numbers)
    return rows_of(inputs, instances, [found.values for found in looked_up]), [found.times for found in looked_up]


async def run(served: Served, numeric: Sequence[Any], texts: Sequence[Sequence[str]], numbers: Sequence[int]) -> list[float]:
    """The graph's answers, all of them numbers.

    Raises:
        Problem: 422, the model gives no number for a row: not finite, or nothing at all.
    """
    try:
        answers = await served.batcher.run(numeric, texts)
    except Exception as error:
        served.meters.failures.inc(len(numeric))
        log.warning("model %s version %s failed: %s", served.name, served.version, " ".join(str(error).split())[:300])
        detail = f"model '{served.name}' version {served.version} fails on these inputs"
        raise invalid("model-failed", "The model does not take these inputs", detail, "instances") from error
    for place, value in enumerate(answers):
        if not math.isfinite(value):
            served.meters.failures.inc(sum(not math.isfinite(answer) for answer in answers))
            detail = f"model '{served.name}' version {served.version} answers {value}"
            raise invalid("no-number", "The model gives no number", detail, f"instances[{numbers[place]}]")
    return answers


def shadow(route: Route, instances: Sequence[Instance], predictions: Sequence[Prediction], lookup: FeatureLookup, keep: Any) -> None:
    """Ask the shadows too, after the answer: what they say is logged under the answered prediction's id, and told nobody.

    Args:
        keep: takes the rows of the shadow log.
    """
    for spec, served in route.shadows:
        if random.random() >= spec.share:
            continue
        if len(_shadowing) >= MOST_SHADOWED:
            metrics.refused.labels("shadow").inc()
            continue
        task = asyncio.get_running_loop().create_task(_ask_shadow(served, instances, predictions, lookup, keep))
        _shadowing.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(_shadowing.discard)


async def _ask_shadow(served: Served, instances: Sequence[Instance], predictions: Sequence[Prediction], lookup: FeatureLookup, keep: Any) -> None:
    began, at = time.perf_counter(), datetime.now(UTC)
    try:
        made = await predict(served, lookup, instances)
    except Problem as problem:  # logged as asked in vain: who judges the shadow counts that
        log.info("shadow %s of %s: %s", served.arm, served.name, problem.detail)
        made = [Prediction(answered.prediction_id, math.nan, answered.key, {}, NO_TIMES, served) for answered in predictions]
    for prediction, answered in zip(made, predictions, strict=True):
        prediction.prediction_id = answered.prediction_id
    keep(log_rows(made, predicted_at=at, latency_ms=(time.perf_counter() - began) * 1000))


def log_rows(predictions: Sequence[Prediction], *, predicted_at: datetime, latency_ms: float) -> list[dict[str, Any]]:
    """The rows of ``prediction_log.schema.json``."""
    rows = []
    for p in predictions:
        features = dumps(p.features)
        rows.append({
            "prediction_id": p.prediction_id,
            "project": p.served.name,
            "model_version": p.served.version,
            "arm": p.served.arm,
            "failed_arm": p.failed_arm,
            "predicted_at": predicted_at,
            "key": features if p.key is p.features else dumps(p.key),
            "features": features,
            "feature_times": dumps(feature_times(p)) if p.feature_times else b"{}",
            "prediction": p.prediction,
            "latency_ms": latency_ms,
        })  # fmt: skip
    return rows


def feature_times(prediction: Prediction) -> dict[str, str | None]:
    """View -> ISO time, as ``2013-06-01T10:00:00Z``."""
    return {view: _iso(time_) if time_ else None for view, time_ in prediction.feature_times.items()}


@lru_cache(65536)
def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


async def _look_up(served: Served, lookup: FeatureLookup, instances: Sequence[Instance], needy: list[int], numbers: Sequence[int]) -> list[LookedUp]:
    """What Feast has for each instance, without what the instance gives itself; in one call for those that need it."""
    inputs, contract = served.bundle.inputs, served.bundle.contract
    wanted = inputs.view_features
    for place in needy:
        inputs.require_keys(instances[place], numbers[place])
    service = await lookup.find(contract.feature_service)
    _check_service(inputs, service)
    for place in needy:
        for key in service.types:
            lookup.check_key(service, key, instances[place][key], f"instances[{numbers[place]}].{key}")
    answers = await lookup.fetch(service, [instances[place] for place in needy])
    found = [LookedUp({}, {}) for _ in instances]
    now = time.time()
    for place, answered in zip(needy, answers, strict=True):
        instance = instances[place]
        used = {service.view_of[name] for name in wanted if name not in instance}
        found[place] = LookedUp(answered.values, {view: moment if view in used else None for view, moment in answered.times.items()})
        for view in used:
            moment = answered.times[view]
            if moment is not None:
                served.age(view).observe(now - moment.timestamp())
            elif not any(instance[key] is None for key in service.keys_of[view]):
                served.without_row(view).inc()
    return found


def _check_service(inputs: Inputs, service: Any) -> None:
    contract = inputs.contract
    lacking = [*(name for name in inputs.view_features if name not in service.view_of), *(key for key in service.types if key not in contract.join_keys)]
    if lacking:
        detail = f"feature service '{contract.feature_service}' and the model's contract differ in {', '.join(lacking)}"
        raise unavailable("feature-service-differs", "The feature service is not the model's", detail)
