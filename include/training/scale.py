"""The scale at which a model's errors are measured."""

import numpy as np

from include.projects.base import TaskKind


def scale_of(kind: TaskKind, predictions: np.ndarray) -> float:
    """Return the size of a model's predictions, below which a difference is measured against the scale and not against the single prediction.

    A graph adds up numbers of 32 bits, so its errors have the scale of all predictions, also where one prediction is near 0.

    Args:
        predictions: float [n] of typical rows.

    Returns:
        1 for probabilities; else the root mean square of the finite predictions, and 1 where that is 0.
    """
    if kind == TaskKind.BINARY:
        return 1.0
    values = np.asarray(predictions, dtype="float64")
    values = values[np.isfinite(values)]
    largest = float(np.max(np.abs(values), initial=0.0))
    if not largest:
        return 1.0
    return largest * float(np.sqrt(np.mean((values / largest) ** 2)))
