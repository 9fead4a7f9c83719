"""The files of serving's prediction log, each named by the time when it was written, which is after its rows were answered."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from upath import UPath

from include.data import storage

SKEW = timedelta(minutes=1)  # between the clocks of those who write the log
SETTLED = timedelta(seconds=2)  # what was answered longer ago than this is in the log: serving writes it within one


def files(folder: UPath) -> list[UPath]:
    return [file for file in storage.files(folder) if file.name.endswith(".parquet") and not file.name.startswith(".")]


def newest_first(folder: UPath, *, since: datetime) -> Iterator[tuple[datetime | None, bytes]]:
    """Contents of the files that were written after a time, with when that was; those whose name does not say so come first (None), to be sure."""
    times = {file: written(file.name) for file in files(folder)}
    wanted = [file for file, time in times.items() if time is None or time >= since - SKEW]
    wanted.sort(key=lambda file: (times[file] is None, file.name), reverse=True)
    yield from ((times[file], content) for file, content in storage.read_all(wanted))


def written(name: str) -> datetime | None:
    try:
        return datetime.strptime(name.partition("-")[0], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        return None  # of whoever wrote it
