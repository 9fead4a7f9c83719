"""Rules that apply to every source, tested on a made-up one."""

from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from include.data import gaps, layout, rules, tables
from include.data.reading import to_table
from include.ledger import moment
from include.projects import get_project
from include.projects.base import Reference, Source
from include.settings import get_settings

METERS = Source(
    name="meters",
    columns={"meter": "string", "town": "string", "known_at": "timestamp"},
    key=("meter",),
    known_at="known_at",
    nullable=("town",),
)
READINGS = Source(
    name="readings",
    columns={"meter": "string", "at": "timestamp", "value": "float64", "known_at": "timestamp"},
    key=("meter", "at"),
    known_at="known_at",
    nullable=("value",),
    references=Reference(source="meters", columns=("meter",)),
)
PROJECT = get_project("flights").model_copy(update={"name": "power", "sources": (METERS, READINGS)})
NOON = pd.Timestamp("2013-01-01T12:00Z")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def readings(*rows: tuple) -> pd.DataFrame:
    """Return rows of (meter, hour, value) or (meter, hour, value, minutes until it was known)."""
    table = pd.DataFrame([(*row, 0)[:4] for row in rows], columns=["meter", "at", "value", "known_at"])
    at = pd.Timestamp("2013-01-01T00:00Z") + pd.to_timedelta(table["at"], unit="h")
    known = at + pd.to_timedelta(table["known_at"], unit="min")
    return table.assign(
        at=at.astype("datetime64[us, UTC]"),
        value=table["value"].astype("float64"),
        known_at=known.astype("datetime64[us, UTC]"),
    )


def put(source: Source, rows: pd.DataFrame) -> None:
    tables.append(layout.table(PROJECT, source.name), to_table(source, rows), writer="test", sequence=1)


def rows_by_rule(faults: list) -> dict[str, list[int]]:
    return {rule: np.flatnonzero(mask).tolist() for rule, _, mask in faults}


def test_what_became_known_at_the_cutoff_is_not_in_the_future():
    rows = readings(("a", 11, 1), ("a", 12, 1), ("a", 12, 1, 1))
    rule, message, mask = rules.from_the_future(READINGS, rows, NOON.to_pydatetime())
    assert (rule, mask.tolist()) == ("from_the_future", [False, False, True])
    assert "2013-01-01 12:01" in message
    assert rules.from_the_future(READINGS, rows.head(2), NOON.to_pydatetime()) is None


@pytest.mark.parametrize(
    ("rows", "owner", "expected"),
    [
        pytest.param([("a", 1, 1), ("a", 2, 1), ("b", 1, 1)], [0, 0, 0], {}, id="three keys are no repetition"),
        pytest.param(
            [("a", 1, 1), ("a", 1, 1), ("a", 1, 1)],
            [0, 0, 0],
            {"duplicated_keys": [1, 2]},
            id="of equal rows the first one stays",
        ),
        pytest.param([("a", 1, None), ("a", 1, None)], [0, 0], {"duplicated_keys": [1]}, id="missing values are equal"),
        pytest.param(
            [("a", 1, 1), ("a", 1, 2), ("b", 1, 1)],
            [0, 0, 0],
            {"contradicting_keys": [0, 1]},
            id="of contradicting rows none stays",
        ),
        pytest.param(
            [("a", 1, 1), ("a", 1, 1), ("a", 1, 2)],
            [0, 0, 0],
            {"contradicting_keys": [0, 1, 2]},
            id="nor when one of them is there twice",
        ),
        pytest.param([("a", 1, 1), ("a", 1, 2)], [0, 1], {}, id="another file is another matter"),
    ],
)
def test_keys_that_occur_twice_in_a_file(rows, owner, expected):
    assert rows_by_rule(rules.repeated_keys(READINGS, readings(*rows), np.array(owner))) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([("a", 1, 1), ("a", 2, 1)], {}, id="two keys are no repetition"),
        pytest.param(
            [("a", 1, 1), ("a", 1, 1, 30)], {"repeats_earlier": [1]}, id="the same said later is a repetition"
        ),
        pytest.param(
            [("a", 1, None), ("a", 1, 2)], {"contradicts_earlier": [1]}, id="a value instead of none is a contradiction"
        ),
        pytest.param(
            [("a", 1, 1), ("a", 1, 2), ("a", 1, 1)],
            {"repeats_earlier": [2], "contradicts_earlier": [1]},
            id="the first one is what counts",
        ),
    ],
)
@pytest.mark.parametrize("where", ["an earlier file of this run", "the table"])
def test_the_earlier_row_stays(rows, expected, where):
    rows = readings(*rows)
    if where == "the table":
        put(READINGS, rows.head(1))
        shifted = {rule: [n - 1 for n in numbers] for rule, numbers in expected.items()}
        assert rows_by_rule(rules.known_already(PROJECT, READINGS, rows.iloc[1:].reset_index(drop=True))) == shifted
    else:
        assert rows_by_rule(rules.in_earlier_file(READINGS, rows)) == expected


