"""From instances to predictions: check, look up, predict. It knows neither HTTP nor where models come from."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from serving import metrics
from serving.batching import Batcher
from serving.completion import NO_GAPS, NO_TIMES, Completed, complete
from serving.contract import Value
from serving.encoding import dumps
from serving.gaps import Gap, Refused, iso
from serving.ids import new_id
from serving.inputs import Inputs, Instance
from serving.lookup import FeatureLookup
from serving.problems import Problem, invalid
from serving.served import Route, Served
from serving.turns import in_turns

BASELINE = "baseline"  # the arm of what a baseline rule answered
# Bytes of memory that a row of the prediction log takes beside its text.
BYTES_PER_ROW = 1500
MOST_SHADOWED = 64  # requests that may wait for the shadows of one model; more are not asked of them

log = logging.getLogger(__name__)
_shadowing: dict[str, set[asyncio.Task[None]]] = {}  # by model: a shadow that hangs must not take those of other models out


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
    gaps: tuple[Gap, ...] = NO_GAPS

    @property
    def by_baseline(self) -> bool:
        return by_rule(self.gaps)

    @property
    def arm(self) -> str:
        """Who answered: the champion, an arm, or the version's baseline rule."""
        return BASELINE if self.gaps and by_rule(self.gaps) else self.served.arm

    @property
    def missing(self) -> list[str]:
        return [name for name, value in self.features.items() if value is None] if None in self.features.values() else []


async def answer(route: Route, lookup: FeatureLookup, instances: Sequence[Instance]) -> list[Prediction]:
    """One prediction per instance, each by the arm that its entity belongs to. An arm that fails is stood in for by the champion.

    Raises:
        Problem: see ``predict``; what concerns the champion, or the request.
    """
    numbers = range(len(instances))
    if not route.arms or not any(chosen := [route.arm_of(instance) for instance in instances]):
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
            except Refused:  # the project's own choice: no failure of the arm
                raise
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
        Problem: 422 names the field that is wrong, what the look-up lacks and the project does not do without (``Refused``), or the instance for which
            the model gave no number; 503, the look-up is not possible now.
    """
    inputs = served.bundle.inputs
    numbers = range(len(instances)) if numbers is None else numbers
    quick = await in_turns(lambda part: [row for instance in part if (row := inputs.quick(instance)) is not None], instances)
    if len(quick) == len(instances):
        packed, categories = zip(*quick, strict=True)
        answers = await run(served, served.batcher, packed, categories, numbers)
        pairs = list(zip(instances, answers, strict=True))
        return await in_turns(lambda part: plainly(served, *zip(*part, strict=True)), pairs)
    made = await complete(served, lookup, instances, numbers)
    columns = await in_turns(lambda part: [(inputs.numbers(row), inputs.texts(row)) for row in part], made.rows)
    numeric, texts = [row for row, _ in columns], [row for _, row in columns]
    ruled = [place for place, gaps in enumerate(made.gaps) if gaps and by_rule(gaps)]
    if ruled:
        answers = await _with_rule(served, numeric, texts, numbers, ruled)
    else:
        answers = await run(served, served.batcher, numeric, texts, numbers)
    return of_completed(served, instances, made, answers)


def of_completed(served: Served, instances: Sequence[Instance], made: Completed, answers: Sequence[float]) -> list[Prediction]:
    """Predictions of completed instances."""
    return [
        Prediction(new_id(), answer, key, row, found, served, gaps=gaps)
        for answer, key, row, found, gaps in zip(answers, _keys(served.bundle.inputs, instances), made.rows, made.times, made.gaps, strict=True)
    ]


def plainly(served: Served, instances: Sequence[Instance], answers: Sequence[float]) -> list[Prediction]:
    """Predictions of instances with nothing to look up and nothing to complete (``Inputs.quick``)."""
    made = zip(answers, _keys(served.bundle.inputs, instances), instances, strict=True)
    return [Prediction(new_id(), answer, key, instance, NO_TIMES, served) for answer, key, instance in made]


def _keys(inputs: Inputs, instances: Sequence[Instance]) -> Sequence[Instance]:
    return instances if inputs.all_given else [_key(inputs.given, instance) for instance in instances]


def _key(given: frozenset[str], instance: Instance) -> Instance:
    """What of an instance is the caller's to give: join keys and request features."""
    return instance if given.issuperset(instance) else {name: value for name, value in instance.items() if name in given}


