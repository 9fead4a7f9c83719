"""Features of a flight, as known one hour before its scheduled departure.

The functions are pure and bounded by time. ``tables(name, since=None)`` returns the rows of a
source that were known by ``tables.cutoff`` (and after ``since``). A feature row's
``event_timestamp`` is the time by which all its values were known. Feast joins each flight with the
newest row that is not after its prediction time, both in batch and online.
"""

from datetime import datetime, timedelta
from typing import Protocol

import numpy as np
import pandas as pd

# Predictions are made this long before scheduled departure.
LEAD = timedelta(minutes=60)
WEATHER_LASTS = timedelta(hours=6)  # an older observation is not used
LATE = 15.0  # minutes after scheduled arrival
# An entity without outcomes for longer than the longest window (28 days) gets rows of NaN for two
# more days, and then none. So the values left in the online store are NaN, and a run over new data
# alone gives the same rows as one over all data.
SILENT_AFTER = timedelta(days=30)
HOUR, DAY = pd.Timedelta(hours=1), pd.Timedelta(days=1)
# UTC: New York's day is over, including its late arrivals.
DAILY_AT = 9
FLIGHT = ["carrier", "flight", "scheduled_departure"]


class Tables(Protocol):
    """The rows of the sources, as known at a cutoff."""

    @property
    def cutoff(self) -> datetime: ...

    def __call__(self, name: str, *, since: datetime | None = None) -> pd.DataFrame: ...


def compute(tables: Tables, *, since: datetime | None, cutoff: datetime) -> dict[str, pd.DataFrame]:
    """Return the rows of every feature view with event_timestamp in (since, cutoff].

    Args:
        tables: see the module's docstring.
        since: the cutoff of the last call, or None for all data.
        cutoff: rows known later are not used.

    Returns:
        View name -> frame with the view's entity, ``event_timestamp`` and features. Rates and means
            over no outcome are NaN.
    """
    horizon = since and since - SILENT_AFTER
    outcomes, departures = _outcomes(tables, since=horizon), _departures(tables, since=horizon)
    start = pd.Timestamp(since) if since else _first_moment(tables, cutoff)
    half_hourly = _grid(start, cutoff, HOUR / 2)
    hourly = _grid(start, cutoff, HOUR)
    daily = _grid(start, cutoff, DAY, offset=pd.Timedelta(hours=DAILY_AT))
    return {
        "origin_departures": _rolling(
            departures,
            "origin",
            half_hourly,
            "origin_departure",
            delay=("1h", "3h", "24h"),
            late_rate=("1h", "3h"),
            count=("1h",),
        ),
        "origin_delays": _rolling(
            outcomes,
            "origin",
            hourly,
            "origin_arrival",
            delay=("1h", "3h", "24h"),
            late_rate=("3h", "24h", "7d", "28d"),
            count=("1h",),
        ),
        "carrier_departures": _rolling(
            departures, "carrier", hourly, "carrier_departure", delay=("3h",), late_rate=("3h", "24h")
        ),
        "carrier_delays": _rolling(
            outcomes, "carrier", hourly, "carrier_arrival", delay=("3h",), late_rate=("24h", "7d", "28d")
        ),
        "destination_delays": _rolling(outcomes, "dest", daily, "destination_arrival", late_rate=("24h", "7d", "28d")),
        "route_delays": _rolling(outcomes, "route", daily, "route_arrival", late_rate=("7d", "28d")),
        "origin_weather": _weather(tables, since),
        "plane": _planes(tables, since),
    }


