"""The Open Inference Protocol v2 over HTTP, with binary tensors: what tritonclient and KServe's clients speak.

A model's inputs are its graph's own: ``numeric`` [n, k] (NaN or null: missing) and ``categorical`` [n, m] (empty or null: missing), whose columns
the metadata name in order. Its outputs are ``prediction`` [n] and ``prediction_id`` [n], the ids under which the answers are logged.

Source: https://github.com/kserve/open-inference-protocol, and its extension
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

import zlib
from typing import Any

import numpy as np

from serving import predict as data_plane
from serving.contract import Contract
from serving.encoding import dumps, loads
from serving.front import Answer, Asked
from serving.inputs import FLOAT32_MAX, Instance
from serving.parts import Parts
from serving.problems import Problem, invalid
from serving.served import Route, Served
from serving.tensors import NUMBERS, of_bytes, of_json, shaped, to_bytes

SERVER = {"name": "airloop-serving", "version": "2", "extensions": ["binary_tensor_data"]}
OUTPUTS = {"prediction": "FP64", "prediction_id": "BYTES"}
HEADER_LENGTH = b"inference-header-content-length"


def metadata(parts: Parts, name: str, version: str | None = None) -> dict[str, Any]:
    """What ``/v2/models/<name>`` says: the tensors, the versions that answer, and why the wanted one does not.

    Raises:
        Problem: 404, there is no such model or version; 503, nothing answers yet.
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
        "name": name, "versions": list(dict.fromkeys(answering)), "platform": "onnx_onnxruntime", "inputs": inputs, "outputs": outputs,
        "parameters": parts.registry.document(name),
    }  # fmt: skip


def tensors(contract: Contract) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, datatype and columns of the graph's inputs."""
    found = [("numeric", "FP32", contract.numeric), ("categorical", "BYTES", contract.categorical)]
    return [entry for entry in found if entry[2] or entry[0] == "numeric"]


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
    request, instances = _read(asked, served.bundle.contract, parts.settings.max_bytes, parts.settings.max_instances)
    wanted = _wanted(request)
    if version is None:
        predictions = await data_plane.answer(route, parts.lookup, instances)
    else:
        predictions = await data_plane.predict(served, parts.lookup, instances)
    parts.keep(route, instances, predictions, asked.started)
    values: dict[str, Any] = {"prediction": [p.prediction for p in predictions], "prediction_id": [p.prediction_id for p in predictions]}
    outputs, raw = [], []
    for output, binary in wanted.items():
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
    if "id" in request:
        document["id"] = request["id"]
    head = dumps(document)
    if not raw:
        return Answer(head)
    return Answer(b"".join((head, *raw)), "application/octet-stream", {"Inference-Header-Content-Length": str(len(head))})


