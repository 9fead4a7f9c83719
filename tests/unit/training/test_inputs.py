"""A value has one text and one number for the model, independent of the column's dtype.

Serving derives the same text and number from the value in JSON.
"""

import json
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from include.training.inputs import as_categories, as_numbers, matrices
from serving.models.inputs import Inputs

INTEGERS = [3, None, -7, 0]
INTEGER_COLUMNS = {
    "objects": pd.Series(INTEGERS, dtype=object),
    "floats": pd.Series([3.0, np.nan, -7.0, 0.0]),
    "float32": pd.Series([3.0, np.nan, -7.0, 0.0], dtype="float32"),
    "decimals": pd.Series([Decimal("3"), None, Decimal("-7.0"), Decimal("0.00")], dtype=object),
    "categories of integers": pd.Series(pd.Categorical(INTEGERS)),
    **{dtype: pd.Series(INTEGERS, dtype=dtype) for dtype in ("Int8", "Int16", "Int32", "Int64", "Float32", "Float64")},
    **{
        f"Arrow {kind}": pd.Series(INTEGERS, dtype=pd.ArrowDtype(kind))
        for kind in (pa.int8(), pa.int64(), pa.float32(), pa.float64())
    },
    "Arrow decimal": pd.Series(
        [Decimal("3"), None, Decimal("-7"), Decimal("0")], dtype=pd.ArrowDtype(pa.decimal128(10, 2))
    ),
}
TEXTS = ["JFK", None, "", "3.0", "ä€😀"]
TEXT_COLUMNS = {
    "objects": pd.Series(TEXTS, dtype=object),
    "string": pd.Series(TEXTS, dtype="string"),
    "str": pd.Series(TEXTS, dtype="str"),
    "category": pd.Series(pd.Categorical(TEXTS)),
    "Arrow string": pd.Series(TEXTS, dtype=pd.ArrowDtype(pa.string())),
    "Arrow large string": pd.Series(TEXTS, dtype=pd.ArrowDtype(pa.large_string())),
    "Arrow dictionary": pd.Series(
        pd.array(pa.array(TEXTS).dictionary_encode(), dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())))
    ),
}
TRUTHS = [True, None, False]
TRUTH_COLUMNS = {
    "objects": pd.Series(TRUTHS, dtype=object),
    "boolean": pd.Series(TRUTHS, dtype="boolean"),
    "Arrow": pd.Series(TRUTHS, dtype=pd.ArrowDtype(pa.bool_())),
}


def served(values):
    """Return what serving derives from the values when they are sent as JSON."""
    inputs = Inputs(
        SimpleNamespace(
            numeric=(),
            categorical=("c",),
            inputs=("c",),
            request_features=("c",),
            join_keys=(),
            view_features={},
            lookup=None,
        )
    )
    return [inputs.texts({"c": json.loads(json.dumps(value))})[0] for value in values]


@pytest.mark.parametrize(
    ("values", "column"),
    [
        pytest.param(values, column, id=f"{kind}: {name}")
        for kind, values, columns in (
            ("integers", INTEGERS, INTEGER_COLUMNS),
            ("texts", TEXTS, TEXT_COLUMNS),
            ("truth values", TRUTHS, TRUTH_COLUMNS),
        )
        for name, column in columns.items()
    ],
)
def test_a_category_is_the_text_that_serving_makes_of_it(values, column):
    assert as_categories(column).tolist() == served(values)


@pytest.mark.parametrize("column", [pytest.param(column, id=name) for name, column in INTEGER_COLUMNS.items()])
def test_a_number_is_the_same_in_every_dtype(column):
    assert np.array_equal(as_numbers(column), [3.0, np.nan, -7.0, 0.0], equal_nan=True)


def test_large_integers_keep_their_digits():
    large = [2**63 - 1, -(2**63), 2**53 + 1]
    assert as_categories(pd.Series(large, dtype="Int64")).tolist() == served(large)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 2.5, 1e300, -0.0])
def test_floats_that_are_no_integers_of_use_have_a_text_too(value):
    (text,) = as_categories(pd.Series([value]))
    assert float(text) == value


def test_a_numeric_column_with_a_text_is_named():
    frame = pd.DataFrame({"a": [1.0], "b": ["three"]})
    with pytest.raises(ValueError, match="column 'b' .* is a numeric input and has a value that is not a number"):
        matrices(frame, ["a", "b"], [])