def examples(tables: Tables, *, since: datetime | None, until: datetime, cutoff: datetime) -> pd.DataFrame:
    """Return one row per flight whose prediction time is in (since, until].

    The outcome is included if it was known by the cutoff.

    Returns:
        The flight's key, the entities, ``event_timestamp`` (prediction time, UTC), the request
            features, ``label`` and ``label_known_at``. ``label`` is 1.0 (late) or 0.0, and NaN if
            it is not known yet or the flight was cancelled or diverted.
    """
    schedule = tables("schedule", since=since and since - timedelta(days=7))
    schedule = schedule.assign(event_timestamp=schedule["scheduled_departure"] - LEAD)
    inside = schedule["event_timestamp"] <= pd.Timestamp(until)
    if since:
        inside &= schedule["event_timestamp"] > pd.Timestamp(since)
    flights = schedule[inside & (schedule["published_at"] <= schedule["event_timestamp"])]

    rotation = tables("rotation", since=since and since - timedelta(days=7))[
        [*FLIGHT, "tailnum", "published_at"]
    ].rename(columns={"published_at": "assigned_at"})
    flights = flights.merge(rotation, on=FLIGHT, how="left")
    # A plane that was assigned after the prediction time was not known then.
    flights["tailnum"] = flights["tailnum"].where(flights["assigned_at"] <= flights["event_timestamp"]).fillna("")

    local = pd.to_datetime(flights["local_departure"])
    flights = flights.assign(
        route=flights["origin"] + "-" + flights["dest"],
        hour=local.dt.hour.astype("float64"),
        minute=local.dt.minute.astype("float64"),
        weekday=local.dt.dayofweek.astype("float64"),
        scheduled_minutes=(flights["scheduled_arrival"] - flights["scheduled_departure"]) / pd.Timedelta(minutes=1),
    )
    flights = flights.merge(_known_labels(tables, since), on=FLIGHT, how="left")
    columns = [
        *FLIGHT,
        "origin",
        "dest",
        "route",
        "tailnum",
        "event_timestamp",
        "hour",
        "minute",
        "weekday",
        "distance",
        "scheduled_minutes",
        "label",
        "label_known_at",
    ]
    return flights[columns].sort_values(["event_timestamp", *FLIGHT], ignore_index=True)


def labels(tables: Tables, *, since: datetime | None, until: datetime) -> pd.DataFrame:
    """Return outcomes of the flights whose prediction time is in (since, until].

    The columns are their key, ``label`` and ``label_known_at``.
    """
    known = _known_labels(tables, since)
    predicted_at = known["scheduled_departure"] - LEAD
    inside = predicted_at <= pd.Timestamp(until)
    if since:
        inside &= predicted_at > pd.Timestamp(since)
    return known[inside].reset_index(drop=True)


def _known_labels(tables: Tables, since: datetime | None) -> pd.DataFrame:
    """Return the outcomes known after ``since``.

    A flight lands after its prediction time, so outcomes known before ``since`` belong to earlier
    flights.
    """
    actuals = tables("actuals", since=since)
    landed = actuals[actuals["status"] == "landed"]
    return pd.DataFrame(
        {
            **{c: landed[c] for c in FLIGHT},
            "label": (landed["arr_delay"] > LATE).astype("float64"),
            "label_known_at": landed["known_at"],
        }
    )


def _outcomes(tables: Tables, since: datetime | None) -> pd.DataFrame:
    """Return flights that landed: entities, arrival delay, and when that was known."""
    actuals = tables("actuals", since=since)
    landed = actuals[actuals["status"] == "landed"]
    return _delays(tables, since, landed, delay="arr_delay", known_at="known_at")


def _departures(tables: Tables, since: datetime | None) -> pd.DataFrame:
    """Return flights that departed. Their departure delay is known hours before they land."""
    return _delays(tables, since, tables("departures", since=since), delay="dep_delay", known_at="departed_at")


def _delays(
    tables: Tables, since: datetime | None, flights: pd.DataFrame, *, delay: str, known_at: str
) -> pd.DataFrame:
    schedule = tables("schedule", since=since and since - timedelta(days=7))[[*FLIGHT, "origin", "dest"]]
    rows = (
        flights[[*FLIGHT, delay, known_at]]
        .rename(columns={delay: "delay", known_at: "known_at"})
        .merge(schedule, on=FLIGHT)
    )
    return rows.assign(
        late=(rows["delay"] > LATE).astype("float64"), route=rows["origin"] + "-" + rows["dest"]
    ).sort_values("known_at")


