"""Models as ONNX graphs of one layout, whatever library trained them.

Inputs are ``numeric`` float32 [n, number of numeric inputs] (NaN: missing) and, if a project has
categories, ``categorical`` string [n, number of categories] ("": missing). The output is
``prediction`` float32 [n] (the probability of 1, or the number). The preprocessing is inside the
graph, so serving does not need the project's code.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from include.training.inference import predict, session

# onnx 1.23 would write IR 14 and opset 28, but onnxruntime 1.31 accepts up to 13 and 26. These are
# skl2onnx's defaults.
IR_VERSION = 10
OPSET, ML_OPSET = 22, 3
TOLERANCE = 1e-4


class ExportError(ValueError):
    """Raised when the exported graph's predictions differ from the model's."""


class Graph:
    """A graph builder: ``add`` appends a node and returns the name of its output."""

    def __init__(self, numeric: int, categorical: int) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs = [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["n", numeric])]
        if categorical:
            self._inputs.append(helper.make_tensor_value_info("categorical", TensorProto.STRING, ["n", categorical]))

    def constant(self, values: Any, dtype: str = "float32") -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def category_codes(self, column: int, categories: list[str]) -> str:
        """Return float codes [n, 1] of one categorical column.

        They are 0, 1, ... as in ``categories``, and -1 for any other string.
        """
        values = self.add("Gather", "categorical", self.constant([column], "int64"), axis=1)
        # The fit has not seen any category, so every string is unknown.
        if not categories:
            return self.add(
                "Add",
                self.add("Mul", self.add("Gather", "numeric", self.constant([0], "int64"), axis=1), self.constant(0.0)),
                self.constant(-1.0),
            )
        return self.add(
            "LabelEncoder",
            values,
            domain="ai.onnx.ml",
            keys_strings=categories,
            values_floats=[float(i) for i in range(len(categories))],
            default_float=-1.0,
        )

    def include(self, body: onnx.ModelProto, input_name: str) -> dict[str, str]:
        """Append a graph with one input after ``input_name``. Return its outputs' new names."""
        inner = onnx.compose.add_prefix(body, f"body_{len(self._nodes)}_").graph
        self._nodes.append(helper.make_node("Identity", [input_name], [inner.input[0].name]))
        self._nodes.extend(inner.node)
        self._constants.extend(inner.initializer)
        return {before.name: after.name for before, after in zip(body.graph.output, inner.output, strict=True)}

    def model(self, output: str) -> onnx.ModelProto:
        """Return the checked model whose prediction is ``output``, reshaped to [n]."""
        self._nodes.append(helper.make_node("Reshape", [output, self.constant([-1], "int64")], ["prediction"]))
        prediction = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"])
        graph = helper.make_graph(self._nodes, "airloop", self._inputs, [prediction], self._constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="airloop")
        onnx.checker.check_model(model)
        return model


def check_equal(
    graph: bytes, native: np.ndarray, numeric: np.ndarray, categorical: np.ndarray, *, scale: float = 1.0
) -> float:
    """Return the largest relative difference between the graph's predictions and the model's own.

    Args:
        native: the model's own predictions, float [n].
        numeric, categorical: the graph's inputs, [n, k] and [n, m].
        scale: the difference is relative to this where a prediction is smaller (``scale_of``).

    Raises:
        ExportError: it is above 1e-4.
    """
    exported = predict(session(graph), numeric, categorical)
    relative = np.abs(exported - native) / np.maximum(scale, np.abs(native))
    difference = float(np.max(relative, initial=0.0))
    if not difference <= TOLERANCE:  # also true of NaN
        row = int(np.argmax(np.where(np.isnan(relative), np.inf, relative)))
        raise ExportError(
            f"the exported graph predicts {exported[row]:.7g} where the model predicts {native[row]:.7g} (row {row} of"
            f" {len(native)}): the difference is {difference:.2g} of the prediction or of the predictions' scale"
            f" ({scale:.3g}); at most {TOLERANCE:g} is allowed"
        )
    return difference
