"""Every answered prediction, written off the request's path into parquet files by ``prediction_log.schema.json``."""

import json
import logging
import os
import socket
import threading
import time
from collections import deque
from datetime import UTC, datetime
from itertools import count, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from serving.log_files import array_of, log_files

SCHEMA_FILE = Path(__file__).with_name("prediction_log.schema.json")
TYPES = {"string": pa.string(), "double": pa.float64(), "timestamp[us, UTC]": pa.timestamp("us", tz="UTC")}
FILE_ROWS = 20_000

log = logging.getLogger(__name__)


def arrow_schema() -> pa.Schema:
    """The log's columns; the schema's version stands in the metadata of each file."""
    document = json.loads(SCHEMA_FILE.read_text())
    fields = [pa.field(column["name"], TYPES[column["type"]], nullable=column["nullable"]) for column in document["columns"]]
    return pa.schema(fields, metadata={"prediction_log_version": str(document["version"])})


class PredictionLog:
    """Takes rows at once, writes them from a thread of its own.

    A prediction is in a file at most ``flush_seconds`` (and the time of one write) after ``append``. When files cannot be
    written, rows wait, up to ``capacity`` of them; what comes then is dropped, and counted.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        folder: str = "prediction_log",
        flush_seconds: float = 0.5,
        capacity: int = 100_000,
        endpoint: str | None = None,
        region: str | None = None,
    ) -> None:
        self.root, self.flush_seconds, self.capacity = root, flush_seconds, capacity
        self._files = log_files(root, folder=folder, endpoint=endpoint, region=region)
        self.oldest: float | None = None  # time.monotonic() of the oldest row that waits
        self._schema = arrow_schema()
        self._of_row = itemgetter(*self._schema.names)
        self._waiting: dict[str, deque[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closing = False
        self._numbers = count()
        self._counts = {"waiting": 0, "written": 0, "dropped": 0, "errors": 0}
        self._last_error: str | None = None
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Hand over rows with the schema's columns. Never waits for the disk."""
        with self._lock:
            if self._closing or self._counts["waiting"] + len(rows) > self.capacity:
                self._counts["dropped"] += len(rows)
                return
            for row in rows:
                self._waiting.setdefault(row["project"], deque()).append(row)
            self._counts["waiting"] += len(rows)
            if self.oldest is None:
                self.oldest = time.monotonic()
                self._changed.notify()
            elif self._counts["waiting"] >= FILE_ROWS:
                self._changed.notify()

    def close(self, timeout: float = 10) -> None:
        """Write what waits, trying each file once more, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def stats(self) -> dict[str, Any]:
        """Rows waiting, written and dropped, failed writes, and the last failure while it lasts."""
        with self._changed:
            return {**self._counts, "last_error": self._last_error}

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._counts["waiting"] or self._closing)
                self._changed.wait_for(lambda: self._closing or self._counts["waiting"] >= FILE_ROWS, timeout=self.flush_seconds)
                closing = self._closing
            written = self._flush()
            if closing and not (written and self._counts["waiting"]):  # all is out, or nothing more can be
                return
            if not written:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=1)

    def _flush(self) -> bool:
        """One file per project; False if one of them could not be written and should be tried again."""
        with self._changed:
            batches = {project: list(islice(rows, FILE_ROWS)) for project, rows in self._waiting.items() if rows}
        failures, again, began = self._counts["errors"], False, time.monotonic()
        for project, rows in batches.items():
            fate = "written"
            try:
                self._write(project, rows)
            except OSError as error:  # a full disk, a folder that is gone
                self._failed(error)
                again = True
                continue
            except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:  # such rows can never be written
                self._failed(error)
                fate = "dropped"
            with self._changed:
                for _ in rows:
                    self._waiting[project].popleft()
                self._counts["waiting"] -= len(rows)
                self._counts[fate] += len(rows)
        if batches and self._counts["errors"] == failures:
            self._last_error = None
        with self._changed:
            if not self._counts["waiting"]:
                self.oldest = None
            elif not again:
                self.oldest = began  # about: what waits now came while this was written
        return not again

    def _write(self, project: str, rows: list[dict[str, Any]]) -> None:
        # Two services may write into one folder: the host is a part of the name.
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{socket.gethostname()}-{os.getpid()}-{next(self._numbers)}.parquet"
        columns = [array_of(values, field.type) for values, field in zip(zip(*map(self._of_row, rows), strict=True), self._schema, strict=True)]
        self._files.write(project, name, pa.Table.from_arrays(columns, schema=self._schema))

    def _failed(self, error: Exception) -> None:
        log.warning("prediction log: %s: %s", type(error).__name__, error)
        with self._changed:
            self._counts["errors"] += 1
            self._last_error = f"{type(error).__name__}: {error}"
