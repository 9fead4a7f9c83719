"""Make predictions for instances: check them, look up features, run the model.

The module is independent of HTTP and of the source of the models.
"""

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
from serving.encoding import dumps
from serving.features.lookup import FeatureLookup
from serving.ids import new_id
from serving.models.batching import Batcher
from serving.models.contract import Value
from serving.models.gaps import Gap, LookupRefusedError, iso
from serving.models.inputs import Inputs, Instance
from serving.models.loaded_model import LoadedModel, Member, Route
from serving.predicting.completion import NO_GAPS, NO_TIMES, CompletedInstances, complete
from serving.problems import ProblemError, invalid
from serving.turns import in_turns

# The arm of predictions that a baseline rule made.
BASELINE = "baseline"
# Estimated bytes of memory that a row of the prediction log takes in addition to its text.
BYTES_PER_ROW = 1500
# Maximum number of requests that wait for the shadows of one model. Further requests are not sent
# to the shadow.
MOST_SHADOWED = 64

log = logging.getLogger(__name__)
# By model, so that a shadow that hangs does not block the shadows of other models.
_shadowing: dict[str, set[asyncio.Task[None]]] = {}


@dataclass(slots=True)
class Prediction:
    """One prediction and its inputs. It contains all data for the answer and the log."""

    prediction_id: str
    prediction: float
    key: Instance  # Join keys and request features as received.
    features: dict[str, Value]  # Every input of the model as used.
    feature_times: dict[str, datetime | None]
    served: LoadedModel
    # The arm that should have answered but failed.
    failed_arm: str = ""
    gaps: tuple[Gap, ...] = NO_GAPS

    @property
    def by_baseline(self) -> bool:
        return by_rule(self.gaps)

    @property
    def arm(self) -> str:
        """Return the champion, an arm's name, or ``baseline`` if the baseline rule answered."""
        return BASELINE if self.gaps and by_rule(self.gaps) else self.served.arm

    @property
    def missing(self) -> list[str]:
        return (
            [name for name, value in self.features.items() if value is None] if None in self.features.values() else []
        )


async def answer(route: Route, lookup: FeatureLookup, instances: Sequence[Instance]) -> list[Prediction]:
    """Return one prediction per instance, made by the arm of its entity.

    If an arm fails, the champion answers instead.

    Raises:
        ProblemError: See ``predict``. It is caused by the champion or by the request.
    """
    numbers = range(len(instances))
    chosen: list[Member | None] = []
    if route.arms:
        chosen = await in_turns(lambda part: [route.arm_of(instance) for instance in part], instances)
    if not any(chosen):
        predictions = await predict(route.champion, lookup, instances, numbers)
    else:
        by_number: dict[int, Prediction] = {}
        for member in dict.fromkeys(chosen):
            its = [number for number in numbers if chosen[number] is member]
            part = [instances[number] for number in its]
            served = member.served if member else route.champion
            try:
                if member is None:
                    part_predictions = await predict(served, lookup, part, its)
                else:
                    async with asyncio.timeout(member.arm.max_seconds):
                        part_predictions = await predict(served, lookup, part, its)
                    member.breaker.note(None)
            except LookupRefusedError:  # This is the project's policy and not a failure of the arm.
                raise
            except Exception as error:
                if member is None:
                    raise
                # This raises an error if the request or the lookup caused the failure, and not the
                # arm.
                part_predictions = await predict(route.champion, lookup, part, its)
                member.note_failure(error, len(part))
                for prediction in part_predictions:
                    prediction.failed_arm = member.arm.name
            by_number.update(zip(its, part_predictions, strict=True))
        predictions = [by_number[number] for number in numbers]
    return predictions


