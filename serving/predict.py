"""From instances to predictions: check, look up, predict. It knows neither HTTP nor where models come from."""

import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from serving.bundle import Contract, Value
from serving.lookup import FeatureLookup, LookedUp
from serving.problems import Problem, invalid, unavailable
from serving.registry import Served

ARM = "champion"
FLOAT32_MAX = 3.4028234663852886e38
Instance = dict[str, Value]


@dataclass(frozen=True)
class Prediction:
    """One answer and what it was made from: exactly what is told and what is logged."""

    prediction_id: str
    prediction: float
    key: Instance  # join keys and request features, as they came
    features: dict[str, Value]  # every input of the model, as it was used
    feature_times: dict[str, datetime | None]

    @property
    def missing(self) -> list[str]:
        return [name for name, value in self.features.items() if value is None]


def predict(served: Served, lookup: FeatureLookup, instances: Sequence[Instance]) -> list[Prediction]:
    """One prediction per instance.

    An instance holds the request features, the join keys, and may hold features of views, which then are not looked up; one that
    holds all of them needs no join keys and no feature store.

    Raises:
        Problem: 422 names the field that is wrong; 503, the look-up is not possible now; 500, the model gave no number.
    """
    contract = served.bundle.contract
    for number, instance in enumerate(instances):
        _check(contract, instance, number)
    looked_up = _look_up(contract, lookup, instances)
    rows = [
        {name: instance[name] if name in instance else found.values[name] for name in contract.inputs}
        for instance, found in zip(instances, looked_up, strict=True)
    ]
    answers = served.bundle.predict(rows)
    if not all(math.isfinite(answer) for answer in answers):
        bad = next(number for number, answer in enumerate(answers) if not math.isfinite(answer))
        detail = f"model '{served.name}' version {served.version} answers {answers[bad]}"
        raise Problem(500, "no-number", "The model gave no number", detail, field=f"instances[{bad}]")
    keys = {*contract.join_keys, *contract.request_features}
    return [
        Prediction(uuid.uuid4().hex, float(answer), {name: value for name, value in instance.items() if name in keys}, row, found.times)
        for answer, instance, row, found in zip(answers, instances, rows, looked_up, strict=True)
    ]


def log_rows(served: Served, predictions: Sequence[Prediction], *, predicted_at: datetime, latency_ms: float) -> list[dict[str, Any]]:
    """The rows of ``prediction_log.schema.json``."""
    return [
        {
            "prediction_id": p.prediction_id,
            "project": served.bundle.contract.project,
            "model_version": served.version,
            "arm": ARM,
            "predicted_at": predicted_at,
            "key": json.dumps(p.key),
            "features": json.dumps(p.features),
            "feature_times": json.dumps(feature_times(p)),
            "prediction": p.prediction,
            "latency_ms": latency_ms,
        }
        for p in predictions
    ]


def feature_times(prediction: Prediction) -> dict[str, str | None]:
    """View -> ISO time, as ``2013-06-01T10:00:00Z``."""
    return {view: time.astimezone(UTC).isoformat().replace("+00:00", "Z") if time else None for view, time in prediction.feature_times.items()}


def _check(contract: Contract, instance: Instance, number: int) -> None:
    where = f"instances[{number}]."
    for name in (*contract.request_features, *(key for key in contract.join_keys if key in contract.inputs)):
        if name not in instance:
            kind, what = ("missing-request-feature", "request feature") if name in contract.request_features else ("missing-join-key", "join key")
            raise invalid(kind, f"A {what} is missing", f"'{name}' must be given; null says that it is not known", where + name)
    for name, value in instance.items():
        if isinstance(value, str) and not _is_text(value):
            raise invalid("wrong-type", "No text", f"'{name}' is no valid Unicode", where + name)
        if isinstance(value, float) and not math.isfinite(value):
            raise invalid("not-finite", "A number is not finite", f"'{name}' must be a finite number, or null", where + name)
        if name in contract.numeric:
            _check_number(name, value, where)
        elif name in contract.categorical:
            if isinstance(value, float):
                raise invalid("wrong-type", "An input has the wrong type", f"'{name}' is a category: a string, an integer, true, false or null", where + name)
        elif name not in contract.join_keys and name not in contract.request_features:
            known = ", ".join(dict.fromkeys((*contract.join_keys, *contract.request_features)))
            detail = f"the model has no input '{name}'; it takes {known}, and its views' features to override them"
            raise invalid("unknown-field", "Unknown field", detail, where + name)


def _check_number(name: str, value: Value, where: str) -> None:
    if value is not None and not isinstance(value, float | int):  # a bool is an int: 1 or 0, as in the tables
        raise invalid("wrong-type", "An input has the wrong type", f"'{name}' must be a number or null", where + name)
    if value is not None and not -FLOAT32_MAX <= value <= FLOAT32_MAX:
        raise invalid("not-finite", "A number is too great", f"'{name}' must fit into a float of 32 bits", where + name)


def _look_up(contract: Contract, lookup: FeatureLookup, instances: Sequence[Instance]) -> list[LookedUp]:
    """What Feast has for each instance, without what the instance gives itself; in one call for those that need it."""
    wanted = contract.view_features
    needy = [number for number, instance in enumerate(instances) if any(name not in instance for name in wanted)]
    found = [LookedUp({}, {}) for _ in instances]
    if not needy:
        return found
    for number in needy:
        for key in contract.join_keys:
            if key not in instances[number]:
                raise invalid("missing-join-key", "A join key is missing", f"'{key}' must be given; null says that there is none", f"instances[{number}].{key}")
    service = lookup.service(contract.feature_service)
    lacking = [*(name for name in wanted if name not in service.view_of), *(key for key in service.types if key not in contract.join_keys)]
    if lacking:
        detail = f"feature service '{contract.feature_service}' and the model's contract differ in {', '.join(lacking)}"
        raise unavailable("feature-service-differs", "The feature service is not the model's", detail)
    for number in needy:
        for key in service.types:
            lookup.check_key(service, key, instances[number][key], f"instances[{number}].{key}")
    answers = lookup.look_up(contract.feature_service, [instances[number] for number in needy])
    for number, answer in zip(needy, answers, strict=True):
        used = {service.view_of[name] for name in wanted if name not in instances[number]}
        found[number] = LookedUp(answer.values, {view: time if view in used else None for view, time in answer.times.items()})
    return found


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
