"""Graphs that answer their golden requests well, and misbehave where the hour is 100 or more: what a canary may turn out to do."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.serving.stand import graph

LATE_HOUR = 100  # golden requests have none so late


def bad_graph(how: str, bias: float = 0) -> bytes:
    """``throws``, ``nan`` or ``slow`` (tenths of a second and more, on any machine) for late hours; else as ``stand.graph``."""
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
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"]))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _throws():
    """Looks into a table of one row at the number of hundreds."""
    return [helper.make_node("Gather", ["table", "whole"], ["zero_or_worse"])], {"table": np.zeros(1, dtype="float32")}


def _nan():
    """0 / 0 where it is late."""
    nodes = [helper.make_node("Sub", ["one", "latest"], ["left"]), helper.make_node("Max", ["left", "zero"], ["some"]),
             helper.make_node("Div", ["some", "some"], ["one_or_nan"]), helper.make_node("Sub", ["one_or_nan", "one"], ["zero_or_worse"])]  # fmt: skip
    return nodes, {"one": np.float32(1)}


def _slow():
    """A loop of many rounds where it is late."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Mul", ["value", "half"], ["next"])],
        "round",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.float32(0.5), "half")],
    )  # fmt: skip
    nodes = [helper.make_node("Mul", ["whole", "many"], ["rounds"]), helper.make_node("Loop", ["rounds", "yes", "zero"], ["zero_or_worse"], body=body)]
    return nodes, {"many": np.array(60_000), "yes": np.array(True)}
