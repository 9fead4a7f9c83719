"""Write every answered prediction to parquet files, outside the request path.

The columns are defined in ``schema.json`` beside it.
"""

import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from serving.prediction_log.files import array_of, log_files

SCHEMA_FILE = Path(__file__).with_name("schema.json")
TYPES = {"string": pa.string(), "double": pa.float64(), "timestamp[us, UTC]": pa.timestamp("us", tz="UTC")}
FILE_ROWS = 20_000
CHUNK_ROWS = 256
CHUNK_SECONDS = 0.05

log = logging.getLogger(__name__)


def arrow_schema() -> pa.Schema:
    """Return the log's columns. The metadata of each file contain the schema's version."""
    document = json.loads(SCHEMA_FILE.read_text())
    fields = [
        pa.field(column["name"], TYPES[column["type"]], nullable=column["nullable"]) for column in document["columns"]
    ]
    return pa.schema(fields, metadata={"prediction_log_version": str(document["version"])})


class LogEntry(Protocol):
    """Answered predictions of one project, one row of the log per prediction.

    Expensive conversions to rows are deferred to the writer thread.
    """

    @property
    def project(self) -> str: ...

    @property
    def size(self) -> int:
        """Return the bytes of memory that the entry takes until it is written."""

    def __len__(self) -> int: ...

    @staticmethod
    def columns(entries: Sequence[Any]) -> dict[str, list[Any]]:
        """Return the log's columns of several entries.

        Strings are str or UTF-8 bytes. Times are microseconds since 1970 UTC.
        """


class Chunk(NamedTuple):
    """Rows of one project that wait to be written."""

    since: float  # The oldest row's time.monotonic().
    table: pa.Table
    size: int  # The sum of the entries' sizes in bytes.


