"""Times, labels and numbers from a project's functions are normalized, or refused by name."""

import logging
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from include.data import tables
from include.features.times import NaiveTimeError, stored
from include.features.values import WrongLabelsError, check_labels, merged_by_float32, warn_of_merged
from include.projects import get_project
from include.projects.base import TaskKind

FLIGHTS = get_project("flights")
REGRESSION = FLIGHTS.model_copy(update={"kind": TaskKind.REGRESSION})
MOMENT = datetime(2013, 7, 1, 12, 0, 30, tzinfo=UTC)


def times(unit, zone):
    return pd.DataFrame(
        {"at": pd.Series([pd.Timestamp(MOMENT), pd.NaT]).dt.tz_convert(zone).dt.as_unit(unit), "n": [1, 2]}
    )


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "+05:30"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_each_unit_and_zone_are_the_same_moment_in_the_stored_form(unit, zone):
    frame = stored(FLIGHTS, times(unit, zone), "examples()")
    assert str(frame["at"].dtype) == "datetime64[us, UTC]" and frame["at"][0] == MOMENT and pd.isna(frame["at"][1])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_naive_times_are_refused_by_name(unit):
    naive = times(unit, None)
    with pytest.raises(
        NaiveTimeError,
        match=r"include/projects/flights/features.py: examples\(\) gives column 'at' as datetime64.*no time zone",
    ):
        stored(FLIGHTS, naive, "examples()")


def test_tables_can_hold_what_is_stored():
    import pyarrow as pa

    frame = stored(FLIGHTS, times("ns", "Asia/Tokyo"), "examples()")
    assert pa.Table.from_pandas(frame, preserve_index=False).schema.field("at").type == tables.ARROW["timestamp"]


@pytest.mark.parametrize("label", [-1, 2, 0.5, float("inf")])
def test_labels_that_a_binary_project_does_not_have_are_named(label):
    with pytest.raises(
        WrongLabelsError,
        match=r"project flights: 2 of 4 labels are not 0 or 1, as kind is binary, such as .*source 'actuals'",
    ):
        check_labels(FLIGHTS, pd.Series([0, 1, label, label]))


@pytest.mark.parametrize("labels", [pd.Series([0.0, 1.0]), pd.Series([0, 1], dtype="Int64"), pd.Series([True, False])])
def test_zeros_and_ones_of_each_type_are_labels(labels):
    check_labels(FLIGHTS, labels)


def test_a_regression_has_all_finite_labels():
    check_labels(REGRESSION, pd.Series([-3.5, 1e9]))
    with pytest.raises(WrongLabelsError, match="1 of 2 labels are not finite"):
        check_labels(REGRESSION, pd.Series([1.0, np.inf]))


@pytest.mark.parametrize(
    ("values", "lost"),
    [
        (pd.Series([2**24, 2**24 + 1, 2**24 + 2]), 1),
        (pd.Series([2**24, 2**24 + 1], dtype="Int64"), 1),
        (pd.Series([9007199254740993, 9007199254740992, None], dtype="Int64"), 1),
        (pd.Series([2**24 - 1, 2**24]), 0),
        (pd.Series([16777216.5, 16777217.5]), 0),
        (pd.Series([2**40, 2**41]), 0),
        (pd.Series(["a", "b"]), 0),
        (pd.Series([], dtype="float64"), 0),
    ],
)
def test_whole_numbers_that_float32_merges_are_counted(values, lost):
    assert merged_by_float32(values) == lost


def test_each_column_is_warned_of_once(caplog):
    with caplog.at_level(logging.WARNING):
        lost = warn_of_merged(FLIGHTS, pd.DataFrame({"distance": [2**24, 2**24 + 1], "hour": [1, 2]}))
    assert lost == {"distance": 1} and len(caplog.records) == 1 and "inputs.categorical" in caplog.text
