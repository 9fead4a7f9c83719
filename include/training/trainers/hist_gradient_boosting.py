"""Gradient-boosted trees of scikit-learn."""

from typing import Any

import numpy as np

from include.projects.base import Inputs, TaskKind
from include.training.trainers.base import SEED, known_categories, with_codes
from include.training.trainers.sklearn_model import SklearnModel
from include.training.workers import FitRun


def fit(
    kind: TaskKind,
    inputs: Inputs,
    rule: str,
    numeric: np.ndarray,
    categorical: np.ndarray,
    label: np.ndarray,
    parameters: dict[str, Any],
    run: FitRun | None = None,
) -> SklearnModel:
    """Fit scikit-learn's HistGradientBoosting.

    It handles missing numbers itself. Categories are ordinal codes.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    trainer = HistGradientBoostingClassifier if kind == TaskKind.BINARY else HistGradientBoostingRegressor
    categories = known_categories(categorical)
    # No early stopping: it would set rows aside at random, including the newest. The number of
    # trees is a parameter.
    model = trainer(**{"early_stopping": False, "random_state": SEED, **parameters})
    rows = with_codes(numeric, categorical, categories)
    never_known = np.isnan(rows).all(axis=0)
    # scikit-learn 1.9 cannot bin a column that is missing everywhere. A constant column is never
    # split on either.
    model.fit(np.where(never_known, np.float32(0), rows) if never_known.any() else rows, label)
    _thresholds_in_float32(model)
    return SklearnModel(model, kind, numeric.shape[1], categories)


def _thresholds_in_float32(model: Any) -> None:
    """Round the trees' thresholds down to float32.

    This does not change any prediction on float32 rows: there x <= t and x <= floor(t) are the
    same. ONNX has thresholds in float32, and skl2onnx rounds to the nearest one. Rows between the
    two would then take the other branch.
    """
    for tree in (tree for iteration in model._predictors for tree in iteration):
        exact = tree.nodes["num_threshold"]
        near = exact.astype("float32")
        tree.nodes["num_threshold"] = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