class PredictionLog:
    """Accept entries without blocking, and write them from a separate thread.

    A prediction is in a file at most ``flush_seconds`` plus the time of one write after ``append``.
    If files cannot be written, rows wait, up to ``capacity`` rows and ``capacity_bytes`` of memory.
    Later rows are dropped and counted.

    The appending thread and the writing thread do not share a lock. Each has its own counters, and
    entries are passed in a deque. Rows are built and written a few at a time. Otherwise the request
    handlers on the same core and interpreter would wait while thousands of rows are built.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        folder: str = "prediction_log",
        flush_seconds: float = 0.5,
        capacity: int = 100_000,
        capacity_bytes: int = 256 * 2**20,
        endpoint: str | None = None,
        region: str | None = None,
    ) -> None:
        self.root, self.flush_seconds, self.capacity, self.capacity_bytes = (
            root,
            flush_seconds,
            capacity,
            capacity_bytes,
        )
        self._files = log_files(root, folder=folder, endpoint=endpoint, region=region)
        self._schema = arrow_schema()
        self._numbers = count()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._asleep, self._wake, self._flush_now, self._closing = (
            False,
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self._came: deque[tuple[float, LogEntry]] = deque()
        # Set by the appending thread:
        self._taken = self._refused = self._taken_bytes = 0
        # Set by the writing thread:
        self._held: dict[str, deque[Chunk]] = {}
        self._oldest_held: float | None = None
        self._written = self._unfit = self._errors = self._errors_before = self._done_bytes = 0
        self._last_error: str | None = None

    def start(self) -> None:
        self._thread.start()

    def append(self, entry: LogEntry) -> None:
        """Queue an entry. This never waits for the disk or a lock.

        All calls must come from the same thread.
        """
        rows = len(entry)
        if not rows:  # An empty entry does not have a project.
            return
        waiting = self._waiting + rows
        size = entry.size
        if (
            waiting > self.capacity
            or self._taken_bytes - self._done_bytes + size > self.capacity_bytes
            or self._closing.is_set()
        ):
            self._refused += rows
            return
        self._taken += rows
        self._taken_bytes += size
        self._came.append((time.monotonic(), entry))
        if self._asleep:
            self._asleep = False
            self._wake.set()
        elif waiting >= FILE_ROWS:
            self._flush_now.set()

    def close(self, timeout: float = 10) -> None:
        """Write the waiting entries, with one more try per file, and stop."""
        self._closing.set()
        self._flush_now.set()
        self._wake.set()
        self._thread.join(timeout)

    @property
    def oldest(self) -> float | None:
        """Return the ``time.monotonic()`` of the oldest entry that waits, or None."""
        with suppress(IndexError):  # The writer took the entry concurrently.
            return self._oldest_held or (self._came[0][0] if self._came else None)
        return self._oldest_held

    def stats(self) -> dict[str, Any]:
        """Return the waiting, written and dropped rows, the failures, and the current error."""
        dropped = self._refused + self._unfit
        return {
            "waiting": self._waiting,
            "written": self._written,
            "dropped": dropped,
            "errors": self._errors,
            "last_error": self._last_error,
        }

    @property
    def _waiting(self) -> int:
        return self._taken - self._written - self._unfit

    def _run(self) -> None:
        while True:
            self._wait_for_an_entry()
            self._collect()
            closing = self._closing.is_set()
            written = self._flush()
            # All entries are written, or the write failed.
            if closing and not (written and self._came):
                return
            if not written:
                self._closing.wait(1)

    def _wait_for_an_entry(self) -> None:
        self._wake.clear()
        self._asleep = True
        if not self._came and not self._held and not self._closing.is_set():
            self._wake.wait()
        self._asleep = False

    def _collect(self) -> None:
        """Build rows of the arriving entries until it is time to write them."""
        end = time.monotonic() + self.flush_seconds
        while (left := end - time.monotonic()) > 0 and not self._flush_now.wait(min(left, CHUNK_SECONDS)):
            self._take_over()
        self._flush_now.clear()

    def _flush(self) -> bool:
        """Write the waiting rows to files per project. Return False if a file must be retried."""
        self._take_over()
        again = False
        for project, waiting in self._held.items():
            try:
                while waiting:
                    self._write_some(project, waiting)
            except OSError as error:  # For example a full disk or a deleted folder.
                self._failed(error)
                again = True
        self._held = {project: waiting for project, waiting in self._held.items() if waiting}
        self._oldest_held = min((waiting[0].since for waiting in self._held.values()), default=None)
        # Since the last flush, neither building nor writing rows has failed.
        if self._errors == self._errors_before:
            self._last_error = None
        self._errors_before = self._errors
        return not again

    def _take_over(self) -> None:
        """Build rows of the entries that arrived."""
        if self._came and self._oldest_held is None:
            self._oldest_held = self._came[0][0]
        by_project: dict[str, tuple[float, list[LogEntry]]] = {}
        rows: dict[str, int] = {}
        for _ in range(len(self._came)):
            at, entry = self._came.popleft()
            project = entry.project
            by_project.setdefault(project, (at, []))[1].append(entry)
            rows[project] = rows.get(project, 0) + len(entry)
            if rows[project] >= CHUNK_ROWS:
                self._make_rows(project, *by_project.pop(project))
                del rows[project]
        for project, (at, entries) in by_project.items():
            self._make_rows(project, at, entries)

    def _make_rows(self, project: str, since: float, entries: list[LogEntry]) -> None:
        size = sum(entry.size for entry in entries)
        try:
            self._held.setdefault(project, deque()).append(Chunk(since, self._table(entries), size))
        except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
            # These rows can never be written.
            self._failed(error)
            self._unfit += sum(map(len, entries))
            self._done_bytes += size

    def _table(self, entries: list[LogEntry]) -> pa.Table:
        columns = type(entries[0]).columns(entries)
        return pa.Table.from_arrays(
            [array_of(columns[field.name], field.type) for field in self._schema], schema=self._schema
        )

    def _write_some(self, project: str, waiting: deque[Chunk]) -> None:
        """Write one file of the first chunks and remove them from the queue."""
        tables: list[pa.Table] = []
        rows = 0
        for _, table, _ in waiting:
            if tables and rows + len(table) > FILE_ROWS:
                break
            tables.append(table)
            rows += len(table)
        # Two services may write to one folder, so the host is part of the name.
        name = (
            f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{socket.gethostname()}-{os.getpid()}-{next(self._numbers)}.parquet"
        )
        self._files.write(project, name, tables)
        self._written += rows
        for _ in tables:
            self._done_bytes += waiting.popleft().size

    def _failed(self, error: Exception) -> None:
        log.warning("prediction log: %s: %s", type(error).__name__, error)
        self._errors += 1
        self._last_error = f"{type(error).__name__}: {error}"
