"""The files of serving's prediction log.

A file's name is the time when it was written, which is after its rows were answered.
"""

import io
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from include.data import storage

SKEW = timedelta(minutes=1)  # between the clocks of the log's writers
# Answers older than this are in the log, because serving writes them within one second.
SETTLED = timedelta(seconds=2)


def files(folder: UPath) -> list[UPath]:
    return [file for file in storage.files(folder) if file.name.endswith(".parquet") and not file.name.startswith(".")]


def newest_first(folder: UPath, *, since: datetime) -> Iterator[tuple[datetime | None, bytes]]:
    """Yield the contents of the files written after a time, with the time of each.

    Files without a time in their name come first, with None, so that none is missed.
    """
    times = {file: written(file.name) for file in files(folder)}
    wanted = [file for file, time in times.items() if time is None or time >= since - SKEW]
    wanted.sort(key=lambda file: (times[file] is None, file.name), reverse=True)
    yield from ((times[file], content) for file, content in storage.read_all(wanted))


# Columns of later schema versions, and their value in older files.
LATER: dict[str, str] = {"failed_arm": "", "caller": "-"}
LOG = logging.getLogger(__name__)


def table(content: bytes, columns: Sequence[str]) -> pa.Table | None:
    """Return columns of a file of any schema version, or None if the file cannot be read.

    A file can be empty or truncated if a machine lost power while it wrote. It is logged and
    skipped, because the other files are complete.

    Args:
        columns: their names. Strings that a version does not have are filled.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        there = file.schema_arrow.names
        rows = file.read(columns=[name for name in columns if name in there])
    except (pa.ArrowException, OSError, ValueError) as error:
        LOG.warning("a file of the prediction log (%s bytes) cannot be read and is left out: %s", len(content), error)
        return None
    for name in columns:
        if name not in there:
            rows = rows.append_column(name, pa.array([LATER[name]] * len(rows), pa.string()))
    return rows.select(list(columns)).replace_schema_metadata(None)


def written(name: str) -> datetime | None:
    try:
        return datetime.strptime(name.partition("-")[0], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        return None  # a name from another writer
