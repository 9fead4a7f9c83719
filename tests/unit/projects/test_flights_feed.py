"""The upstream agrees with the raw data, also on the two nights that are not 24 hours long."""

import pytest

from bench import raw_flights
from include.projects.flights import feed


@pytest.fixture(scope="module")
def schedule():
    return feed.upstream()["schedule"]


@pytest.mark.parametrize(
    ("carrier", "flight", "day", "arrival"),
    [
        # Leaves EWR at 20:58 on the day the clocks go back. 00:02 in FLL is UTC - 5 h.
        ("UA", 371, "2013-11-04", "2013-11-04T05:02Z"),
        # Leaves EWR at 21:00 on the day they go forward. 00:04 in RSW is UTC - 4 h.
        ("UA", 1299, "2013-03-11", "2013-03-11T04:04Z"),
        ("B6", 507, "2013-01-01", "2013-01-01T13:54Z"),
    ],
)
def test_arrivals_after_midnight_are_on_the_destinations_clock(schedule, carrier, flight, day, arrival):
    rows = schedule[
        (schedule["carrier"] == carrier)
        & (schedule["flight"] == flight)
        & (schedule["scheduled_departure"].dt.strftime("%Y-%m-%d") == day)
    ]
    assert arrival in rows["scheduled_arrival"].dt.strftime("%Y-%m-%dT%H:%MZ").tolist()


def test_every_scheduled_arrival_is_the_one_that_the_benchmark_derives_in_its_own_way(schedule):
    ours, theirs = (
        schedule["scheduled_arrival"].dt.tz_localize(None).to_numpy(),
        raw_flights.read().flights["scheduled_arrival"].to_numpy(),
    )
    assert len(ours) == 336_776
    assert (ours != theirs).sum() == 0
