"""The scale at which a model's errors are measured."""

import numpy as np

from include.projects.base import TaskKind


def scale_of(kind: TaskKind, predictions: np.ndarray) -> float:
    """Return the scale of a model's predictions.

    For predictions below it, a difference is measured relative to the scale instead of the
    prediction. A graph adds 32-bit numbers, so its errors are proportional to the scale of all
    predictions, even where one prediction is near 0.

    Args:
        predictions: float [n] of typical rows.

    Returns:
        1 for probabilities. Otherwise the root mean square of the finite predictions, or 1 if that
            is 0.
    """
    if kind == TaskKind.BINARY:
        return 1.0
    values = np.asarray(predictions, dtype="float64")
    values = values[np.isfinite(values)]
    largest = float(np.max(np.abs(values), initial=0.0))
    if not largest:
        return 1.0
    return largest * float(np.sqrt(np.mean((values / largest) ** 2)))
