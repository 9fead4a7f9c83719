"""The convenience route: entity keys or raw features as plain JSON."""

from collections.abc import Sequence
from typing import Any

from serving.encoding import dumps, loads
from serving.http.gateway import ParsedRequest, RawResponse
from serving.models.inputs import Instance
from serving.models.loaded_model import Route
from serving.predicting import predict as data_plane
from serving.predicting.context import ServingContext
from serving.predicting.predict import Prediction
from serving.problems import ProblemError, invalid
from serving.turns import in_turns


async def predict(context: ServingContext, request: ParsedRequest) -> RawResponse:
    """Answer ``POST /models/<name>/predict``. Each answer is logged under its ``prediction_id``."""
    name = request.path[1]
    instances = instances_of(request.body, context.settings.max_instances)
    request.take_rows(len(instances))
    # This route answers the whole request, even if the registry changes in the meantime.
    route = context.registry.route(name)
    predictions = await data_plane.answer(route, context.lookup, instances)
    context.keep(route, instances, predictions, request.started, request.caller, len(request.body))
    return RawResponse(document(name, route, await in_turns(tell, predictions)))


def document(name: str, route: Route, predictions: Sequence[dict[str, Any]]) -> bytes:
    """Return the body of an answer.

    Args:
        predictions: The result of ``tell`` for the request's predictions.
    """
    return dumps({"model": name, "model_version": route.champion.version, "predictions": predictions})


def tell(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return the response document of each prediction."""
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
    """Return the instances of a request's body. Their values are checked later, per model.

    Raises:
        ProblemError: 400 if the body is not JSON. 422 if the document has the wrong structure.
    """
    if not body:
        raise _wrong("the body is empty; it must be an object with instances", "body")
    try:
        document: Any = loads(body)
    except ValueError as error:
        raise ProblemError(400, "not-json", "The body is not JSON", str(error)[:200], field="body") from None
    if type(document) is not dict:
        raise _wrong("it must be an object with instances", "body")
    if "instances" not in document:
        raise _wrong("it must be given", "instances")
    if len(document) > 1:
        raise _wrong("unknown field", next(str(name) for name in document if name != "instances"))
    instances = document["instances"]
    if type(instances) is not list or not instances:
        raise _wrong("it must be a list of at least one object", "instances")
    if len(instances) > most:
        raise invalid(
            "too-many-instances",
            "Too many instances",
            f"{len(instances)} instances; at most {most} go into one request",
            "instances",
        )
    for number, instance in enumerate(instances):
        if type(instance) is not dict:
            raise _wrong("it must be an object", f"instances[{number}]")
    return instances


def _wrong(detail: str, field: str) -> ProblemError:
    return invalid("invalid-request", "The request is not as it should be", detail, field)
