"""Trainers: each fits one kind of model and gives an object that predicts and exports itself.

A trainer is ``(kind, inputs, rule, numeric, categorical, label, parameters, run) -> Model``; ``Candidate.trainer`` names it. They give the same
model from the same rows every time: seeds are fixed and threads are pinned. ``run`` says by which workers, where, and with which checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx

from include.projects.base import Candidate, Inputs, Project, TaskKind
from include.training.onnx import IR_VERSION, ML_OPSET, OPSET, Graph
from include.training.workers import FitRun

SEED = 0


class Model(Protocol):
    """A fitted model."""

    history: dict[str, list[float]]  # curves of the fit, by name (empty if the trainer has none)

    def predict(self, numeric: np.ndarray, categorical: np.ndarray) -> np.ndarray:
        """Predictions [n] of the library that trained it; ONNX is compared with them."""

    def to_onnx(self) -> onnx.ModelProto:
        """The graph, in the layout of ``include.training.onnx``."""


@dataclass
class SklearnModel:
    """A scikit-learn estimator over [numeric | codes of the categories] (-1: a category not seen in the fit)."""

    estimator: Any
    kind: TaskKind
    width: int
    categories: list[list[str]]
    ignored_categories: int = 0  # categorical inputs that the graph declares, as every graph does, and that this estimator does not look at
    history: dict[str, list[float]] = field(default_factory=dict)

    def predict(self, numeric: np.ndarray, categorical: np.ndarray) -> np.ndarray:
        rows = with_codes(numeric, categorical, self.categories)
        return self.estimator.predict_proba(rows)[:, 1] if self.kind == TaskKind.BINARY else self.estimator.predict(rows)

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
        outputs = graph.include(body, graph.add("Concat", "numeric", *codes, axis=1) if codes else "numeric")
        if binary:
            return graph.model(graph.add("Gather", outputs["probabilities"], graph.constant(1, "int64"), axis=1))
        return graph.model(outputs["variable"])


def baseline_rule(kind, inputs: Inputs, rule: str, numeric, categorical, label, parameters, run=None) -> SklearnModel:
    """The rule a person would use: a straight line (or logistic curve) through one column, its median where it is missing."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    column = ColumnTransformer([("rule", SimpleImputer(strategy="median", keep_empty_features=True), [inputs.numeric.index(rule)])])
    line = LogisticRegression(**parameters) if kind == TaskKind.BINARY else LinearRegression(**parameters)
    model = make_pipeline(column, StandardScaler(), line)
    model.fit(numeric, label)
    return SklearnModel(model, kind, numeric.shape[1], [], ignored_categories=categorical.shape[1])


def hist_gradient_boosting(kind, inputs: Inputs, rule: str, numeric, categorical, label, parameters, run=None) -> SklearnModel:
    """scikit-learn's HistGradientBoosting; missing numbers are its own affair, categories are ordinal codes."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    trainer = HistGradientBoostingClassifier if kind == TaskKind.BINARY else HistGradientBoostingRegressor
    categories = known_categories(categorical)
    # Without early stopping: it would set rows aside at random, newest ones too, and the number of trees is a parameter.
    model = trainer(**{"early_stopping": False, "random_state": SEED, **parameters})
    rows = with_codes(numeric, categorical, categories)
    never_known = np.isnan(rows).all(axis=0)
    # scikit-learn 1.9 cannot bin a column that is missing everywhere; a constant one is never split on either.
    model.fit(np.where(never_known, np.float32(0), rows) if never_known.any() else rows, label)
    _thresholds_in_float32(model)
    return SklearnModel(model, kind, numeric.shape[1], categories)


def _thresholds_in_float32(model: Any) -> None:
    """Round the trees' thresholds down to float32, which changes no prediction on float32 rows: there x <= t and x <= floor(t) are the same.

    ONNX has thresholds in float32, and skl2onnx rounds to the nearest one: rows between the two would go the other way.
    """
    for tree in (tree for iteration in model._predictors for tree in iteration):
        exact = tree.nodes["num_threshold"]
        near = exact.astype("float32")
        tree.nodes["num_threshold"] = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)


def torch_mlp(kind, inputs: Inputs, rule: str, numeric, categorical, label, parameters, run) -> Model:
    """A small torch network; see ``include.training.mlp``."""
    from include.training.mlp import fit_mlp  # imports torch: two seconds that only this candidate pays

    return fit_mlp(kind, numeric, categorical, label, run=run, **parameters)


TRAINERS: dict[str, Callable[..., Model]] = {"baseline_rule": baseline_rule, "hist_gradient_boosting": hist_gradient_boosting, "torch_mlp": torch_mlp}


class UnfitData(ValueError):
    """There is nothing to learn from in these rows."""


def train(project: Project, candidate: Candidate, numeric: np.ndarray, categorical: np.ndarray, label: np.ndarray, run: FitRun | None = None) -> Model:
    """Fit a candidate on these rows.

    Args:
        run: how; without it alone, on the CPU, without checkpoints.

    Raises:
        UnfitData: no rows, or (binary) outcomes of one kind only.
        ValueError: no such trainer.
    """
    if candidate.trainer not in TRAINERS:
        raise ValueError(f"candidate '{candidate.name}': no trainer '{candidate.trainer}'; there is {', '.join(TRAINERS)}")
    if len(label) == 0:
        raise UnfitData(f"no rows to fit '{candidate.name}' on")
    if project.kind == TaskKind.BINARY and (label == label[0]).all():
        raise UnfitData(f"all {len(label)} rows to fit '{candidate.name}' on have the outcome {label[0]:g}")
    fit = TRAINERS[candidate.trainer]
    return fit(project.kind, project.inputs, project.baseline_rule, numeric, categorical, label, dict(candidate.parameters), run or FitRun())


def known_categories(categorical: np.ndarray) -> list[list[str]]:
    """The distinct values of each column, sorted; "" (missing) is not one."""
    return [sorted(set(categorical[:, i]) - {""}) for i in range(categorical.shape[1])]


def category_codes(categorical: np.ndarray, categories: list[list[str]]) -> np.ndarray:
    """Codes float32 [n, number of columns]: the place in the sorted list, -1 for anything else."""
    codes = np.full(categorical.shape, -1, dtype="float32")
    for i, known in enumerate(categories):
        places = {value: place for place, value in enumerate(known)}
        codes[:, i] = [places.get(value, -1) for value in categorical[:, i]]
    return codes


def with_codes(numeric: np.ndarray, categorical: np.ndarray, categories: list[list[str]]) -> np.ndarray:
    return np.hstack([numeric, category_codes(categorical, categories)]) if categories else numeric
