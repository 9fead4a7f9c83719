"""Evidently's report, and what it cannot say by itself."""

import json

import numpy as np
import pandas as pd
import pytest

from include.monitoring import drift
from include.monitoring.drift import compare

NUMERIC, CATEGORICAL = ("a", "b", "c", "dead", "never"), ("place",)


def rows(seed: int, count: int = 3000, **changes) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    made = {
        "a": generator.normal(size=count), "b": generator.normal(size=count), "c": np.ones(count), "dead": generator.normal(size=count),
        "never": np.full(count, np.nan), "place": generator.choice(["JFK", "LGA", None], count),
    }  # fmt: skip
    return pd.DataFrame(made | {name: change(made[name]) for name, change in changes.items()})


@pytest.fixture(scope="module")
def drifted():
    return compare(
        rows(0), rows(1, a=lambda x: x + 1, dead=lambda x: x * np.nan, place=lambda x: np.full(len(x), "EWR")), numeric=NUMERIC, categorical=CATEGORICAL
    )


def test_the_columns_that_changed_drifted_and_no_others(drifted):
    assert set(drifted.drifted) == {"a", "dead", "place"}
    assert drifted.share == pytest.approx(3 / 6)


def test_what_evidently_counted_is_what_its_tests_name(drifted):
    counted = next(m for m in json.loads(drifted.json)["metrics"] if m["metric_name"].startswith("DriftedColumnsCount"))["value"]["count"]
    assert counted == len(set(drifted.drifted) - {"dead"})


def test_the_page_shows_each_column_and_needs_no_network(drifted):
    assert all(f'"{column}"' in drifted.html or f"{column}" in drifted.html for column in ("a", "b", "place"))
    assert "DATA DISTRIBUTION" in drifted.html
    assert '<script src="http' not in drifted.html


def test_the_same_rows_did_not_drift():
    assert compare(rows(0), rows(1), numeric=NUMERIC, categorical=CATEGORICAL).share == 0


def test_few_rows_are_judged_by_p_values_the_right_way_round():
    found = compare(rows(0, 300), rows(5, 300, a=lambda x: x + 1), numeric=NUMERIC, categorical=CATEGORICAL)
    assert found.drifted == ("a",)


def test_a_seldom_or_newly_missing_column_is_not_silent():
    found = compare(rows(0, never=lambda x: np.arange(len(x))), rows(1), numeric=NUMERIC, categorical=CATEGORICAL)
    assert found.drifted == ("never",)


@pytest.mark.parametrize(("reference", "current"), [(0, 10), (10, 0)], ids=["no reference", "no predictions"])
def test_nothing_to_compare_is_not_known_rather_than_no_drift(reference, current):
    found = compare(rows(0, reference), rows(1, current), numeric=NUMERIC, categorical=CATEGORICAL)
    assert np.isnan(found.share)


def test_a_report_holds_a_sample_of_the_rows_only():
    assert len(drift._sample(rows(0, drift.SAMPLE + 1))) == drift.SAMPLE
