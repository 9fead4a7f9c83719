"""From rows to what a model is given: one float matrix, one string matrix, in the order that the contract names."""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def matrices(frame: pd.DataFrame, numeric: Sequence[str], categorical: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Numeric float32 [n, len(numeric)] (NaN: missing) and categorical object [n, len(categorical)] ("": missing).

    Raises:
        KeyError: a column is missing; the message names all that are.
    """
    missing = [c for c in (*numeric, *categorical) if c not in frame.columns]
    if missing:
        raise KeyError(f"input columns are missing: {', '.join(missing)}")
    numbers = np.empty((len(frame), len(numeric)), dtype="float32")
    for i, column in enumerate(numeric):
        numbers[:, i] = frame[column].to_numpy(dtype="float64", na_value=np.nan)
    strings = np.empty((len(frame), len(categorical)), dtype=object)
    for i, column in enumerate(categorical):
        values = frame[column].astype(object)
        strings[:, i] = values.where(values.notna(), "").astype(str).to_numpy(dtype=object)
    return numbers, strings
