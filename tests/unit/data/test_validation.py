"""Great Expectations identifies bad rows. An expectation that cannot be evaluated is an error.

It never counts as passed.
"""

import great_expectations.expectations as gxe
import pandas as pd
import pytest

from include.data.validation import validate
from include.projects import get_project

FLIGHTS = get_project("flights")
EXPECTATIONS = FLIGHTS.module("expectations")


def broken(rows: dict, *suite) -> dict[str, list[int]]:
    return {b.rule: b.rows for b in validate("t", pd.DataFrame(rows), list(suite)).broken}


@pytest.mark.parametrize(
    ("rows", "expectation", "expected"),
    [
        pytest.param(
            {"a": [1.0, -1.0, None]},
            gxe.ExpectColumnValuesToBeBetween(column="a", min_value=0),
            [1],
            id="a value out of its range, and nothing is no value",
        ),
        pytest.param(
            {"a": ["x", "xx"]},
            gxe.ExpectColumnValuesToMatchRegex(column="a", regex="^x$"),
            [1],
            id="text that does not match",
        ),
        pytest.param(
            {"a": [1, 3], "b": [2, 2]},
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="a", column_B="b"),
            [0],
            id="two columns that do not fit",
        ),
        pytest.param(
            {"a": [1, 1, 2]},
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["a", "a"]),
            [0, 1],
            id="keys that occur twice",
        ),
        pytest.param(
            {"a": [None, None, 1.0, 1.0], "b": ["x", "y", "x", "y"]},
            gxe.ExpectColumnValuesToNotBeNull(column="a", row_condition='b=="x"', condition_parser="pandas"),
            [0],
            id="nothing where a condition asks for something",
        ),
        pytest.param(
            {"a": [None, None, 1.0, 1.0], "b": ["x", "y", "x", "y"]},
            gxe.ExpectColumnValuesToBeNull(column="a", row_condition='b!="x"', condition_parser="pandas"),
            [3],
            id="something where a condition asks for nothing",
        ),
        pytest.param(
            {"a": [1.0, 2.0]},
            gxe.ExpectColumnMeanToBeBetween(column="a", min_value=5),
            [],
            id="a rule about the table as a whole names no row",
        ),
    ],
)
def test_the_bad_rows_are_known(rows, expectation, expected):
    (bad_rows,) = broken(rows, expectation).values()
    assert bad_rows == expected


def test_a_warning_says_that_it_is_one():
    suite = [
        gxe.ExpectColumnValuesToBeBetween(column="a", max_value=0, severity=severity)
        for severity in ("critical", "warning")
    ]
    violations = (
        validate("t", pd.DataFrame({"a": [1], "b": [1]}), [suite[0]]).broken
        + validate("t", pd.DataFrame({"a": [1]}), [suite[1]]).broken
    )
    assert [b.warning for b in violations] == [False, True]


@pytest.mark.parametrize("mostly", [0.5, 1.0])
def test_what_mostly_allows_is_allowed(mostly):
    assert bool(broken({"a": [1, -1]}, gxe.ExpectColumnValuesToBeBetween(column="a", min_value=0, mostly=mostly))) == (
        mostly == 1.0
    )


def test_an_expectation_of_a_column_that_is_not_there_is_an_error():
    with pytest.raises(RuntimeError, match=r"column_values_to_be_between\(nope\) could not be evaluated"):
        broken({"a": [1]}, gxe.ExpectColumnValuesToBeBetween(column="nope", min_value=0))


def test_the_page_shows_figures_of_the_table_as_a_whole():
    page = validate(
        "t", pd.DataFrame({"a": [1.25, 2.5]}), [gxe.ExpectColumnMeanToBeBetween(column="a", min_value=5)]
    ).page
    assert "1.875" in page


@pytest.mark.parametrize("source", [source.name for source in FLIGHTS.sources])
def test_every_source_of_flights_has_a_suite(source):
    assert EXPECTATIONS.source_suite(source)


@pytest.mark.parametrize("view", FLIGHTS.feature_views)
def test_every_view_of_flights_has_a_suite_of_columns_that_it_has(view):
    features = set(FLIGHTS.inputs.numeric) | {"origin", "carrier", "dest", "route", "tailnum", "event_timestamp"}
    named = {getattr(expectation, "column", "event_timestamp") for expectation in EXPECTATIONS.feature_suite(view)}
    assert named <= features
    assert "event_timestamp" in named


@pytest.mark.parametrize(
    ("status", "arr_delay", "good"),
    [
        ("landed", 3.0, True),
        ("landed", None, False),
        ("cancelled", None, True),
        ("cancelled", 3.0, False),
        ("diverted", None, True),
        ("lost", None, False),
        ("landed", 99999.0, False),
    ],
)
def test_an_outcome_has_a_delay_when_and_only_when_the_flight_landed(status, arr_delay, good):
    at = pd.Timestamp("2013-01-01T12:00Z")
    sound = {
        "carrier": "UA",
        "flight": 1,
        "scheduled_departure": at,
        "status": "landed",
        "arr_delay": 1.0,
        "known_at": at,
    }
    rows = pd.DataFrame([sound, sound | {"status": status, "arr_delay": arr_delay}])
    violations = validate("actuals", rows, EXPECTATIONS.source_suite("actuals")).broken
    assert {row for b in violations for row in b.rows} == (set() if good else {1})