def _read(asked: Asked, contract: Contract, most_bytes: int, most_rows: int) -> tuple[dict[str, Any], list[Instance]]:
    """The request's document and its rows as instances."""
    head, rest = _parts(asked, most_bytes)
    try:
        request = loads(head)
    except ValueError as error:
        raise Problem(400, "not-json", "The request's header is not JSON", str(error)[:200], field="body") from None
    if type(request) is not dict or type(request.get("inputs")) is not list:
        raise invalid("invalid-request", "The request is not as it should be", "it must be an object with a list of inputs", "inputs")
    if type(request.get("id", "")) is not str:
        raise invalid("invalid-request", "The request is not as it should be", "it must be a string", "id")
    known = {name: (datatype, columns) for name, datatype, columns in tensors(contract)}
    found: dict[str, np.ndarray] = {}
    for number, given in enumerate(request["inputs"]):
        field = f"inputs[{number}]"
        name = given.get("name") if type(given) is dict else None
        if type(name) is not str or name not in known or name in found:
            detail = f"each of {', '.join(known)} must be there once, with name, datatype, shape and data"
            raise invalid("invalid-tensor", "A tensor is not as it should be", detail, f"{field}.name")
        expected, columns = known[name]
        datatype = given.get("datatype")
        if type(datatype) is not str or (datatype not in NUMBERS if expected in NUMBERS else datatype != expected):
            raise invalid("invalid-tensor", "A tensor is not as it should be", f"it must be {expected}", f"{field}.datatype")
        size = _option(given, "binary_data_size")
        if size is None:
            flat = of_json(given.get("data"), datatype, f"{field}.data")
        else:
            if type(size) is not int or not 0 <= size <= len(rest):
                detail = f"it must be a number of the {len(rest)} bytes that are left"
                raise invalid("invalid-tensor", "A tensor is not as it should be", detail, f"{field}.parameters.binary_data_size")
            flat, rest = of_bytes(rest[:size], datatype, f"{field}.data"), rest[size:]
        found[name] = shaped(flat, given.get("shape"), len(columns), field)
        if expected in NUMBERS and not (np.isnan(found[name]) | (np.abs(found[name]) <= FLOAT32_MAX)).all():
            raise invalid("not-finite", "A number is not finite", "its numbers must be finite and fit into 32 bits, or NaN where a value is missing", field)
    if lacking := [name for name in known if name not in found]:
        raise invalid("invalid-tensor", "A tensor is missing", f"{', '.join(lacking)} must be given", "inputs")
    if rest:
        raise invalid("invalid-request", "The request is not as it should be", f"{len(rest)} bytes belong to no tensor", "body")
    lengths = {len(array) for array in found.values()}
    if len(lengths) > 1 or not 1 <= (rows := lengths.pop()) <= most_rows:
        detail = f"the tensors must have the same number of rows, from 1 to {most_rows}"
        raise invalid("invalid-tensor", "The tensors do not fit", detail, "inputs")
    numbers = [[None if value != value else value for value in row] for row in found["numeric"].tolist()]  # NaN is nothing's equal, nor its own
    texts = found["categorical"].tolist() if "categorical" in found else [[]] * rows
    names = contract.inputs
    return request, [dict(zip(names, (*some, *(text or None for text in others)), strict=True)) for some, others in zip(numbers, texts, strict=True)]


def _parts(asked: Asked, most_bytes: int) -> tuple[bytes, bytes]:
    """The JSON of the body and what comes after it."""
    body, length = asked.body, None
    for name, value in asked.headers:
        if name == HEADER_LENGTH:
            length = value
        elif name == b"content-encoding" and value not in (b"", b"identity"):
            body = _unpacked(body, value, most_bytes)
    if length is None:
        return body, b""
    if not length.isdigit() or len(length) > 12 or int(length) > len(body):
        raise Problem(
            400, "invalid-header", "A header is wrong", f"it must be a number of the body's {len(body)} bytes", field="Inference-Header-Content-Length"
        )
    return body[: int(length)], body[int(length) :]


def _unpacked(body: bytes, encoding: bytes, most_bytes: int) -> bytes:
    if encoding not in (b"gzip", b"deflate"):
        raise Problem(415, "unknown-encoding", "Unknown encoding", "the body may be gzip, deflate, or as it is", field="Content-Encoding")
    unpacking = zlib.decompressobj(wbits=47)  # either header
    try:
        unpacked = unpacking.decompress(body, most_bytes + 1)
    except zlib.error:
        raise Problem(400, "not-packed", "The body is not as its encoding says", f"it is not {encoding.decode()}", field="body") from None
    if len(unpacked) > most_bytes:
        raise Problem(413, "too-long", "Content Too Large", f"the body is longer than {most_bytes} bytes", field="body")
    if not unpacking.eof:
        raise Problem(400, "not-packed", "The body is not as its encoding says", "it is cut off", field="body")
    return unpacked


def _wanted(request: dict[str, Any]) -> dict[str, bool]:
    """The outputs to give, and whether in binary."""
    binary = _option(request, "binary_data_output") is True
    given = request.get("outputs")
    if not given:
        return dict.fromkeys(OUTPUTS, binary)
    wanted: dict[str, bool] = {}
    for number, output in enumerate(given if type(given) is list else [None]):
        name = output.get("name") if type(output) is dict else None
        if type(name) is not str or name not in OUTPUTS or name in wanted:
            raise invalid("unknown-output", "Unknown output", f"the outputs are {', '.join(OUTPUTS)}, each once", f"outputs[{number}].name")
        chosen = _option(output, "binary_data")
        wanted[name] = binary if chosen is None else chosen is True
    return wanted


def _option(given: dict[str, Any], name: str) -> Any:
    parameters = given.get("parameters")
    return parameters.get(name) if type(parameters) is dict else None
