"""Evidently's report, and conditions that it does not detect."""

import json

import numpy as np
import pandas as pd
import pytest

from include.monitoring import drift
from include.monitoring.drift import compare

pytestmark = pytest.mark.slow

NUMERIC, CATEGORICAL = ("a", "b", "c", "dead", "never"), ("place",)


def rows(seed: int, count: int = 3000, **changes) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    made = {
        "a": generator.normal(size=count),
        "b": generator.normal(size=count),
        "c": np.ones(count),
        "dead": generator.normal(size=count),
        "never": np.full(count, np.nan),
        "place": generator.choice(["JFK", "LGA", None], count),
    }
    return pd.DataFrame(made | {name: change(made[name]) for name, change in changes.items()})


@pytest.fixture(scope="module")
def drifted():
    return compare(
        rows(0),
        rows(1, a=lambda x: x + 1, dead=lambda x: x * np.nan, place=lambda x: np.full(len(x), "EWR")),
        numeric=NUMERIC,
        categorical=CATEGORICAL,
    )


def test_the_columns_that_changed_drifted_and_no_others(drifted):
    assert set(drifted.drifted) == {"a", "dead", "place"}
    assert drifted.share == pytest.approx(3 / 6)


def test_what_evidently_counted_is_what_its_tests_name(drifted):
    counted = next(
        m for m in json.loads(drifted.json)["metrics"] if m["metric_name"].startswith("DriftedColumnsCount")
    )["value"]["count"]
    assert counted == len(set(drifted.drifted) - {"dead"})


def test_the_page_shows_each_column_and_needs_no_network(drifted):
    assert all(f'"{column}"' in drifted.html or f"{column}" in drifted.html for column in ("a", "b", "place"))
    assert "DATA DISTRIBUTION" in drifted.html
    assert '<script src="http' not in drifted.html


def test_the_same_rows_did_not_drift():
    assert compare(rows(0), rows(1), numeric=NUMERIC, categorical=CATEGORICAL).share == 0


def test_few_rows_are_judged_by_p_values_the_right_way_round():
    comparison = compare(rows(0, 300), rows(5, 300, a=lambda x: x + 1), numeric=NUMERIC, categorical=CATEGORICAL)
    assert comparison.drifted == ("a",)


def test_a_seldom_or_newly_missing_column_is_not_silent():
    comparison = compare(rows(0, never=lambda x: np.arange(len(x))), rows(1), numeric=NUMERIC, categorical=CATEGORICAL)
    assert comparison.drifted == ("never",)


@pytest.mark.parametrize(("reference", "current"), [(0, 10), (10, 0)], ids=["no reference", "no predictions"])
def test_nothing_to_compare_is_not_known_rather_than_no_drift(reference, current):
    comparison = compare(rows(0, reference), rows(1, current), numeric=NUMERIC, categorical=CATEGORICAL)
    assert np.isnan(comparison.share)


def test_a_report_holds_a_sample_of_the_rows_only():
    assert len(drift._sample(rows(0, drift.SAMPLE + 1))) == drift.SAMPLE


NUMBERS = {
    "all null": lambda n: np.full(n, np.nan),
    "one value": lambda n: np.where(np.arange(n) == 0, 5.0, np.nan),
    "some infinite": lambda n: np.where(np.arange(n) % 7 == 0, np.inf, np.arange(n)),
    "all infinite": lambda n: np.full(n, -np.inf),
    "the ends of float64": lambda n: np.where(np.arange(n) % 2 == 0, 1.7e308, -1.7e308),
    "very large": lambda n: np.random.default_rng(0).normal(size=n) * 1e300,
    "very small": lambda n: np.random.default_rng(0).normal(size=n) * 1e-310,
    "constant": lambda n: np.ones(n),
    "a large constant": lambda n: np.full(n, 1.7e308),
    "large with small differences": lambda n: np.array([2**63 + 2048 * i for i in range(n)], dtype=object),
    "objects": lambda n: np.array([None, 1, 2.5] * n, dtype=object)[:n],
    "nullable": lambda n: pd.array([None, 1, 2] * n, dtype="Int64")[:n],
    "truth values": lambda n: np.arange(n) % 2 == 0,
}
TEXTS = {
    "all null": lambda n: np.array([None] * n, dtype=object),
    "unique": lambda n: np.array([f"text {i}" for i in range(n)]),
    "long": lambda n: np.array(["x" * 5000 + str(i % 3) for i in range(n)]),
    "half a character": lambda n: np.array(["\ud800"] * n, dtype=object),
    "control characters": lambda n: np.array(["\x00\n<script>"] * n),
    "nullable integers": lambda n: pd.array([None, 1, 2] * n, dtype="Int64")[:n],
    "categories": lambda n: pd.Categorical(["a", None] * n)[:n],
    "mixed": lambda n: np.array([1, "a", None, 2.5] * n, dtype=object)[:n],
}


@pytest.mark.parametrize("sides", ["reference", "current", "both"])
@pytest.mark.parametrize("count", [1, 600])
@pytest.mark.parametrize(
    ("column", "made"),
    [pytest.param("a", made, id=f"number, {name}") for name, made in NUMBERS.items()]
    + [pytest.param("place", made, id=f"text, {name}") for name, made in TEXTS.items()],
)
def test_no_data_breaks_the_report(column, made, count, sides):
    reference, current = rows(0, 600 if sides == "current" else count), rows(1, count)
    for side, name in ((reference, "reference"), (current, "current")):
        if sides in (name, "both"):
            side[column] = pd.Series(made(len(side)))
    comparison = compare(reference, current, numeric=("a", "b"), categorical=CATEGORICAL)
    assert 0 <= comparison.share <= 1 and comparison.html


@pytest.mark.parametrize("scale", [1e-310, 1.0, 1e300], ids=str)
def test_drift_is_seen_at_any_scale(scale):
    moved = compare(rows(0, a=lambda x: x * scale), rows(1, a=lambda x: (x + 1) * scale), numeric=("a", "b"))
    same = compare(rows(0, a=lambda x: x * scale), rows(1, a=lambda x: x * scale), numeric=("a", "b"))
    assert (moved.drifted, same.drifted) == (("a",), ())
