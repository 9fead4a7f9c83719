"""Write the service's parquet files to a folder of this machine or to a bucket.

In both cases a file exists completely or not at all.
"""

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
# Pause in seconds between two row groups, so that request handlers on the same core wait for at
# most one row group.
BREATH = 0.003
REPEATED = frozenset({"project", "model_version", "arm", "failed_arm", "feature_times", "sent_by", "caller"})


class LogFiles(Protocol):
    def write(self, project: str, name: str, tables: Sequence[pa.Table]) -> None:
        """Write ``<root>/<project>/<folder>/<name>``, with one row group per table.

        Raises:
            OSError: The file cannot be written now.
        """

    def there(self, project: str, name: str) -> bool:
        """Return True if the file exists.

        Raises:
            OSError: The storage is unavailable.
        """


def log_files(
    root: str | Path, *, folder: str = "prediction_log", endpoint: str | None = None, region: str | None = None
) -> LogFiles:
    """Return the files of a folder, or of ``s3://bucket/prefix``.

    Credentials are the standard ones: AWS_ACCESS_KEY_ID etc., or the machine's role.
    """
    return (
        BucketFiles(str(root), folder, endpoint, region)
        if str(root).startswith(SCHEME)
        else FolderFiles(Path(root), folder)
    )


class FolderFiles:
    def __init__(self, root: Path, folder: str) -> None:
        self.root, self.folder = root, folder

    def write(self, project: str, name: str, tables: Sequence[pa.Table]) -> None:
        folder = self.root / project / self.folder
        _make(folder)
        partial = folder / f".{name}.partial"  # Readers of parquet folders ignore dot files.
        try:
            _write(tables, partial)
            # After a power loss, a file name must not exist without its content.
            _sync(partial)
            partial.rename(folder / name)
            _sync(folder)
        finally:
            partial.unlink(missing_ok=True)

    def there(self, project: str, name: str) -> bool:
        return (self.root / project / self.folder / name).exists()


class BucketFiles:
    """Files in a bucket, written with pyarrow's S3 client. The first write creates the client."""

    def __init__(self, root: str, folder: str, endpoint: str | None, region: str | None) -> None:
        self.folder = folder
        self.root, self._endpoint, self._region = root.removeprefix(SCHEME).rstrip("/"), endpoint, region
        self._filesystem: Any = None

    def write(self, project: str, name: str, tables: Sequence[pa.Table]) -> None:
        content = pa.BufferOutputStream()
        # The file is first built in memory, so that a failure does not leave a partial object.
        _write(tables, content)
        with self._open().open_output_stream(f"{self.root}/{project}/{self.folder}/{name}") as stream:
            stream.write(content.getvalue())

    def there(self, project: str, name: str) -> bool:
        from pyarrow import fs

        exists: bool = (
            self._open().get_file_info(f"{self.root}/{project}/{self.folder}/{name}").type != fs.FileType.NotFound
        )
        return exists

    def _open(self) -> Any:
        if self._filesystem is None:
            from pyarrow import fs

            self._filesystem = fs.S3FileSystem(
                endpoint_override=self._endpoint, region=self._region, connect_timeout=5, request_timeout=20,
                allow_delayed_open=True,  # One request per file instead of three.
                # The writer of the log itself tries again.
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
            )  # fmt: skip
        return self._filesystem


def _write(tables: Sequence[pa.Table], target: Any) -> None:
    # Dictionary encoding is enabled only for columns with repeated values. Trying it for all
    # columns would add a fifth to the time of the write.
    with pq.ParquetWriter(
        target, tables[0].schema, use_dictionary=[name for name in tables[0].column_names if name in REPEATED]
    ) as writer:
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
    """Create a folder and its parents, and sync the entry of each new folder to disk."""
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def microseconds(moment: datetime) -> int:
    """Return the exact number of microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND


def array_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return an Arrow array of values without nulls.

    ``pa.array`` would import pandas, which takes seconds at the first prediction.

    Args:
        values: Numbers. Times are whole microseconds since 1970. Strings are all str, or all bytes
            in UTF-8.
    """
    if kind == pa.string():
        if isinstance(values[0], str) and not (joined := "".join(values)).isascii():
            values = [value.encode() for value in values]
        content = b"".join(values) if isinstance(values[0], bytes) else joined.encode()
        offsets = np.zeros(len(values) + 1, "int32")
        np.cumsum(np.fromiter(map(len, values), "int32", len(values)), out=offsets[1:])
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    return pa.Array.from_buffers(
        kind, len(values), [None, pa.py_buffer(np.array(values, dtype="float64" if kind == pa.float64() else "int64"))]
    )
