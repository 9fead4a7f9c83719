"""Rolling values equal their definition, at the correct times."""

import numpy as np
import pandas as pd
import pytest

from include.features.rolling import every, rolling

DAY = pd.Timedelta(days=1)
FEATURES = {"mean_3d": ("value", 3 * DAY), "count_3d": (None, 3 * DAY), "mean_1d": ("value", DAY)}


def events(count=200, seed=0):
    random = np.random.default_rng(seed)
    # Full hours: some on the grid.
    known_at = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(random.integers(0, 20 * 24, count), unit="h")
    return pd.DataFrame(
        {"who": random.choice(["a", "b"], count), "value": random.normal(size=count), "known_at": known_at}
    )


def test_each_row_holds_what_became_known_in_its_window():
    made = events()
    times = every(DAY, after=pd.Timestamp("2024-01-05", tz="UTC"), until=pd.Timestamp("2024-01-25", tz="UTC"))
    rows = rolling(made, "who", times, FEATURES, silent_after=4 * DAY)
    assert len(rows) > 30
    for row in rows.to_dict("records"):
        mine = made[(made["who"] == row["who"]) & (made["known_at"] <= row["event_timestamp"])]
        three, one = (mine[mine["known_at"] > row["event_timestamp"] - window]["value"] for window in (3 * DAY, DAY))
        assert row["count_3d"] == len(three)
        assert np.isclose(row["mean_3d"], three.mean(), equal_nan=True) and np.isclose(
            row["mean_1d"], one.mean(), equal_nan=True
        )


def test_an_entity_that_fell_silent_ends_with_rows_that_have_no_value():
    made = events()
    times = every(DAY, after=pd.Timestamp("2024-01-05", tz="UTC"), until=pd.Timestamp("2024-02-25", tz="UTC"))
    last = rolling(made, "who", times, FEATURES, silent_after=4 * DAY).groupby("who").tail(1)
    assert last["mean_3d"].isna().all() and (last["count_3d"] == 0).all()
    assert (last["event_timestamp"] < pd.Timestamp("2024-01-26", tz="UTC")).all()


def test_no_events_give_no_rows_but_the_columns():
    rows = rolling(
        events().head(0),
        "who",
        every(DAY, after=pd.Timestamp(0, tz="UTC"), until=pd.Timestamp(0, tz="UTC")),
        FEATURES,
        silent_after=4 * DAY,
    )
    assert rows.empty and list(rows) == ["who", "event_timestamp", *FEATURES]


def test_a_window_that_outlives_the_silence_is_refused():
    with pytest.raises(ValueError, match="silent_after"):
        rolling(
            events(),
            "who",
            every(DAY, after=pd.Timestamp(0, tz="UTC"), until=pd.Timestamp(0, tz="UTC")),
            FEATURES,
            silent_after=3 * DAY,
        )


def test_the_grid_does_not_depend_on_where_one_begins():
    begin, middle, end = (
        pd.Timestamp(f"2024-01-{day} {hour}:30", tz="UTC") for day, hour in ((1, "07"), (3, "00"), (6, "00"))
    )
    whole = every(DAY, after=begin, until=end)
    assert list(whole) == [*every(DAY, after=begin, until=middle), *every(DAY, after=middle, until=end)]
    assert (whole > begin).all() and (whole <= end).all() and whole[0] == pd.Timestamp("2024-01-02", tz="UTC")
