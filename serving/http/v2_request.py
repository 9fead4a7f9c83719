"""Read an inference request of the Open Inference Protocol v2."""

from typing import Any, NamedTuple

import numpy as np

from serving.encoding import loads
from serving.http.tensors import NUMBERS, check_shape, from_bytes, from_json, wrong
from serving.models.contract import Contract
from serving.models.inputs import Instance
from serving.problems import ProblemError, invalid

OUTPUTS = {"prediction": "FP64", "prediction_id": "BYTES"}
HEADER_LENGTH = b"inference-header-content-length"
# Maximum length in characters of the request's id, which the answer repeats.
LONGEST_ID = 1024


class InferenceRequest(NamedTuple):
    """A request that has been checked.

    Attributes:
        id: The client's id, or None if the request does not contain one.
        instances: One instance for each row of the tensors.
        outputs: The requested outputs in their order. True means a raw tensor.
    """

    id: str | None
    instances: list[Instance]
    outputs: dict[str, bool]


def tensors(contract: Contract) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return name, datatype and columns of the graph's inputs."""
    inputs = [("numeric", "FP32", contract.numeric), ("categorical", "BYTES", contract.categorical)]
    return [entry for entry in inputs if entry[2] or entry[0] == "numeric"]


def read_request(
    body: bytes, headers: list[tuple[bytes, bytes]], contract: Contract, most_rows: int
) -> InferenceRequest:
    """Return the request. Optional fields may be null.

    Args:
        body: The decoded body: JSON, then the raw tensors.
        most_rows: Maximum number of rows of each tensor.

    Raises:
        ProblemError: 400 if the request's header is not JSON, or if its length is wrong. 422, with
            the field, for other errors.
    """
    head, raw = _split(body, headers)
    try:
        document = loads(head)
    except ValueError as error:
        raise ProblemError(
            400, "not-json", "The request's header is not JSON", str(error)[:200], field="body"
        ) from None
    if type(document) is not dict:
        raise _invalid("it must be an object with a list of inputs", "body")
    given_id = document.get("id")
    if given_id is not None and (type(given_id) is not str or len(given_id) > LONGEST_ID):
        raise _invalid(f"it must be a string of at most {LONGEST_ID} characters, or null", "id")
    outputs = _outputs(document)
    return InferenceRequest(
        given_id, _instances(_arrays(document.get("inputs"), raw, contract, most_rows), contract), outputs
    )


