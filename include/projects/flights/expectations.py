"""Expectations of the flights' sources and features, in the vocabulary of Great Expectations.

An expectation of severity ``warning`` is only reported.
"""

from datetime import timedelta
from typing import Any, NamedTuple

import great_expectations.expectations as gxe


class Gap(NamedTuple):
    """The longest allowed pause of ``time`` within each ``group``. A longer pause is reported."""

    group: str
    time: str
    longest: timedelta


GAPS = {"weather": Gap("origin", "observed_at", timedelta(hours=5, minutes=59))}
ORIGINS = ["EWR", "JFK", "LGA"]
AIRPORT, CARRIER, TAILNUM = r"^[A-Z]{3}$", r"^[0-9A-Z]{2}$", r"^[0-9A-Z]{4,7}$"


def source_suite(source: str) -> list[gxe.Expectation]:
    """Return the expectations of a source's rows."""
    return _SOURCES[source]()


def feature_suite(view: str) -> list[gxe.Expectation]:
    """Return the expectations of a feature view's rows. They are checked before publication."""
    rates = [name for name in _NAMES[view] if "late_rate" in name]
    delays = [name for name in _NAMES[view] if "_delay_" in name]
    counts = [name for name in _NAMES[view] if "_count_" in name]
    return [
        gxe.ExpectColumnValuesToNotBeNull(column=_ENTITY[view]),
        gxe.ExpectColumnValuesToNotBeNull(column="event_timestamp"),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=[_ENTITY[view], "event_timestamp"]),
        *(_between(name, 0, 1) for name in rates),
        *(_between(name, -120, 1800) for name in delays),
        *(_between(name, 0, 1000) for name in counts),
        *(_weather() if view == "origin_weather" else ()),
        *(
            (_between("plane_seats", 1, 900), _between("plane_year", 1940, 2030, severity="warning"))
            if view == "plane"
            else ()
        ),
    ]


def _between(column: str, low: float, high: float, **options: Any) -> gxe.ExpectColumnValuesToBeBetween:
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, **options)


def _flight() -> list[gxe.Expectation]:
    return [gxe.ExpectColumnValuesToMatchRegex(column="carrier", regex=CARRIER), _between("flight", 1, 999_999)]


def _schedule() -> list[gxe.Expectation]:
    return [
        *_flight(),
        gxe.ExpectColumnValuesToBeInSet(column="origin", value_set=ORIGINS),
        gxe.ExpectColumnValuesToMatchRegex(column="dest", regex=AIRPORT),
        _between("distance", 1, 12_000),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="scheduled_arrival", column_B="scheduled_departure"),
        gxe.ExpectColumnValuesToMatchRegex(column="local_departure", regex=r"^\d{4}-\d\d-\d\dT\d\d:\d\d$"),
    ]


def _rotation() -> list[gxe.Expectation]:
    return [*_flight(), gxe.ExpectColumnValuesToMatchRegex(column="tailnum", regex=TAILNUM)]


def _departures() -> list[gxe.Expectation]:
    return [*_flight(), _between("dep_delay", -180, 2880)]


def _actuals() -> list[gxe.Expectation]:
    landed, others = 'status=="landed"', 'status!="landed"'
    return [
        *_flight(),
        gxe.ExpectColumnValuesToBeInSet(column="status", value_set=["landed", "cancelled", "diverted"]),
        _between("arr_delay", -180, 2880),
        gxe.ExpectColumnValuesToNotBeNull(column="arr_delay", row_condition=landed, condition_parser="pandas"),
        gxe.ExpectColumnValuesToBeNull(column="arr_delay", row_condition=others, condition_parser="pandas"),
    ]


def _weather() -> list[gxe.Expectation]:
    return [
        _between("temp", -40, 130), _between("dewp", -60, 100), _between("humid", 0, 100), _between("wind_dir", 0, 360),
        _between("wind_speed", 0, 200), _between("wind_gust", 0, 250), _between("precip", 0, 20),
        _between("pressure", 850, 1100, severity="warning"), _between("visib", 0, 100),
    ]  # fmt: skip


def _observations() -> list[gxe.Expectation]:
    return [gxe.ExpectColumnValuesToBeInSet(column="origin", value_set=ORIGINS), *_weather()]


def _planes() -> list[gxe.Expectation]:
    return [
        gxe.ExpectColumnValuesToMatchRegex(column="tailnum", regex=TAILNUM),
        _between("seats", 1, 900),
        _between("year", 1940, 2030, severity="warning"),
    ]


_SOURCES = {
    "schedule": _schedule,
    "rotation": _rotation,
    "weather": _observations,
    "planes": _planes,
    "departures": _departures,
    "actuals": _actuals,
}
_ENTITY = {
    "origin_departures": "origin",
    "origin_delays": "origin",
    "carrier_departures": "carrier",
    "carrier_delays": "carrier",
    "destination_delays": "dest",
    "route_delays": "route",
    "origin_weather": "origin",
    "plane": "tailnum",
}
_NAMES = {
    "origin_departures": [
        f"origin_departure_{n}"
        for n in ("delay_1h", "delay_3h", "delay_24h", "late_rate_1h", "late_rate_3h", "count_1h")
    ],
    "origin_delays": [
        f"origin_arrival_{n}"
        for n in (
            "delay_1h",
            "delay_3h",
            "delay_24h",
            "late_rate_3h",
            "late_rate_24h",
            "late_rate_7d",
            "late_rate_28d",
            "count_1h",
        )
    ],
    "carrier_departures": [f"carrier_departure_{n}" for n in ("delay_3h", "late_rate_3h", "late_rate_24h")],
    "carrier_delays": [f"carrier_arrival_{n}" for n in ("delay_3h", "late_rate_24h", "late_rate_7d", "late_rate_28d")],
    "destination_delays": [f"destination_arrival_late_rate_{w}" for w in ("24h", "7d", "28d")],
    "route_delays": [f"route_arrival_late_rate_{w}" for w in ("7d", "28d")],
    "origin_weather": [],
    "plane": [],
}
