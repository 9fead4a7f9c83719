"""Distinct things, times and projects have distinct prediction ids.

The ids of plain rows never change.
"""

import hashlib
from datetime import UTC, datetime
from types import SimpleNamespace

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from include.scoring.batch import _ids

KEYS = st.tuples(st.none() | st.text('a|\\"[,\x00N', max_size=4) | st.just("None"), st.text("a|Z", max_size=3))
TIMES = st.datetimes(datetime(2024, 1, 1), datetime(2024, 1, 1, 0, 0, 2)).map(lambda at: at.replace(tzinfo=UTC))


def ids(rows, name="shop"):
    project = SimpleNamespace(name=name, example_key=("a", "b"))
    frame = pd.DataFrame({"a": [a for (a, _), _ in rows], "b": [b for (_, b), _ in rows]}, dtype=object)
    frame["event_timestamp"] = pd.Series([at for _, at in rows], dtype="datetime64[us, UTC]")
    return _ids(project, frame).tolist()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(KEYS, TIMES), min_size=2, max_size=8, unique=True))
def test_distinct_keys_and_times_have_distinct_ids(rows):
    assert len(set(ids(rows))) == len(rows)
    assert set(ids(rows)).isdisjoint(ids(rows, name="shop2"))
    assert ids(rows) == [ids([row])[0] for row in rows]


def test_an_id_of_a_plain_row_is_that_of_the_first_release():
    old = hashlib.sha256(b"shop|x|7|2024-01-01T00:00:01Z").hexdigest()[:24]
    assert ids([(("x", "7"), datetime(2024, 1, 1, 0, 0, 1, tzinfo=UTC))]) == [old]
