"""Flight features have the correct values and contain nothing that becomes known later."""

import numpy as np
import pandas as pd
import pytest

from include.projects.flights import features, project

US = "datetime64[us, UTC]"
START, END = pd.Timestamp("2013-01-01", tz="UTC"), pd.Timestamp("2013-02-20", tz="UTC")
MIDDLE = pd.Timestamp("2013-01-20T10:00", tz="UTC")


class Tables:
    """Frames as from the real reader: only rows that were known by the cutoff."""

    def __init__(self, frames, cutoff):
        self.frames, self.cutoff = frames, cutoff

    def __call__(self, name, *, since=None):
        rows, known_at = self.frames[name], project.source(name).known_at
        rows = rows[rows[known_at] <= self.cutoff]
        return (rows if since is None else rows[rows[known_at] > since]).reset_index(drop=True)


@pytest.fixture(scope="module")
def frames():
    """Return seven weeks of 1,200 made-up flights.

    One route has no flights after week two. The weather has a gap of ten hours.
    """
    rng = np.random.default_rng(0)
    n = 1200
    departure = pd.Series(START + pd.to_timedelta(np.sort(rng.integers(0, 48 * 24 * 60, n)), unit="min")).astype(US)
    schedule = pd.DataFrame(
        {
            "carrier": rng.choice(["UA", "AA"], n),
            "flight": np.arange(n),
            "scheduled_departure": departure,
            "scheduled_arrival": departure + pd.Timedelta("2h"),
            "origin": rng.choice(["EWR", "JFK"], n),
            "dest": rng.choice(["IAH", "MIA"], n),
            "distance": 1000.0,
            "local_departure": (departure - pd.Timedelta("5h")).dt.strftime("%Y-%m-%dT%H:%M"),
            "published_at": departure.dt.floor("D") - pd.Timedelta("2h"),
        }
    )
    schedule.loc[
        (schedule["scheduled_departure"] > START + pd.Timedelta("14D")) & (schedule["origin"] == "JFK"), "dest"
    ] = "IAH"
    key = schedule[["carrier", "flight", "scheduled_departure"]]
    delay = pd.Series(rng.normal(5, 30, n).round())
    landed = pd.Series(rng.random(n) > 0.05)
    departures = key.assign(dep_delay=delay, departed_at=departure + pd.to_timedelta(delay, unit="min"))[landed]
    arrived = schedule["scheduled_arrival"] + pd.to_timedelta(delay, unit="min")
    actuals = key.assign(
        status=np.where(landed, "landed", "cancelled"),
        arr_delay=delay.where(landed),
        known_at=arrived.where(landed, departure),
    )
    rotation = key.assign(
        tailnum="N" + pd.Series(rng.integers(1, 9, n)).astype(str), published_at=departure - pd.Timedelta("3h")
    )
    rotation.loc[0, "published_at"] = rotation.loc[0, "scheduled_departure"] - pd.Timedelta("30min")
    hours = pd.date_range(START, END, freq="h")
    weather = pd.concat(
        [
            pd.DataFrame({"origin": o, "observed_at": hours, "published_at": hours + pd.Timedelta("1h"), "temp": 40.0})
            for o in ("EWR", "JFK")
        ]
    )
    gap = (weather["origin"] == "JFK") & weather["observed_at"].between("2013-01-10T00:00Z", "2013-01-10T09:00Z")
    weather = weather[~gap].reindex(columns=list(project.source("weather").columns))
    planes = pd.DataFrame(
        {
            "tailnum": ["N1", "N2"],
            "year": [1999.0, np.nan],
            "manufacturer": "B",
            "model": "C",
            "seats": [100, 200],
            "published_at": START,
        }
    )
    made = {
        "schedule": schedule,
        "rotation": rotation,
        "departures": departures,
        "actuals": actuals,
        "weather": weather,
        "planes": planes,
    }
    return {
        name: rows.assign(**{c: rows[c].astype(US) for c in rows if str(rows[c].dtype).startswith("datetime64")})
        for name, rows in made.items()
    }


def sorted_rows(view):
    return view.sort_values([view.columns[0], "event_timestamp"]).reset_index(drop=True)


@pytest.mark.parametrize("view", project.feature_views)
def test_a_run_over_new_data_alone_gives_the_same_rows_as_one_over_all(frames, view):
    tables = Tables(frames, END)
    whole = features.compute(tables, since=None, cutoff=END)[view]
    increment = features.compute(tables, since=MIDDLE, cutoff=END)[view]
    assert len(increment) or view == "plane"
    pd.testing.assert_frame_equal(
        sorted_rows(whole[whole["event_timestamp"] > MIDDLE]), sorted_rows(increment), check_dtype=False
    )


