"""Answer the Open Inference Protocol v2 over HTTP, with binary tensors, as tritonclient and KServe's clients use it.

A model's inputs are its graph's own: ``numeric`` [n, k] (NaN or null: missing) and ``categorical`` [n, m] (empty or null: missing), whose columns
the metadata name in order. ``numeric`` may have any numeric datatype; the graph computes with FP32. The outputs are ``prediction`` [n] and
``prediction_id`` [n], the ids under which the answers are logged.

Source: https://github.com/kserve/open-inference-protocol, and its extension
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

from typing import Any

from serving import predict as data_plane
from serving.encoding import dumps
from serving.front import Answer, Asked
from serving.parts import Parts
from serving.problems import Problem
from serving.served import Route, Served
from serving.tensors import to_bytes
from serving.v2_request import OUTPUTS, read_request, tensors

SERVER = {"name": "airloop-serving", "version": "2", "extensions": ["binary_tensor_data"]}


def metadata(parts: Parts, name: str, version: str | None = None) -> dict[str, Any]:
    """Return the document of ``/v2/models/<name>``: its tensors, its versions, and its state in the registry.

    Raises:
        Problem: 404, the model or version does not exist; 503, no version is loaded yet.
    """
    contract = version_of(parts.registry.route(name), name, version).bundle.contract
    route = parts.registry.route(name)
    answering = [served.version for served in (route.champion, *(member.served for member in route.arms))]
    inputs = [
        {"name": tensor, "datatype": datatype, "shape": [-1, len(columns)], "parameters": {"columns": list(columns)}}
        for tensor, datatype, columns in tensors(contract)
    ]
    outputs = [{"name": output, "datatype": datatype, "shape": [-1]} for output, datatype in OUTPUTS.items()]
    return {
        "name": name, "versions": list(dict.fromkeys(answering)), "platform": "onnx_onnxv1", "inputs": inputs, "outputs": outputs,
        "parameters": parts.registry.document(name),
    }  # fmt: skip


def not_ready(why: str) -> dict[str, Any]:
    """Return the document for a service that is not ready."""
    return {**Problem(503, "not-ready", "The service is not ready", why).document("/v2"), "ready": False}


def model_ready(parts: Parts, name: str, version: str | None) -> dict[str, Any]:
    """Return the document for a model that is ready.

    Raises:
        Problem: see ``metadata``; its document says that the model is not ready.
    """
    try:
        version_of(parts.registry.route(name), name, version)
    except Problem as problem:
        problem.members = {**problem.members, "name": name, "ready": False}
        raise
    return {"name": name, "ready": True}


def version_of(route: Route, name: str, version: str | None) -> Served:
    found = route.champion if version is None else route.version(version)
    if found is None:
        raise Problem(404, "unknown-version", "Unknown version", f"version {version} of model '{name}' answers nobody here", field="version")
    return found


async def infer(parts: Parts, asked: Asked) -> Answer:
    """Answer ``POST /v2/models/<name>[/versions/<version>]/infer``."""
    name, version = asked.path[2], asked.path[4] if len(asked.path) == 6 else None
    route = parts.registry.route(name)
    served = version_of(route, name, version)
    request = read_request(asked.body, asked.headers, served.bundle.contract, parts.settings.max_instances)
    instances = request.instances
    asked.take_rows(len(instances))
    if version is None:
        predictions = await data_plane.answer(route, parts.lookup, instances)
    else:
        predictions = await data_plane.predict(served, parts.lookup, instances)
    parts.keep(route, instances, predictions, asked.started, asked.caller, len(asked.body))
    values: dict[str, Any] = {"prediction": [p.prediction for p in predictions], "prediction_id": [p.prediction_id for p in predictions]}
    outputs, raw = [], []
    for output, binary in request.outputs.items():
        said: dict[str, Any] = {"name": output, "datatype": OUTPUTS[output], "shape": [len(predictions)]}
        if binary:
            raw.append(to_bytes(values[output], OUTPUTS[output]))
            said["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            said["data"] = values[output]
        outputs.append(said)
    versions = {p.served.version for p in predictions}
    document: dict[str, Any] = {"model_name": name, "model_version": versions.pop() if len(versions) == 1 else route.champion.version, "outputs": outputs}
    if route.arms:
        document["parameters"] = {"arms": ",".join(p.arm for p in predictions)}
    if request.id is not None:
        document["id"] = request.id
    head = dumps(document)
    if not raw:
        return Answer(head)
    return Answer(b"".join((head, *raw)), "application/octet-stream", {"Inference-Header-Content-Length": str(len(head))})