async def predict(
    served: LoadedModel, lookup: FeatureLookup, instances: Sequence[Instance], numbers: Sequence[int] | None = None
) -> list[Prediction]:
    """Return one prediction of one version per instance.

    An instance contains the request features and the join keys. It may also contain features of
    views, which are then not looked up. An instance with all features does not need join keys or a
    feature store.

    Args:
        numbers: The instances' positions in the request, for error messages.

    Raises:
        ProblemError: 422 names the wrong field, the gap that the project's policy refuses
            (``LookupRefusedError``), or the instance without a finite prediction. 503 if the lookup
            is unavailable.
    """
    inputs = served.bundle.inputs
    numbers = range(len(instances)) if numbers is None else numbers
    quick = await in_turns(
        lambda part: [row for instance in part if (row := inputs.quick(instance)) is not None], instances
    )
    if len(quick) == len(instances):
        packed, categories = zip(*quick, strict=True)
        answers = await run(served, served.batcher, packed, categories, numbers)
        pairs = list(zip(instances, answers, strict=True))
        return await in_turns(lambda part: without_lookup(served, *zip(*part, strict=True)), pairs)
    completed = await complete(served, lookup, instances, numbers)
    columns = await in_turns(lambda part: [(inputs.numbers(row), inputs.texts(row)) for row in part], completed.rows)
    numeric, texts = [row for row, _ in columns], [row for _, row in columns]
    ruled = [place for place, gaps in enumerate(completed.gaps) if gaps and by_rule(gaps)]
    if ruled:
        answers = await _with_rule(served, numeric, texts, numbers, ruled)
    else:
        answers = await run(served, served.batcher, numeric, texts, numbers)
    return from_completed(served, instances, completed, answers)


def from_completed(
    served: LoadedModel, instances: Sequence[Instance], completed: CompletedInstances, answers: Sequence[float]
) -> list[Prediction]:
    """Return the predictions of completed instances."""
    return [
        Prediction(new_id(), answer, key, row, times, served, gaps=gaps)
        for answer, key, row, times, gaps in zip(
            answers,
            _keys(served.bundle.inputs, instances),
            completed.rows,
            completed.times,
            completed.gaps,
            strict=True,
        )
    ]


def without_lookup(served: LoadedModel, instances: Sequence[Instance], answers: Sequence[float]) -> list[Prediction]:
    """Return the predictions of complete instances, which skip the lookup (``Inputs.quick``)."""
    rows = zip(answers, _keys(served.bundle.inputs, instances), instances, strict=True)
    return [Prediction(new_id(), answer, key, instance, NO_TIMES, served) for answer, key, instance in rows]


def _keys(inputs: Inputs, instances: Sequence[Instance]) -> Sequence[Instance]:
    return instances if inputs.all_given else [_key(inputs.given, instance) for instance in instances]


def _key(given: frozenset[str], instance: Instance) -> Instance:
    """Return the join keys and request features of an instance."""
    return (
        instance if given.issuperset(instance) else {name: value for name, value in instance.items() if name in given}
    )


async def _with_rule(
    served: LoadedModel,
    numeric: Sequence[Any],
    texts: Sequence[Sequence[str]],
    numbers: Sequence[int],
    ruled: list[int],
) -> list[float]:
    """Return the answers, with the baseline rule's answers for the instances at ``ruled``."""
    # A bundle without a baseline rule that its policy needs cannot be loaded.
    assert served.rule is not None
    others = sorted(set(range(len(numeric))).difference(ruled))
    answers = [0.0] * len(numeric)
    for batcher, places in ((served.batcher, others), (served.rule, ruled)):
        if places:
            its = await run(
                served, batcher, [numeric[i] for i in places], [texts[i] for i in places], [numbers[i] for i in places]
            )
            for place, answer in zip(places, its, strict=True):
                answers[place] = answer
    served.count_ruled(len(ruled))
    return answers


def by_rule(gaps: Sequence[Gap]) -> bool:
    return any(gap.action == "baseline" for gap in gaps)