async def _with_rule(served: Served, numeric: Sequence[Any], texts: Sequence[Sequence[str]], numbers: Sequence[int], ruled: list[int]) -> list[float]:
    """The answers where the instances at the places ``ruled`` are the baseline rule's."""
    assert served.rule is not None  # no bundle loads without one that its policy needs
    others = sorted(set(range(len(numeric))).difference(ruled))
    answers = [0.0] * len(numeric)
    for batcher, places in ((served.batcher, others), (served.rule, ruled)):
        if places:
            its = await run(served, batcher, [numeric[i] for i in places], [texts[i] for i in places], [numbers[i] for i in places])
            for place, answer in zip(places, its, strict=True):
                answers[place] = answer
    served.count_ruled(len(ruled))
    return answers


def by_rule(gaps: Sequence[Gap]) -> bool:
    return any(gap.action == "baseline" for gap in gaps)


async def run(served: Served, batcher: Batcher, numeric: Sequence[Any], texts: Sequence[Sequence[str]], numbers: Sequence[int]) -> list[float]:
    """A graph's answers, all of them numbers.

    Raises:
        Problem: 422, the model gives no number for a row: not finite, or nothing at all.
    """
    try:
        answers = await batcher.run(numeric, texts)
    except Problem:
        raise
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


def shadow(route: Route, instances: Sequence[Instance], answered: "Answered", lookup: FeatureLookup, keep: Any) -> None:
    """Ask the shadows too, after the answer. Their predictions are logged under the ids of the answered ones; no caller sees them.

    Args:
        answered: by the champion and the arms.
        keep: takes an ``Answered`` of a shadow for the log of the shadows.
    """
    for spec, served in route.shadows:
        if random.random() >= spec.share:
            continue
        waiting = _shadowing.setdefault(served.name, set())
        if len(waiting) >= MOST_SHADOWED:
            metrics.refused.labels("shadow").inc()
            continue
        task = asyncio.get_running_loop().create_task(_ask_shadow(served, instances, answered, lookup, keep))
        waiting.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(waiting.discard)


async def _ask_shadow(served: Served, instances: Sequence[Instance], answered: "Answered", lookup: FeatureLookup, keep: Any) -> None:
    began, at = time.perf_counter(), now()
    try:
        made = await predict(served, lookup, instances)
    except Refused:  # the project's own choice, and no failure
        return
    except Problem as problem:  # logged as asked in vain: who judges the shadow counts that
        log.info("shadow %s of %s: %s", served.arm, served.name, problem.detail)
        made = [Prediction(p.prediction_id, math.nan, p.key, {}, NO_TIMES, served) for p in answered.predictions]
    for prediction, champions in zip(made, answered.predictions, strict=True):
        prediction.prediction_id = champions.prediction_id
    keep(Answered(made, at, (time.perf_counter() - began) * 1000, answered.caller, answered.body_bytes))


@dataclass(slots=True)
class Answered:
    """An answered request: an entry of the prediction log (``prediction_log.schema.json``)."""

    predictions: Sequence[Prediction]
    at: int  # microseconds since 1970
    latency_ms: float
    caller: str = "-"
    body_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes of memory, estimated: an object of Python for each value, and its text once in the request and once in the log."""
        return BYTES_PER_ROW * len(self.predictions) + 4 * self.body_bytes

    @property
    def project(self) -> str:
        return self.predictions[0].served.name

    def __len__(self) -> int:
        return len(self.predictions)

    @staticmethod
    def columns(entries: Sequence["Answered"]) -> dict[str, list[Any]]:
        every = [prediction for entry in entries for prediction in entry.predictions]
        features = [dumps(p.features) for p in every]
        return {
            "prediction_id": [p.prediction_id for p in every],
            "project": [p.served.name for p in every],
            "model_version": [p.served.version for p in every],
            "arm": [p.arm for p in every],
            "failed_arm": [p.failed_arm for p in every],
            "predicted_at": [entry.at for entry in entries for _ in entry.predictions],
            "key": [used if p.key is p.features else dumps(p.key) for p, used in zip(every, features, strict=True)],
            "features": features,
            "feature_times": [dumps(feature_times(p)) if p.feature_times else b"{}" for p in every],
            "prediction": [p.prediction for p in every],
            "caller": [entry.caller for entry in entries for _ in entry.predictions],
            "latency_ms": [entry.latency_ms for entry in entries for _ in entry.predictions],
        }


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def feature_times(prediction: Prediction) -> dict[str, str | None]:
    """View -> ISO time, as ``2013-06-01T10:00:00Z``."""
    return {view: iso(time_) if time_ else None for view, time_ in prediction.feature_times.items()}
