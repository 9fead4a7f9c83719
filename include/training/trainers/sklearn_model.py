"""A scikit-learn estimator as a model, for the families that use one."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from include.projects.base import TaskKind
from include.training.onnx import IR_VERSION, ML_OPSET, OPSET, Graph
from include.training.trainers.base import with_codes


@dataclass
class SklearnModel:
    """A scikit-learn estimator over [numeric | codes of the categories].

    The code -1 means a category that the fit has not seen.
    """

    estimator: Any
    kind: TaskKind
    width: int
    categories: list[list[str]]
    # Categorical inputs that the graph declares, like every graph, but that this estimator ignores.
    ignored_categories: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)

    def predict(self, numeric: np.ndarray, categorical: np.ndarray) -> np.ndarray:
        rows = with_codes(numeric, categorical, self.categories)
        estimator = self.estimator
        predictions: np.ndarray = (
            estimator.predict_proba(rows)[:, 1] if self.kind == TaskKind.BINARY else estimator.predict(rows)
        )
        return predictions

    def to_onnx(self) -> onnx.ModelProto:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        binary = self.kind == TaskKind.BINARY
        body = convert_sklearn(
            self.estimator,
            initial_types=[("rows", FloatTensorType([None, self.width + len(self.categories)]))],
            options={id(self.estimator): {"zipmap": False}} if binary else None,
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        )
        assert body.ir_version <= IR_VERSION
        graph = Graph(self.width, len(self.categories) + self.ignored_categories)
        codes = [graph.category_codes(i, known) for i, known in enumerate(self.categories)]
        rows = graph.add("Concat", "numeric", *codes, axis=1) if codes else "numeric"
        outputs = graph.include(body, rows)
        if binary:
            return graph.model(graph.add("Gather", outputs["probabilities"], graph.constant(1, "int64"), axis=1))
        return graph.model(outputs["variable"])
