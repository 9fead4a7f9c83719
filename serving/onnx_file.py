"""Inspect an ONNX file before ONNX Runtime reads it: no data in other files, no operators from outside ONNX Runtime.

Only the fields of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto that matter here are declared, so the ``onnx`` package is not needed.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))  # operators that ONNX Runtime itself brings
READ_FILES = frozenset(("EPContext",))  # operators of ``com.microsoft`` that name files
UNBOUNDED = frozenset(("Loop", "Scan", "SequenceMap"))  # operators whose number of steps depends on the values of the inputs
EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
ORT_FORMAT = b"ORTM"  # at byte 4: ONNX Runtime's own format, which it detects by itself

# Message -> field -> (number, type or message, repeated).
MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Model": {
        "opset_import": (8, "Opset", True), "graph": (7, "Graph", False), "training_info": (20, "Training", True), "functions": (25, "Function", True),
    },
    "Opset": {"domain": (1, "string", False)},
    "Training": {"initialization": (1, "Graph", False), "algorithm": (2, "Graph", False)},
    "Function": {"node": (7, "Node", True), "attribute_proto": (11, "Attribute", True), "domain": (10, "string", False)},
    "Graph": {"node": (1, "Node", True), "initializer": (5, "Tensor", True), "sparse_initializer": (15, "Sparse", True)},
    "Node": {"op_type": (4, "string", False), "domain": (7, "string", False), "attribute": (5, "Attribute", True)},
    "Attribute": {
        "t": (5, "Tensor", False), "g": (6, "Graph", False), "tensors": (10, "Tensor", True), "graphs": (11, "Graph", True),
        "sparse_tensor": (22, "Sparse", False), "sparse_tensors": (23, "Sparse", True),
    },
    "Sparse": {"values": (1, "Tensor", False), "indices": (2, "Tensor", False)},
    "Tensor": {"external_data": (13, "Entry", True), "data_location": (14, "int32", False)},
    "Entry": {},
}  # fmt: skip


class OnnxFileError(ValueError):
    """An ONNX file is not self-contained, or cannot be read."""


def operators(content: bytes) -> set[str]:
    """Check an ONNX file; give the names of its operators.

    Raises:
        OnnxFileError: the file is not ONNX, keeps tensors in other files, or uses operators that ONNX Runtime does not bring.
    """
    if content[4:8] == ORT_FORMAT:
        raise OnnxFileError("does not load: it has ONNX Runtime's own format, only ONNX is read")
    try:
        model = _model_class().FromString(content)
    except DecodeError:
        raise OnnxFileError("does not load: it is not an ONNX model, or nested too deeply") from None
    allowed = DOMAINS | {function.domain for function in model.functions}
    found = set()
    for kind, message in _parts(model):
        if kind == "Tensor" and (message.data_location == EXTERNAL or message.external_data):
            raise OnnxFileError("keeps tensors in another file (external data), which no hash covers: save it as one file")
        if kind in ("Node", "Opset") and message.domain not in allowed:
            raise OnnxFileError(f"uses operators of the domain {ascii(message.domain)[:100]}, which are not ONNX Runtime's own")
        if kind == "Node":
            if message.op_type in READ_FILES:
                raise OnnxFileError(f"uses the operator {message.op_type}, which reads other files")
            found.add(message.op_type)
    return found


def _parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Every message of a model, with the name of its type."""
    waiting = [model]
    while waiting:
        message = waiting.pop()
        name = message.DESCRIPTOR.name
        yield name, message
        for field, (_, kind, repeated) in MESSAGES[name].items():
            if kind in MESSAGES and (repeated or message.HasField(field)):
                found = getattr(message, field)
                waiting += found if repeated else [found]


@cache
def _model_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="serving/onnx_file.proto", package="serving.onnx_file", syntax="proto2")
    types = descriptor_pb2.FieldDescriptorProto
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            added = message.field.add(name=field, number=number, label=types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL)
            if kind in MESSAGES:
                added.type, added.type_name = types.TYPE_MESSAGE, f".serving.onnx_file.{kind}"
            else:  # op_type and domain as bytes would not compare with text; invalid UTF-8 is accepted by proto2
                added.type = {"string": types.TYPE_STRING, "int32": types.TYPE_INT32}[kind]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("serving.onnx_file.Model"))