def _rolling(
    delays: pd.DataFrame, entity: str, grid: pd.DatetimeIndex, prefix: str, **wanted: tuple[str, ...]
) -> pd.DataFrame:
    """Return rolling statistics of each entity at each time of the grid.

    For a time g, a statistic covers the rows that became known in (g - window, g]. It is the mean
    delay, the share of late flights, or the count.

    Args:
        delays: the entity, ``delay`` (minutes), ``late`` (0 or 1), ``known_at``; sorted by
            ``known_at``.
        entity: column to group by.
        grid: the times of the rows.
        prefix: prefix of the features' names.
        wanted: ``delay``, ``late_rate`` or ``count`` -> the windows.
    """
    times = _micros(grid)
    names = [f"{prefix}_{figure}_{window}" for figure, windows in wanted.items() for window in windows]
    frames = [
        pd.DataFrame(
            {
                entity: pd.Series(dtype="object"),
                "event_timestamp": grid[:0],
                **{name: pd.Series(dtype="float64") for name in names},
            }
        )
    ]
    for name, rows in delays.groupby(entity, sort=True):
        known = _micros(rows["known_at"])
        sums = {"delay": _cumulated(rows["delay"]), "late_rate": _cumulated(rows["late"])}
        end = np.searchsorted(known, times, side="right")
        values: dict[str, object] = {entity: np.full(len(times), name, dtype=object), "event_timestamp": grid}
        for figure, windows in wanted.items():
            for window in windows:
                begin = _window_start(known, times, pd.Timedelta(window))
                count = (end - begin).astype("float64")
                with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as intended
                    values[f"{prefix}_{figure}_{window}"] = (
                        count if figure == "count" else (sums[figure][end] - sums[figure][begin]) / count
                    )
        frames.append(pd.DataFrame(values)[end > _window_start(known, times, SILENT_AFTER)])
    return pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)


def _window_start(known: np.ndarray, times: np.ndarray, window: timedelta) -> np.ndarray:
    return np.searchsorted(known, times - window // timedelta(microseconds=1), side="right")


def _weather(tables: Tables, since: datetime | None) -> pd.DataFrame:
    """Return observations at their publication time.

    If no observation follows within WEATHER_LASTS, a row of NaN marks the last one as expired.
    """
    observed = tables("weather", since=since and since - WEATHER_LASTS - timedelta(hours=1))
    observed = (
        observed.rename(columns={"published_at": "event_timestamp"})
        .drop(columns="observed_at")
        .sort_values(["origin", "event_timestamp"])
    )
    expires = observed["event_timestamp"] + WEATHER_LASTS
    next_one = observed.groupby("origin")["event_timestamp"].shift(-1)
    expired = observed[(next_one > expires) | (next_one.isna() & (expires <= pd.Timestamp(tables.cutoff)))]
    expired = pd.DataFrame(
        {"origin": expired["origin"], "event_timestamp": expired["event_timestamp"] + WEATHER_LASTS}
    ).reindex(columns=observed.columns)
    rows = (
        pd.concat([observed, expired.astype(observed.dtypes.to_dict())], ignore_index=True)
        if len(expired)
        else observed
    )
    return (
        rows[rows["event_timestamp"] > pd.Timestamp(since)].reset_index(drop=True)
        if since
        else rows.reset_index(drop=True)
    )


def _planes(tables: Tables, since: datetime | None) -> pd.DataFrame:
    planes = tables("planes", since=since)
    return pd.DataFrame({
        "tailnum": planes["tailnum"], "event_timestamp": planes["published_at"],
        "plane_year": planes["year"], "plane_seats": planes["seats"].astype("float64"),
    })  # fmt: skip


def _first_moment(tables: Tables, cutoff: datetime) -> pd.Timestamp:
    first = tables("departures")["departed_at"].min()
    return pd.Timestamp(cutoff) if pd.isna(first) else first


def _grid(
    start: pd.Timestamp, end: datetime, step: pd.Timedelta, offset: pd.Timedelta = pd.Timedelta(0)
) -> pd.DatetimeIndex:
    """Return every full step (shifted by the offset) in (start, end]."""
    first = (start - offset).floor(step) + step + offset
    return pd.date_range(first, pd.Timestamp(end), freq=step, unit="us")


def _micros(times: pd.Series | pd.DatetimeIndex) -> np.ndarray:
    """Return microseconds since 1970, whatever the unit of the timestamps."""
    micros: np.ndarray = pd.DatetimeIndex(times).as_unit("us").asi8
    return micros


def _cumulated(values: pd.Series) -> np.ndarray:
    return np.concatenate([[0.0], values.to_numpy(dtype="float64").cumsum()])