def _split(body: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Return the JSON of the body, and the raw tensors."""
    lengths = [value for name, value in headers if name == HEADER_LENGTH]
    if not lengths:
        return body, b""
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 12 or int(lengths[0]) > len(body):
        detail = f"it must be there once, as a number from 0 to {len(body)}, the bytes of the body"
        raise ProblemError(400, "invalid-header", "A header is wrong", detail, field="Inference-Header-Content-Length")
    return body[: int(lengths[0])], body[int(lengths[0]) :]


def _arrays(inputs: Any, raw: bytes, contract: Contract, most_rows: int) -> dict[str, np.ndarray]:
    """Return the input tensors by name, all with the same number of rows."""
    if type(inputs) is not list:
        raise _invalid("it must be a list of tensors", "inputs")
    known = {name: (datatype, columns) for name, datatype, columns in tensors(contract)}
    arrays: dict[str, np.ndarray] = {}
    for number, given in enumerate(inputs):
        field = f"inputs[{number}]"
        if type(given) is not dict:
            raise wrong("it must be an object with name, datatype, shape and data", field)
        name = given.get("name")
        if type(name) is not str or name not in known or name in arrays:
            raise wrong(f"each of {', '.join(known)} must be there once", f"{field}.name")
        expected, columns = known[name]
        datatype = given.get("datatype")
        if type(datatype) is not str or (datatype not in NUMBERS if expected in NUMBERS else datatype != expected):
            accepted = ", ".join(NUMBERS) if expected in NUMBERS else expected
            raise wrong(f"it must be one of {accepted}", f"{field}.datatype")
        rows = check_shape(given.get("shape"), len(columns), most_rows, field)
        if any(len(array) != rows for array in arrays.values()):
            raise invalid(
                "invalid-tensor",
                "The tensors do not fit",
                "the tensors must have the same number of rows",
                f"{field}.shape",
            )
        size = _option(given, "binary_data_size", field)
        data = given.get("data")
        if size is None:
            arrays[name] = from_json(data, datatype, rows, len(columns), f"{field}.data")
            continue
        if data is not None:
            raise wrong("data and binary_data_size must not come together", f"{field}.data")
        if type(size) is not int or not 0 <= size <= len(raw):
            raise wrong(
                f"it must be a number from 0 to {len(raw)}, the bytes that are left",
                f"{field}.parameters.binary_data_size",
            )
        arrays[name], raw = from_bytes(raw[:size], datatype, rows, len(columns), f"{field}.data"), raw[size:]
    if lacking := [name for name in known if name not in arrays]:
        raise invalid("invalid-tensor", "A tensor is missing", f"{', '.join(lacking)} must be given", "inputs")
    if raw:
        raise _invalid(f"{len(raw)} bytes belong to no tensor", "body")
    return arrays


def _instances(arrays: dict[str, np.ndarray], contract: Contract) -> list[Instance]:
    numeric = arrays["numeric"].tolist()
    # Only NaN differs from itself.
    numbers = [[None if value != value else value for value in row] for row in numeric]
    keys = [place for place, name in enumerate(contract.numeric) if name in contract.join_keys]
    for row in numbers:
        for place in keys:
            value = row[place]
            # The arm of an entity and its labels depend on its keys as they appear in plain JSON: 7
            # and not 7.0.
            if value is not None and value.is_integer():
                row[place] = int(value)
    texts = arrays["categorical"].tolist() if "categorical" in arrays else [[]] * len(numbers)
    names = contract.inputs
    return [
        dict(zip(names, (*some, *(text or None for text in others)), strict=True))
        for some, others in zip(numbers, texts, strict=True)
    ]


def _outputs(document: dict[str, Any]) -> dict[str, bool]:
    """Return the requested outputs, and True for each one that is wanted as a raw tensor."""
    binary = _flag(document, "binary_data_output", "")
    given = document.get("outputs")
    if given is None or given == []:
        return dict.fromkeys(OUTPUTS, bool(binary))
    if type(given) is not list:
        raise _invalid("it must be a list of outputs, or null", "outputs")
    wanted: dict[str, bool] = {}
    for number, output in enumerate(given):
        field = f"outputs[{number}]"
        if type(output) is not dict:
            raise _invalid("it must be an object with a name", field)
        name = output.get("name")
        if type(name) is not str or name not in OUTPUTS or name in wanted:
            raise invalid(
                "unknown-output", "Unknown output", f"the outputs are {', '.join(OUTPUTS)}, each once", f"{field}.name"
            )
        chosen = _flag(output, "binary_data", field)
        wanted[name] = bool(binary if chosen is None else chosen)
    return wanted


def _flag(given: dict[str, Any], name: str, field: str) -> bool | None:
    value = _option(given, name, field)
    if value is not None and type(value) is not bool:
        raise _invalid("it must be true or false", f"{field}.parameters.{name}".lstrip("."))
    return value


def _option(given: dict[str, Any], name: str, field: str) -> Any:
    """Return a parameter of a request, a tensor or an output, or None if it is missing or null."""
    parameters = given.get("parameters")
    if parameters is None:
        return None
    if type(parameters) is not dict:
        raise _invalid("it must be an object, or null", f"{field}.parameters".lstrip("."))
    return parameters.get(name)


def _invalid(detail: str, field: str) -> ProblemError:
    return invalid("invalid-request", "The request is not valid", detail, field)
