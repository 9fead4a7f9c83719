"""A simple rule, which every other model has to beat."""

from typing import Any

import numpy as np

from include.projects.base import Inputs, TaskKind
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
    """Fit a straight line (or logistic curve) through one column.

    Missing values are replaced by the column's median.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    filled = SimpleImputer(strategy="median", keep_empty_features=True)
    column = ColumnTransformer([("rule", filled, [inputs.numeric.index(rule)])])
    line = LogisticRegression(**parameters) if kind == TaskKind.BINARY else LinearRegression(**parameters)
    model = make_pipeline(column, StandardScaler(), line)
    model.fit(numeric, label)
    return SklearnModel(model, kind, numeric.shape[1], [], ignored_categories=categorical.shape[1])