async def run(
    served: LoadedModel,
    batcher: Batcher,
    numeric: Sequence[Any],
    texts: Sequence[Sequence[str]],
    numbers: Sequence[int],
) -> list[float]:
    """Return a graph's answers. All of them are finite numbers.

    Raises:
        ProblemError: 422 if the graph fails, or if an answer is not finite.
    """
    try:
        answers = await batcher.run(numeric, texts)
    except ProblemError:
        raise
    except Exception as error:
        served.model_metrics.failures.inc(len(numeric))
        log.warning("model %s version %s failed: %s", served.name, served.version, " ".join(str(error).split())[:300])
        detail = f"model '{served.name}' version {served.version} fails on these inputs"
        raise invalid("model-failed", "The model does not take these inputs", detail, "instances") from error
    for place, value in enumerate(answers):
        if not math.isfinite(value):
            served.model_metrics.failures.inc(sum(not math.isfinite(answer) for answer in answers))
            detail = f"model '{served.name}' version {served.version} answers {value}"
            raise invalid("no-number", "The model did not return a number", detail, f"instances[{numbers[place]}]")
    return answers


def shadow(
    route: Route, instances: Sequence[Instance], answered: "AnsweredRequest", lookup: FeatureLookup, keep: Any
) -> None:
    """Call the shadows after the answer.

    Their predictions are logged under the ids of the answered ones and are not returned to the
    caller.

    Args:
        answered: The predictions of the champion and the arms.
        keep: Takes an ``AnsweredRequest`` of a shadow for the shadow log.
    """
    for spec, served in route.shadows:
        if random.random() >= spec.share:
            continue
        waiting = _shadowing.setdefault(served.name, set())
        if len(waiting) >= MOST_SHADOWED:
            metrics.refused.labels("shadow").inc()
            continue
        task = asyncio.get_running_loop().create_task(_ask_shadow(served, instances, answered, lookup, keep))
        waiting.add(task)  # The event loop holds only weak references to tasks.
        task.add_done_callback(waiting.discard)


async def _ask_shadow(
    served: LoadedModel, instances: Sequence[Instance], answered: "AnsweredRequest", lookup: FeatureLookup, keep: Any
) -> None:
    began, at = time.perf_counter(), now()
    try:
        predictions = await predict(served, lookup, instances)
    except LookupRefusedError:  # This is the project's policy and not a failure.
        return
    except ProblemError as problem:
        # The failure is logged as a prediction of NaN, so that the shadow's evaluation counts it.
        log.info("shadow %s of %s: %s", served.arm, served.name, problem.detail)
        predictions = [Prediction(p.prediction_id, math.nan, p.key, {}, NO_TIMES, served) for p in answered.predictions]
    for prediction, champions in zip(predictions, answered.predictions, strict=True):
        prediction.prediction_id = champions.prediction_id
    keep(AnsweredRequest(predictions, at, (time.perf_counter() - began) * 1000, answered.caller, answered.body_bytes))


@dataclass(slots=True)
class AnsweredRequest:
    """An answered request: an entry of the prediction log (``prediction_log/schema.json``)."""

    predictions: Sequence[Prediction]
    at: int  # Microseconds since 1970.
    latency_ms: float
    caller: str = "-"
    body_bytes: int = 0

    @property
    def size(self) -> int:
        """Return the estimated bytes of memory.

        Each value is a Python object. Its text is held once in the request and once in the log.
        """
        return BYTES_PER_ROW * len(self.predictions) + 4 * self.body_bytes

    @property
    def project(self) -> str:
        return self.predictions[0].served.name

    def __len__(self) -> int:
        return len(self.predictions)

    @staticmethod
    def columns(entries: Sequence["AnsweredRequest"]) -> dict[str, list[Any]]:
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
    """Return the microseconds since 1970."""
    return time.time_ns() // 1000


def feature_times(prediction: Prediction) -> dict[str, str | None]:
    """Return the ISO time of each view, for example ``2013-06-01T10:00:00Z``."""
    return {view: iso(time_) if time_ else None for view, time_ in prediction.feature_times.items()}
