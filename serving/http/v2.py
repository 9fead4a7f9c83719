"""Answer the Open Inference Protocol v2 over HTTP.

Binary tensors are supported, as tritonclient and KServe's clients use them.

A model's inputs are those of its graph: ``numeric`` [n, k] (NaN or null: missing) and
``categorical`` [n, m] (empty or null: missing). The metadata contain the names of their columns in
order. ``numeric`` may have any numeric datatype; the graph computes with FP32. The outputs are
``prediction`` [n] and ``prediction_id`` [n], the ids under which the answers are logged.

Source: https://github.com/kserve/open-inference-protocol, and its extension
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

from typing import Any

from serving.encoding import dumps
from serving.http.gateway import ParsedRequest, RawResponse
from serving.http.tensors import to_bytes
from serving.http.v2_request import OUTPUTS, read_request, tensors
from serving.models.loaded_model import LoadedModel, Route
from serving.predicting import predict as data_plane
from serving.predicting.context import ServingContext
from serving.problems import ProblemError

SERVER = {"name": "airloop-serving", "version": "2", "extensions": ["binary_tensor_data"]}


def metadata(context: ServingContext, name: str, version: str | None = None) -> dict[str, Any]:
    """Return the document of ``/v2/models/<name>``: its tensors, versions, and registry state.

    Raises:
        ProblemError: 404 if the model or version does not exist. 503 if no version is loaded yet.
    """
    contract = version_of(context.registry.route(name), name, version).bundle.contract
    route = context.registry.route(name)
    answering = [served.version for served in (route.champion, *(member.served for member in route.arms))]
    inputs = [
        {"name": tensor, "datatype": datatype, "shape": [-1, len(columns)], "parameters": {"columns": list(columns)}}
        for tensor, datatype, columns in tensors(contract)
    ]
    outputs = [{"name": output, "datatype": datatype, "shape": [-1]} for output, datatype in OUTPUTS.items()]
    return {
        "name": name,
        "versions": list(dict.fromkeys(answering)),
        "platform": "onnx_onnxv1",
        "inputs": inputs,
        "outputs": outputs,
        "parameters": context.registry.document(name),
    }


def not_ready(why: str) -> dict[str, Any]:
    """Return the document for a service that is not ready."""
    return {**ProblemError(503, "not-ready", "The service is not ready", why).document("/v2"), "ready": False}


def model_ready(context: ServingContext, name: str, version: str | None) -> dict[str, Any]:
    """Return the document for a model that is ready.

    Raises:
        ProblemError: See ``metadata``. Its document states that the model is not ready.
    """
    try:
        version_of(context.registry.route(name), name, version)
    except ProblemError as problem:
        problem.members = {**problem.members, "name": name, "ready": False}
        raise
    return {"name": name, "ready": True}


def version_of(route: Route, name: str, version: str | None) -> LoadedModel:
    loaded = route.champion if version is None else route.version(version)
    if loaded is None:
        raise ProblemError(
            404,
            "unknown-version",
            "Unknown version",
            f"version {version} of model '{name}' is not served here",
            field="version",
        )
    return loaded


async def infer(context: ServingContext, request: ParsedRequest) -> RawResponse:
    """Answer ``POST /v2/models/<name>[/versions/<version>]/infer``."""
    name, version = request.path[2], request.path[4] if len(request.path) == 6 else None
    route = context.registry.route(name)
    served = version_of(route, name, version)
    inference = read_request(request.body, request.headers, served.bundle.contract, context.settings.max_instances)
    instances = inference.instances
    request.take_rows(len(instances))
    if version is None:
        predictions = await data_plane.answer(route, context.lookup, instances)
    else:
        predictions = await data_plane.predict(served, context.lookup, instances)
    context.keep(route, instances, predictions, request.started, request.caller, len(request.body))
    values: dict[str, Any] = {
        "prediction": [p.prediction for p in predictions],
        "prediction_id": [p.prediction_id for p in predictions],
    }
    outputs, raw = [], []
    for output, binary in inference.outputs.items():
        tensor: dict[str, Any] = {"name": output, "datatype": OUTPUTS[output], "shape": [len(predictions)]}
        if binary:
            raw.append(to_bytes(values[output], OUTPUTS[output]))
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = values[output]
        outputs.append(tensor)
    versions = {p.served.version for p in predictions}
    document: dict[str, Any] = {
        "model_name": name,
        "model_version": versions.pop() if len(versions) == 1 else route.champion.version,
        "outputs": outputs,
    }
    if route.arms:
        document["parameters"] = {"arms": ",".join(p.arm for p in predictions)}
    if inference.id is not None:
        document["id"] = inference.id
    head = dumps(document)
    if not raw:
        return RawResponse(head)
    return RawResponse(
        b"".join((head, *raw)), "application/octet-stream", {"Inference-Header-Content-Length": str(len(head))}
    )
