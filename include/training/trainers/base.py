"""What all families of models share: the protocol, the seed, and the codes of categories."""

from typing import Protocol

import numpy as np
import onnx

SEED = 0


class Model(Protocol):
    """A fitted model."""

    history: dict[str, list[float]]  # curves of the fit, by name (empty if the trainer has none)

    def predict(self, numeric: np.ndarray, categorical: np.ndarray) -> np.ndarray:
        """Return predictions [n] of the training library. ONNX is compared with them."""

    def to_onnx(self) -> onnx.ModelProto:
        """Return the graph, in the layout of ``include.training.onnx``."""


def known_categories(categorical: np.ndarray) -> list[list[str]]:
    """Return the distinct values of each column, sorted and without "" (missing)."""
    return [sorted(set(categorical[:, i]) - {""}) for i in range(categorical.shape[1])]


def category_codes(categorical: np.ndarray, categories: list[list[str]]) -> np.ndarray:
    """Return codes float32 [n, number of columns]: the index in the sorted list, or -1."""
    codes = np.full(categorical.shape, -1, dtype="float32")
    for i, known in enumerate(categories):
        places = {value: place for place, value in enumerate(known)}
        codes[:, i] = [places.get(value, -1) for value in categorical[:, i]]
    return codes


def with_codes(numeric: np.ndarray, categorical: np.ndarray, categories: list[list[str]]) -> np.ndarray:
    """Return the rows [numbers | codes of the categories]."""
    return np.hstack([numeric, category_codes(categorical, categories)]) if categories else numeric