def test_where_a_row_came_from_makes_no_contradiction():
    source = READINGS.model_copy(update={"provenance": ("known_at",)})
    rows = readings(("a", 1, 1), ("a", 1, 1, 30))
    assert rows_by_rule(rules.repeated_keys(READINGS, rows, np.array([0, 0]))) == {"contradicting_keys": [0, 1]}
    assert rows_by_rule(rules.repeated_keys(source, rows, np.array([0, 0]))) == {"duplicated_keys": [1]}
    value_source = READINGS.model_copy(update={"provenance": ("value",)})
    differing = readings(("a", 1, 1), ("a", 1, 2))
    assert rows_by_rule(rules.in_earlier_file(value_source, differing)) == {"repeats_earlier": [1]}
    put(READINGS, differing.head(1))
    assert rows_by_rule(rules.known_already(PROJECT, value_source, differing.iloc[1:].reset_index(drop=True))) == {
        "repeats_earlier": [0]
    }


def test_a_row_must_refer_to_something_that_is_known():
    put(METERS, pd.DataFrame({"meter": ["a"], "town": [None], "known_at": [NOON]}))
    rule, message, mask = rules.dangling(PROJECT, READINGS, readings(("a", 1, 1), ("b", 1, 1)))
    assert (rule, mask.tolist()) == ("unknown_reference", [False, True])
    assert "meter=b" in message
    assert rules.dangling(PROJECT, READINGS, readings(("a", 1, 1))) is None
    assert rules.dangling(PROJECT, METERS, pd.DataFrame()) is None


STEADY = SimpleNamespace(group="meter", time="at", longest=timedelta(hours=2))


@pytest.mark.parametrize(
    ("known", "new", "gapped"),
    [
        pytest.param([], [("a", 0, 1), ("a", 2, 1)], [], id="as long as allowed is no gap"),
        pytest.param([], [("a", 0, 1), ("a", 3, 1)], [1], id="longer is one"),
        pytest.param([], [("a", 0, 1), ("b", 3, 1)], [], id="another meter is another matter"),
        pytest.param([("a", 0, 1)], [("a", 3, 1)], [0], id="after what is in the table"),
        pytest.param([("a", 9, 1)], [("a", 3, 1)], [0], id="before what is in the table"),
        pytest.param([("a", 0, 1), ("a", 4, 1)], [("a", 2, 1)], [], id="late rows fill a gap"),
        pytest.param([("a", 0, 1), ("a", 9, 1)], [("b", 2, 1)], [], id="an old gap is not told again"),
    ],
)
def test_gaps(known, new, gapped):
    if known:
        put(READINGS, readings(*known))
    assert [row for row, _ in gaps.among(PROJECT, READINGS, STEADY, readings(*new))] == gapped


def test_silence_until_the_cutoff_is_named(monkeypatch):
    monkeypatch.setattr(gaps, "expected", lambda *_: STEADY)
    put(READINGS, readings(("a", 9, 1), ("b", 10, 1)))
    (message,) = gaps.until_now(PROJECT, READINGS, moment("2013-01-01T12:00:00Z"))
    assert "meter=a from 2013-01-01 09:00 until the cutoff 2013-01-01 12:00" in message


def test_an_append_that_is_done_again_changes_nothing(tmp_path):
    uri, rows = str(tmp_path / "t"), pa.table({"a": [1]})
    first = tables.append(uri, rows, writer="w", sequence=1)
    assert tables.append(uri, rows, writer="w", sequence=1) == first
    assert tables.append(uri, rows, writer="w", sequence=2) == first + 1
    assert tables.append(uri, rows, writer="other", sequence=1) == first + 2
