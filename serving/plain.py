"""The convenience route: entity keys or raw features as plain JSON."""

from collections.abc import Sequence
from typing import Any

from serving import predict as data_plane
from serving.encoding import dumps, loads
from serving.front import Answer, Asked
from serving.inputs import Instance
from serving.parts import Parts
from serving.predict import Prediction
from serving.problems import Problem, invalid
from serving.served import Route
from serving.turns import in_turns


async def predict(parts: Parts, asked: Asked) -> Answer:
    """Answer ``POST /models/<name>/predict``; each answer is logged under its ``prediction_id``."""
    name = asked.path[1]
    instances = instances_of(asked.body, parts.settings.max_instances)
    asked.take_rows(len(instances))
    route = parts.registry.route(name)  # this one answers the whole request, whatever the registry says meanwhile
    predictions = await data_plane.answer(route, parts.lookup, instances)
    parts.keep(route, instances, predictions, asked.started, asked.caller, len(asked.body))
    return Answer(document(name, route, await in_turns(tell, predictions)))


def document(name: str, route: Route, told: Sequence[dict[str, Any]]) -> bytes:
    """Return the body of an answer.

    Args:
        told: of each prediction of the request, what ``tell`` returns.
    """
    return dumps({"model": name, "model_version": route.champion.version, "predictions": told})


def tell(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return what is told of each prediction."""
    return [
        {
            "prediction_id": p.prediction_id,
            "prediction": p.prediction,
            "feature_times": data_plane.feature_times(p) if p.feature_times else {},
            "missing": p.missing,
            "model_version": p.served.version,
            "arm": p.arm,
            "gaps": [gap.document() for gap in p.gaps] if p.gaps else [],
        }
        for p in predictions
    ]


def instances_of(body: bytes, most: int) -> list[Instance]:
    """The instances of a request's body; their values are checked later, by what the model takes.

    Raises:
        Problem: 400, it is no JSON; 422, it is another document than that.
    """
    if not body:
        raise _wrong("the body is empty: it must be an object with instances", "body")
    try:
        document: Any = loads(body)
    except ValueError as error:
        raise Problem(400, "not-json", "The body is not JSON", str(error)[:200], field="body") from None
    if type(document) is not dict:
        raise _wrong("it must be an object with instances", "body")
    if "instances" not in document:
        raise _wrong("it must be given", "instances")
    if len(document) > 1:
        raise _wrong("there is no such field", next(str(name) for name in document if name != "instances"))
    instances = document["instances"]
    if type(instances) is not list or not instances:
        raise _wrong("it must be a list of at least one object", "instances")
    if len(instances) > most:
        raise invalid("too-many-instances", "Too many instances", f"{len(instances)} instances; at most {most} go into one request", "instances")
    for number, instance in enumerate(instances):
        if type(instance) is not dict:
            raise _wrong("it must be an object", f"instances[{number}]")
    return instances


def _wrong(detail: str, field: str) -> Problem:
    return invalid("invalid-request", "The request is not as it should be", detail, field)