@pytest.mark.parametrize("view", project.feature_views)
def test_what_becomes_known_later_changes_no_earlier_row(frames, view):
    """Later data changes no earlier row: everything after the middle is replaced by nonsense."""
    poisoned = {}
    for name, rows in frames.items():
        later = rows[project.source(name).known_at] > MIDDLE
        poisoned[name] = rows.assign(**{c: rows[c].where(~later, 1e6) for c in rows if rows[c].dtype == "float64"})
    honest = features.compute(Tables(frames, END), since=None, cutoff=END)[view]
    fooled = features.compute(Tables(poisoned, END), since=None, cutoff=END)[view]
    before = honest["event_timestamp"] <= MIDDLE
    assert before.any()
    pd.testing.assert_frame_equal(honest[before], fooled[fooled["event_timestamp"] <= MIDDLE])


def test_a_rolling_feature_equals_its_definition_written_out(frames):
    tables = Tables(frames, END)
    view = features.compute(tables, since=None, cutoff=END)["origin_departures"]
    flights = tables("departures").merge(tables("schedule"), on=["carrier", "flight", "scheduled_departure"])
    for row in view.sample(200, random_state=1).itertuples():
        window = (
            (flights["origin"] == row.origin)
            & (flights["departed_at"] <= row.event_timestamp)
            & (flights["departed_at"] > row.event_timestamp - pd.Timedelta("3h"))
        )
        assert row.origin_departure_delay_3h == pytest.approx(flights[window]["dep_delay"].mean(), nan_ok=True)
        assert row.origin_departure_late_rate_3h == pytest.approx(
            (flights[window]["dep_delay"] > 15).mean(), nan_ok=True
        )


def test_an_entity_that_fell_silent_ends_with_nan_not_with_its_last_rate(frames):
    view = features.compute(Tables(frames, END), since=None, cutoff=END)["route_delays"]
    silent = view[view["route"] == "JFK-MIA"].sort_values("event_timestamp")
    assert silent["event_timestamp"].max() < END - pd.Timedelta("2D")
    assert np.isnan(silent["route_arrival_late_rate_28d"].iloc[-1])


def test_weather_older_than_six_hours_becomes_nan(frames):
    view = features.compute(Tables(frames, END), since=None, cutoff=END)["origin_weather"]
    jfk = view[view["origin"] == "JFK"].set_index("event_timestamp")["temp"]
    assert np.isnan(jfk[pd.Timestamp("2013-01-10T06:00Z")])  # the last one came at 00:00
    assert jfk[pd.Timestamp("2013-01-10T11:00Z")] == 40.0


def test_examples_lie_one_hour_before_departure_and_know_no_later_plane(frames):
    rows = features.examples(Tables(frames, END), since=None, until=END, cutoff=END)
    assert ((rows["scheduled_departure"] - rows["event_timestamp"]) == pd.Timedelta("60min")).all()
    # Its plane was assigned half an hour before departure.
    assert rows.set_index("flight").loc[0, "tailnum"] == ""
    assert (rows.loc[rows["flight"] != 0, "tailnum"] != "").all()


def test_labels_unknown_at_the_cutoff_are_missing_and_cancelled_flights_have_none(frames):
    rows = features.examples(Tables(frames, MIDDLE), since=None, until=MIDDLE + pd.Timedelta("1h"), cutoff=MIDDLE)
    assert (rows["label_known_at"].dropna() <= MIDDLE).all()
    assert rows.loc[rows["event_timestamp"] > MIDDLE - pd.Timedelta("1h"), "label"].isna().all()
    cancelled = frames["actuals"].loc[frames["actuals"]["status"] == "cancelled", "flight"]
    assert rows.loc[rows["flight"].isin(cancelled), "label"].isna().all()


def test_examples_since_a_time_are_the_later_part_of_all(frames):
    tables = Tables(frames, END)
    whole = features.examples(tables, since=None, until=END, cutoff=END)
    part = features.examples(tables, since=MIDDLE, until=END, cutoff=END)
    pd.testing.assert_frame_equal(whole[whole["event_timestamp"] > MIDDLE].reset_index(drop=True), part)


def test_labels_alone_equal_those_of_the_examples(frames):
    tables = Tables(frames, END)
    rows = features.examples(tables, since=MIDDLE, until=END, cutoff=END).dropna(subset=["label"])
    alone = features.labels(tables, since=MIDDLE, until=END)
    key = ["carrier", "flight", "scheduled_departure"]
    pd.testing.assert_frame_equal(
        rows[[*key, "label", "label_known_at"]].sort_values(key, ignore_index=True),
        alone.sort_values(key, ignore_index=True),
    )
