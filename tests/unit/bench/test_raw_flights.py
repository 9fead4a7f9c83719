"""The reference definitions of check_demo agree with even simpler ones."""

import numpy as np
import pandas as pd
import pytest

from bench import raw_flights
from bench.raw_flights import Events, Known, Observations, Raw

NOON = np.datetime64("2013-05-01T12:00", "us")


def minutes(*offsets: int) -> np.ndarray:
    return NOON + np.array([np.timedelta64(m, "m") for m in offsets])


@pytest.fixture
def raw() -> Raw:
    """Return departures from JFK two and one hours before noon, at noon, and 10 minutes later.

    The weather is of 11:00 and of 12:30.
    """
    events = {("departures", "origin", "JFK"): Events(minutes(-120, -60, 0, 10), np.array([100.0, 0.0, 20.0, 500.0]))}
    weather = {"JFK": Observations(minutes(-60, 30), np.arange(2.0 * len(raw_flights.WEATHER)).reshape(2, -1))}
    return Raw(pd.DataFrame(), events, weather, pd.DataFrame())


FLIGHT = {"origin": "JFK", "carrier": "UA", "dest": "MIA", "route": "JFK-MIA"}


@pytest.mark.parametrize(
    "scores",
    [[0.1, 0.4, 0.35, 0.8], [0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.9, 0.2]],
    ids=["distinct", "all tied", "some tied"],
)
def test_auc_is_the_share_of_pairs_in_the_right_order(scores):
    label = np.array([False, True, False, True])
    pairs = [
        (1.0 if p > n else 0.5 if p == n else 0.0) for p in np.array(scores)[label] for n in np.array(scores)[~label]
    ]
    assert raw_flights.auc(label, np.array(scores)) == pytest.approx(np.mean(pairs))


def test_auc_agrees_with_scikit_learn_on_many_rows_with_ties():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    label, score = random.random(5000) < 0.3, random.integers(0, 200, 5000) / 200
    assert raw_flights.auc(label, score) == pytest.approx(metrics.roc_auc_score(label, score), abs=1e-12)


def test_auc_of_one_class_is_no_number():
    assert np.isnan(raw_flights.auc(np.array([True, True]), np.array([0.1, 0.2])))


def test_a_window_is_open_at_its_start_and_ends_at_the_grid(raw):
    features = raw_flights.features(Known(raw, by=NOON), FLIGHT, NOON)
    # The flight at 11:00 is an hour old and no longer in the window. The one at noon is.
    assert features["origin_departure_count_1h"] == 1
    assert features["origin_departure_delay_1h"] == 20
    assert features["origin_departure_delay_3h"] == pytest.approx(40)
    assert features["origin_departure_late_rate_3h"] == pytest.approx(2 / 3)
    assert np.isnan(features["carrier_departure_delay_3h"])


def test_between_two_steps_of_the_grid_the_last_one_counts(raw):
    at = NOON + np.timedelta64(29, "m")
    # 12:10 becomes known in the step of 12:30.
    assert raw_flights.features(Known(raw, by=at), FLIGHT, at)["origin_departure_delay_1h"] == 20
    at = NOON + np.timedelta64(30, "m")
    assert raw_flights.features(Known(raw, by=at), FLIGHT, at)["origin_departure_delay_1h"] == 260


def test_what_is_known_later_is_not_there_to_be_found(raw):
    known = Known(raw, by=NOON)
    assert known.events("departures", "origin", "JFK").known_at.max() == NOON
    assert len(known.weather("JFK").published_at) == 1
    poisoned = Known(raw, by=NOON, nonsense=True)
    assert poisoned.events("departures", "origin", "JFK").delay.tolist() == [100, 0, 20, 1e6]
    assert raw_flights.features(poisoned, FLIGHT, NOON) == pytest.approx(
        raw_flights.features(known, FLIGHT, NOON), nan_ok=True
    )


@pytest.mark.parametrize(
    ("hours", "temp"),
    [(0, 0.0), (1, 9.0), (6, 9.0), (7, float("nan"))],
    ids=["the last one", "a newer one", "at its end", "too old"],
)
def test_weather_is_the_last_published_for_six_hours(raw, hours, temp):
    at = NOON + np.timedelta64(hours, "h")
    assert raw_flights.features(Known(raw, by=at), FLIGHT, at)["temp"] == pytest.approx(temp, nan_ok=True)


@pytest.mark.parametrize(
    ("day", "departs", "dest", "clock", "arrives"),
    [
        ((2013, 6, 3), "2013-06-03T14:00", "LAX", 1305, "2013-06-03T20:05"),
        ((2013, 6, 3), "2013-06-04T01:00", "LAX", 5, "2013-06-04T07:05"),
        # The clocks went back that morning, not that night.
        ((2013, 11, 3), "2013-11-04T01:58", "FLL", 2, "2013-11-04T05:02"),
        ((2013, 3, 10), "2013-03-11T01:00", "RSW", 4, "2013-03-11T04:04"),
        ((2013, 6, 3), "2013-06-03T14:00", "SJU", 1400, "2013-06-03T18:00"),
    ],
    ids=[
        "same day",
        "after midnight",
        "night after the clocks went back",
        "night after they went forward",
        "an airport that airports.csv lacks",
    ],
)
def test_scheduled_arrival_is_the_first_such_time_after_departure(day, departs, dest, clock, arrives):
    airports = pd.DataFrame(
        {"faa": ["LAX", "FLL", "RSW"], "tzone": ["America/Los_Angeles", "America/New_York", "America/New_York"]}
    )
    flights = pd.DataFrame(
        [[dest, *day, clock, pd.Timestamp(departs)]],
        columns=["dest", "year", "month", "day", "sched_arr_time", "scheduled_departure"],
    )
    assert raw_flights._scheduled_arrivals(flights, airports).tolist() == [pd.Timestamp(arrives).to_pydatetime()]
