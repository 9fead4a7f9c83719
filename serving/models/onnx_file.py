"""Inspect an ONNX file before ONNX Runtime reads it.

The file must not refer to data in other files or use operators from outside ONNX Runtime. Only the
relevant fields of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto are declared here, so the
``onnx`` package is not needed.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

# Operators that ONNX Runtime itself contains.
DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
READ_FILES = frozenset(("EPContext",))  # Operators of ``com.microsoft`` that read files.
# Operators whose number of steps depends on the values of the inputs.
UNBOUNDED = frozenset(("Loop", "Scan", "SequenceMap", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"))
# Operators whose output size is the value of some of their inputs, with the places of these inputs.
SIZED_BY: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1, 2),
    "Pad": (1, 3),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "OneHot": (1,),
    "TopK": (1,),
    "CenterCropPad": (1,),
    "MaxUnpool": (2,),
    "Col2Im": (1, 2),
    "AffineGrid": (1,),
    "DFT": (1,),
    "STFT": (1, 3),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "CropAndResize": (3,),
}
# Operators whose output depends on the shape of their input only.
SIZES = frozenset(("Shape", "Size"))
EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
# At byte 4: ONNX Runtime's own format, which it detects automatically.
ORT_FORMAT = b"ORTM"

# Message -> field -> (number, type or message, repeated).
MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Model": {
        "opset_import": (8, "Opset", True),
        "graph": (7, "Graph", False),
        "training_info": (20, "Training", True),
        "functions": (25, "Function", True),
    },
    "Opset": {"domain": (1, "string", False)},
    "Training": {"initialization": (1, "Graph", False), "algorithm": (2, "Graph", False)},
    "Function": {
        "node": (7, "Node", True),
        "attribute_proto": (11, "Attribute", True),
        "domain": (10, "string", False),
    },
    "Graph": {
        "node": (1, "Node", True),
        "initializer": (5, "Tensor", True),
        "sparse_initializer": (15, "Sparse", True),
        "input": (11, "Value", True),
    },
    "Value": {"name": (1, "string", False)},
    "Node": {
        "input": (1, "string", True),
        "output": (2, "string", True),
        "op_type": (4, "string", False),
        "domain": (7, "string", False),
        "attribute": (5, "Attribute", True),
    },
    "Attribute": {
        "t": (5, "Tensor", False),
        "g": (6, "Graph", False),
        "tensors": (10, "Tensor", True),
        "graphs": (11, "Graph", True),
        "sparse_tensor": (22, "Sparse", False),
        "sparse_tensors": (23, "Sparse", True),
    },
    "Sparse": {"values": (1, "Tensor", False), "indices": (2, "Tensor", False)},
    "Tensor": {
        "name": (8, "string", False),
        "external_data": (13, "Entry", True),
        "data_location": (14, "int32", False),
    },
    "Entry": {},
}


class OnnxFileError(ValueError):
    """Raised if an ONNX file is not self-contained or cannot be read."""


class Operators(NamedTuple):
    """The operators of an ONNX file.

    Attributes:
        names: The names of all operators.
        bounded: True if the values of a request do not decide how long the graph runs.
    """

    names: set[str]
    bounded: bool


def operators(content: bytes) -> Operators:
    """Check an ONNX file and return its operators.

    Raises:
        OnnxFileError: The file is not ONNX, stores tensors in other files, or uses operators that
            ONNX Runtime does not contain.
    """
    if content[4:8] == ORT_FORMAT:
        raise OnnxFileError("does not load: it has ONNX Runtime's own format, only ONNX is read")
    try:
        model = _model_class().FromString(content)
    except DecodeError:
        raise OnnxFileError("does not load: it is not an ONNX model, or nested too deeply") from None
    allowed = DOMAINS | {function.domain for function in model.functions}
    operators = set()
    for kind, message in _parts(model):
        if kind == "Tensor" and (message.data_location == EXTERNAL or message.external_data):
            raise OnnxFileError(
                "keeps tensors in another file (external data), which no hash covers: save it as one file"
            )
        if kind in ("Node", "Opset") and message.domain not in allowed:
            raise OnnxFileError(
                f"uses operators of the domain {ascii(message.domain)[:100]}, which are not ONNX Runtime's own"
            )
        if kind == "Node":
            if message.op_type in READ_FILES:
                raise OnnxFileError(f"uses the operator {message.op_type}, which reads other files")
            operators.add(message.op_type)
    return Operators(operators, not operators & UNBOUNDED and not _sized_by_values(model, operators))


def _sized_by_values(model: Any, names: set[str]) -> bool:
    """Whether values of the graph's inputs may decide the size of a tensor.

    The inputs' values are followed from node to node. The number of rows of a request is no value:
    ``Shape`` ends the trace. Graphs within graphs and functions are not followed: with them any
    operator of ``SIZED_BY`` counts.
    """
    if not names & SIZED_BY.keys():
        return False
    graph = model.graph
    if model.functions or any(
        attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute
    ):
        return True
    constant = {tensor.name for tensor in graph.initializer}
    from_values = {value.name for value in graph.input} - constant
    # Nodes come in topological order (the ONNX specification, "Graphs"); ONNX Runtime refuses
    # another one.
    for node in graph.node:
        given = [name in from_values for name in node.input]
        if any(given[place] for place in SIZED_BY.get(node.op_type, ()) if place < len(given)):
            return True
        if any(given) and node.op_type not in SIZES:
            from_values.update(node.output)
    return False


def _parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield every message of a model with the name of its type."""
    waiting = [model]
    while waiting:
        message = waiting.pop()
        name = message.DESCRIPTOR.name
        yield name, message
        for field, (_, kind, repeated) in MESSAGES[name].items():
            if kind in MESSAGES and (repeated or message.HasField(field)):
                content = getattr(message, field)
                waiting += content if repeated else [content]


@cache
def _model_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="serving/models/onnx_file.proto", package="serving.models.onnx_file", syntax="proto2"
    )
    types = descriptor_pb2.FieldDescriptorProto
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            added = message.field.add(
                name=field, number=number, label=types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL
            )
            if kind in MESSAGES:
                added.type, added.type_name = types.TYPE_MESSAGE, f".serving.models.onnx_file.{kind}"
            else:
                # The type is string, because op_type and domain as bytes are never equal to text.
                # proto2 accepts invalid UTF-8.
                added.type = {"string": types.TYPE_STRING, "int32": types.TYPE_INT32}[kind]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("serving.models.onnx_file.Model"))
