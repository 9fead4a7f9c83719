"""Convert rows to a model's inputs: a float matrix and a string matrix, in the contract's order."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd


def matrices(frame: pd.DataFrame, numeric: Sequence[str], categorical: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numeric and categorical inputs.

    They are float32 [n, len(numeric)] with NaN for missing values, and object [n, len(categorical)]
    with "" for missing values.

    Raises:
        KeyError: columns are missing. The message names all of them.
        ValueError: a numeric column has a value that is not a number. The message names the column.
    """
    missing = [c for c in (*numeric, *categorical) if c not in frame.columns]
    if missing:
        raise KeyError(f"input columns are missing: {', '.join(missing)}")
    numbers = np.empty((len(frame), len(numeric)), dtype="float32")
    for i, column in enumerate(numeric):
        numbers[:, i] = as_numbers(frame[column])
    strings = np.empty((len(frame), len(categorical)), dtype=object)
    for i, column in enumerate(categorical):
        strings[:, i] = as_categories(frame[column])
    return numbers, strings


def as_numbers(column: pd.Series) -> np.ndarray:
    """Return a column of any dtype as float64 [n], with NaN for missing values.

    Raises:
        ValueError: a value is not a number.
    """
    try:
        numbers: np.ndarray = column.to_numpy(dtype="float64", na_value=np.nan)
        return numbers
    except (TypeError, ValueError):
        pass
    # A dictionary of numbers, or objects with other missing values.
    try:
        return np.array(
            [
                np.nan if missing else float(value)
                for value, missing in zip(column.astype(object), column.isna(), strict=True)
            ],
            dtype="float64",
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"column '{column.name}' ({column.dtype}) is a numeric input and has a value that is not a number: {error}"
        ) from None


def as_categories(column: pd.Series) -> np.ndarray:
    """Return a column of any dtype as text, object [n], with "" for missing values.

    The text equals the one that serving makes of the same value in JSON: an integer does not have a
    decimal point, whatever its dtype. In pandas, a column of integers with a missing value is a
    column of floats.
    """
    values, missing = column.astype(object), column.isna()
    texts = [("" if nothing else _text(value)) for value, nothing in zip(values, missing, strict=True)]
    return np.array(texts, dtype=object)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float | np.floating | Decimal) and value == value // 1:
        return str(int(value))
    if isinstance(value, np.generic):
        value = value.item()
    return str(value)
