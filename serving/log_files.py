"""Where the service's parquet files go: a folder of this machine, or a bucket. Either way a file is there whole or not at all."""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEME = "s3://"
EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
BREATH = 0.003  # seconds between two row groups: who answers requests on the same core is not held up for longer than one takes
REPEATED = frozenset({"project", "model_version", "arm", "failed_arm", "feature_times", "sent_by", "caller"})


class LogFiles(Protocol):
    def write(self, project: str, name: str, tables: Sequence[pa.Table]) -> None:
        """Write ``<root>/<project>/<folder>/<name>``, a row group of each table; raises OSError if that cannot be done now."""

    def there(self, project: str, name: str) -> bool:
        """Whether that file is there; raises OSError if that cannot be told now."""


def log_files(root: str | Path, *, folder: str = "prediction_log", endpoint: str | None = None, region: str | None = None) -> LogFiles:
    """Of a folder, or of ``s3://bucket/prefix``; credentials are the standard ones (AWS_ACCESS_KEY_ID, ..., or the machine's role)."""
    return BucketFiles(str(root), folder, endpoint, region) if str(root).startswith(SCHEME) else FolderFiles(Path(root), folder)


class FolderFiles:
    def __init__(self, root: Path, folder: str) -> None:
        self.root, self.folder = root, folder

    def write(self, project: str, name: str, tables: Sequence[pa.Table]) -> None:
        folder = self.root / project / self.folder
        _make(folder)
        partial = folder / f".{name}.partial"  # readers of parquet folders pass over names with a dot
        try:
            _write(tables, partial)
            # A machine that loses power must not leave a name without its content.
            _sync(partial)
            partial.rename(folder / name)
            _sync(folder)
        finally:
            partial.unlink(missing_ok=True)

    def there(self, project: str, name: str) -> bool:
        return (self.root / project / self.folder / name).exists()


class BucketFiles:
    """Arrow's own S3 client, which comes with pyarrow; made at the first write."""

    def __init__(self, root: str, folder: str, endpoint: str | None, region: str | None) -> None:
        self.folder = folder
        self.root, self._endpoint, self._region = root.removeprefix(SCHEME).rstrip("/"), endpoint, region
        self._filesystem: Any = None

    def write(self, project: str, name: str, tables: Sequence[pa.Table]) -> None:
        content = pa.BufferOutputStream()
        _write(tables, content)  # in memory first: what fails here leaves nothing there
        with self._open().open_output_stream(f"{self.root}/{project}/{self.folder}/{name}") as stream:
            stream.write(content.getvalue())

    def there(self, project: str, name: str) -> bool:
        from pyarrow import fs

        return self._open().get_file_info(f"{self.root}/{project}/{self.folder}/{name}").type != fs.FileType.NotFound

    def _open(self):
        if self._filesystem is None:
            from pyarrow import fs

            self._filesystem = fs.S3FileSystem(
                endpoint_override=self._endpoint, region=self._region, connect_timeout=5, request_timeout=20,
                allow_delayed_open=True,  # one request a file, not three
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),  # who writes the log tries again anyway
            )  # fmt: skip
        return self._filesystem


def _write(tables: Sequence[pa.Table], target: Any) -> None:
    # Which columns say the same again and again is told: looking for that in all of them would cost a fifth of the writing.
    with pq.ParquetWriter(target, tables[0].schema, use_dictionary=[name for name in tables[0].column_names if name in REPEATED]) as writer:
        for number, table in enumerate(tables):
            if number:
                time.sleep(BREATH)
            writer.write_table(table)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make(folder: Path) -> None:
    """Make a folder and its parents; the name of each new one is on the disk when this returns."""
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def microseconds(moment: datetime) -> int:
    """Since 1970, exactly."""
    return (moment - EPOCH) // MICROSECOND


def array_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow array of values that are all there. ``pa.array`` would import pandas: seconds, at the first prediction.

    Args:
        values: numbers; for times whole microseconds since 1970; for strings str, or bytes of UTF-8, all the same.
    """
    if kind == pa.string():
        if isinstance(values[0], str) and not (joined := "".join(values)).isascii():
            values = [value.encode() for value in values]
        content = b"".join(values) if isinstance(values[0], bytes) else joined.encode()
        offsets = np.zeros(len(values) + 1, "int32")
        np.cumsum(np.fromiter(map(len, values), "int32", len(values)), out=offsets[1:])
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.array(values, dtype="float64" if kind == pa.float64() else "int64"))])
