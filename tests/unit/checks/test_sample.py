"""`airloop check` on ingested rows: times, examples, labels and features.

Features of one day alone are compared with features over all days.
"""

from datetime import timedelta

import pandas as pd
import pyarrow as pa
import pytest

from include.checks.check import check
from include.data import layout, tables
from include.projects import get_project
from include.settings import get_settings


@pytest.fixture
def rows(parcels):
    """Return the generated feed's rows by source. ``ingested`` writes them into the tables."""
    upstream = get_project("parcels").module("feed").upstream()
    return {name: frame.copy() for name, frame in upstream.items()}


def ingested(rows, root=None):
    project = get_project("parcels")
    for name, frame in rows.items():
        columns = project.source(name).columns
        table = pa.Table.from_pandas(frame[list(columns)], schema=tables.arrow_schema(columns), preserve_index=False)
        tables.append(
            f"{root}/tables/{name}" if root else layout.table(project, name), table, writer="test", sequence=1
        )


def findings(parcels):
    report = check(get_settings(), "parcels")
    assert report.skipped == []
    return [(one.rule, one.value) for one in report.findings], " ".join(map(str, report.findings))


def test_a_made_project_has_no_fault(parcels, rows):
    ingested(rows)
    assert findings(parcels) == ([], "")


def test_rows_of_a_try_will_do_where_nothing_is_ingested(parcels, rows):
    ingested(rows, parcels.home / "try" / "parcels" / "work" / "store" / "parcels")
    report = check(get_settings(), "parcels")
    assert report.findings == [] and "try/parcels/work" in report.looked_at[1]


SINCE = "since=since and since - SILENT_AFTER"
# Edited text of features.py -> rule and value of a finding, and words of its message.
FAULTS = {
    "an incremental run reads too little": (
        SINCE,
        "since=since and since - WEEK",
        ("incremental features", "customer_return_rate_28d"),
        "instead of",
    ),
    "an incremental run lacks rows": (
        "after=since or beginning",
        "after=since + STEP if since else beginning",
        ("incremental features", "parcels_customer_history"),
        "it lacks",
    ),
    "a view of another name": (
        '"parcels_product_history": rolling',
        '"parcels_product": rolling',
        ("compute", "parcels_product"),
        "compute() gives views",
    ),
    "a feature that Feast declares is missing": (
        '"product_outcomes_28d": (None',
        '"product_outcome_28d": (None',
        ("compute", "product_outcomes_28d"),
        "Did you mean 'product_outcome_28d'?",
    ),
    "a column of the examples is missing": (
        '"pieces", "weekday", "hour", "label"',
        '"weekday", "hour", "label"',
        ("examples", "pieces"),
        "gives no column 'pieces'",
    ),
    "naive times": (
        "rows = orders[inside]",
        'rows = orders[inside].assign(event_timestamp=lambda r: r["event_timestamp"].dt.tz_localize(None))',
        ("examples", "event_timestamp"),
        "must be a time with a time zone",
    ),
    "naive times of features": (
        "times = every(STEP, after=since or beginning, until=cutoff)",
        "times = every(STEP, after=since or beginning, until=cutoff).tz_localize(None)",
        ("compute", "event_timestamp"),
        "must be a time with a time zone",
    ),
    "an example that is predicted when its outcome is known": (
        'event_timestamp=lambda rows: rows["ordered_at"]',
        'event_timestamp=lambda rows: rows["ordered_at"] + pd.Timedelta(days=9)',
        ("known_at", "known_at"),
        "became known",
    ),
    "a label that is none": (
        "rename(columns=columns)",
        'assign(returned=known["returned"] + 1).rename(columns=columns)',
        ("label", "label"),
        "are not 0 or 1, such as 2",
    ),
    "a number that is a text": (
        'pieces=rows["pieces"].astype("float64")',
        'pieces="many"',
        ("inputs", "pieces"),
        "has a value that is not a number",
    ),
    "a function that raises": (
        "orders = _orders(tables)",
        "orders = _orders(nobody)",
        ("examples", "examples"),
        "NameError",
    ),
    "a key that names more than one thing": (
        "rows[columns].sort_values",
        "pd.concat([rows, rows])[columns].sort_values",
        ("example_key", "order_id"),
        "have the example_key",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_projects_code_is_seen_on_its_rows(parcels, rows, fault):
    old, new, wanted, words = FAULTS[fault]
    ingested(rows)
    parcels.edit("features", old, new)
    named, text = findings(parcels)
    assert wanted in named and words in text, (named, text)
    assert "/projects/parcels/" in text


@pytest.mark.parametrize(
    ("shift", "words"), [(timedelta(days=365 * 20), "is in the future"), (timedelta(days=-365 * 54), "another unit")]
)
def test_times_that_cannot_be_are_named(parcels, rows, shift, words):
    rows["orders"]["ordered_at"] += pd.Timedelta(shift)
    ingested(rows)
    named, text = findings(parcels)
    assert ("known_at", "ordered_at") in named and words in text


def test_a_source_that_has_got_a_column_since_is_named(parcels, rows):
    ingested(rows)
    parcels.edit("__init__", '"ordered_at": "timestamp",\n', '"ordered_at": "timestamp", "colour": "string",\n')
    named, text = findings(parcels)
    assert ("sources", "colour") in named


def test_numbers_that_float32_merges_are_a_warning(parcels, rows):
    rows["orders"]["pieces"] = 2**24 + rows["orders"].index
    ingested(rows)
    report = check(get_settings(), "parcels")
    assert [(one.rule, one.value, one.warning) for one in report.findings] == [
        ("float32", "pieces", True)
    ] and report.faults == []
