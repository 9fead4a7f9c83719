"""Graphs that answer golden requests correctly and misbehave for hours of 100 or more.

They imitate the failures of bad canaries.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.serving.harness import graph

LATE_HOUR = 100  # later than any golden request


def bad_graph(how: str, bias: float = 0) -> bytes:
    """Return a graph that fails for late hours, and otherwise behaves as ``harness.graph``.

    ``throws`` raises an error, ``nan`` returns NaN, and ``slow`` takes seconds on any machine.
    """
    model = onnx.load_from_string(graph(bias, output="good"))
    nodes, constants = {"throws": _throws, "nan": _nan, "slow": _slow}[how]()
    head = [
        helper.make_node("Gather", ["filled", "first"], ["hour"], axis=1),
        helper.make_node("Div", ["hour", "limit"], ["hundreds"]),
        helper.make_node("Floor", ["hundreds"], ["late"]),
        helper.make_node("ReduceMax", ["late"], ["latest"], keepdims=0),
        helper.make_node("Cast", ["latest"], ["whole"], to=TensorProto.INT64),
    ]
    tail = [helper.make_node("Add", ["good", "zero_or_worse"], ["prediction"])]
    model.graph.node.extend([*head, *nodes, *tail])
    constants |= {"first": np.array(0), "limit": np.float32(LATE_HOUR)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"]))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _throws():
    """Index a table of one row with the number of hundreds."""
    return [helper.make_node("Gather", ["table", "whole"], ["zero_or_worse"])], {"table": np.zeros(1, dtype="float32")}


def _nan():
    """Compute 0 / 0 for late hours."""
    nodes = [
        helper.make_node("Sub", ["one", "latest"], ["left"]),
        helper.make_node("Max", ["left", "zero"], ["some"]),
        helper.make_node("Div", ["some", "some"], ["one_or_nan"]),
        helper.make_node("Sub", ["one_or_nan", "one"], ["zero_or_worse"]),
    ]
    return nodes, {"one": np.float32(1)}


def _slow():
    """Run a loop of many rounds for late hours."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Mul", ["value", "half"], ["next"])],
        "round",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
        ],
        [numpy_helper.from_array(np.float32(0.5), "half")],
    )
    nodes = [
        helper.make_node("Mul", ["whole", "many"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "yes", "zero"], ["zero_or_worse"], body=body),
    ]
    # A fast machine runs a million rounds a second. The limit of an arm ends the loop.
    return nodes, {"many": np.array(3_000_000), "yes": np.array(True)}
