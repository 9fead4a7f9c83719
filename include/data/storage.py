"""The only access to the project's data, in a folder or an object store (``s3://bucket/prefix``).

* A file is written atomically: on a file system by a rename, on an object store because a put is
  atomic.
* Listings are not cached, because other processes write too.
* An access error is reported at the first use: which bucket, which user, and the fix. Otherwise a
  missing bucket would look empty.

Credentials are the standard variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...) of this
process's environment, which s3fs, delta-rs and MLflow all read. This module does not set them
(``include.dag_kit.storage`` does, in a task).
"""

import errno
import io
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from upath import UPath

from include.settings import get_settings

if TYPE_CHECKING:
    import pyarrow as pa

SCHEME = "s3://"
IDENTITY = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
# By default, fsspec caches a folder's first listing in this process. The retries are botocore's,
# for a busy server. A store that is down refuses immediately. Connecting may take long if this
# process itself gets no CPU (5 s were too few for a pod on a crowded node).
OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 20, "read_timeout": 60, "retries": {"max_attempts": 3}},
}
AT_ONCE = 64  # files whose content is fetched concurrently and held in memory


class StorageUnavailableError(RuntimeError):
    """Raised when the object store cannot be used.

    The message names the bucket, the user and the fix.
    """


def is_object_store(uri: str) -> bool:
    return uri.startswith(SCHEME)


def path(uri: str | os.PathLike[str] | UPath) -> UPath:
    """Return a path in the store.

    Raises:
        StorageUnavailableError: its bucket cannot be read.
    """
    text = str(uri)
    if not is_object_store(text):
        return UPath(text)
    complete(os.environ)
    _require(urlsplit(text).netloc, hash(tuple(os.environ.get(name) for name in IDENTITY)))
    remote: UPath = UPath(text, **OPTIONS)
    return remote


def write(target: UPath, content: bytes | str) -> UPath:
    """Write a file atomically. Create its folder.

    Concurrent readers see the old file, or none.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_object_store(str(target)):
        # Not open(): after an error, closing it would upload the part that was written.
        target.fs.pipe_file(target.path, data)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target)
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _partial(target: UPath) -> UPath:
    """Return the temporary name of a file while it is written.

    It is short enough for a file system, however long the file's own name is.
    """
    name = target.name.encode()[:150].decode(errors="ignore")
    return target.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}.partial")


def write_parquet(target: UPath, rows: "pa.Table") -> bytes:
    """Write a table as one parquet file, atomically. Return the bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    content = buffer.getvalue()
    write(target, content)
    return content


def read_parquet(source: UPath) -> "pa.Table":
    """Read a parquet file. Raises FileNotFoundError if there is none."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(source.read_bytes()))


class Entry(NamedTuple):
    """An entry of a folder.

    ``kind`` is file, link, folder or special (for example, a pipe). ``size`` (bytes) and
    ``changed`` are set for a file. An object store does not have links, and a folder is a prefix of
    existing objects.
    """

    path: UPath
    kind: Literal["file", "link", "folder", "special"]
    size: int = 0
    changed: str = ""


def entries(folder: UPath) -> list[Entry]:
    """Return all entries of a folder, by name. It is empty if the folder does not exist.

    Links are not followed.
    """
    if not is_object_store(str(folder)):
        return sorted((_entry(p) for p in folder.iterdir()), key=lambda e: e.path.name) if folder.exists() else []
    try:
        listing = folder.fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return []
    named = sorted(
        (entry["name"].rstrip("/").rpartition("/")[2], entry)
        for entry in listing
        if entry["name"].rstrip("/") != folder.path.rstrip("/")
    )
    return [
        (
            Entry(folder / name, "file", int(entry.get("size") or 0), str(entry.get("LastModified")))
            if entry["type"] == "file"
            else Entry(folder / name, "folder")
        )
        for name, entry in named
    ]


def _entry(path: UPath) -> Entry:
    status = os.lstat(str(path))
    kinds: dict[int, Literal["file", "link", "folder"]] = {
        stat.S_IFREG: "file",
        stat.S_IFLNK: "link",
        stat.S_IFDIR: "folder",
    }
    return Entry(path, kinds.get(stat.S_IFMT(status.st_mode), "special"), status.st_size, str(status.st_mtime_ns))


def read_each(paths: Iterable[UPath]) -> Iterator[tuple[UPath, bytes | OSError]]:
    """Yield files with their content, or with the error if a file cannot be read.

    For example, it is not a file any more, or its permissions are wrong. Links are not followed.
    From an object store, many files are read concurrently.

    Raises:
        OSError: the store itself is at fault.
    """
    waiting = list(paths)
    while waiting:
        now, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        if is_object_store(str(now[0])):
            content = now[0].fs.cat([p.path for p in now], on_error="return")
            results = ((p, content[p.path]) for p in now)
        else:
            results = ((p, _read_file(p)) for p in now)
        for path, read in results:
            if (
                isinstance(read, Exception)
                and not isinstance(read, FileNotFoundError | PermissionError | IsADirectoryError)
                and not _of_this_file(read)
            ):
                raise read
            yield path, read


def _of_this_file(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.EIO)


def _read_file(path: UPath) -> bytes | OSError:
    try:
        descriptor = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # of a descriptor
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return OSError(errno.EINVAL, "not a regular file")
            return file.read()
    except OSError as error:
        return error


def copy(source: UPath, target: UPath) -> bool:
    """Copy a file atomically without holding it in memory. Create its folder.

    Return False if the source is not a readable regular file.
    """
    if is_object_store(str(target)):
        try:
            target.fs.copy(source.path, target.path)
        except (FileNotFoundError, PermissionError):
            return False
        return True
    try:
        descriptor = os.open(str(source), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with open(descriptor, "rb") as content:  # noqa: PTH123  # of a descriptor
        if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(target)
        try:
            with partial.open("wb") as made:
                shutil.copyfileobj(content, made)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return True


def files(folder: UPath) -> list[UPath]:
    """Return the files of a folder (not recursively), by name, with one request.

    The list is empty if the folder does not exist.
    """
    if not is_object_store(str(folder)):
        return sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.name) if folder.exists() else []
    try:
        listing = folder.fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return []
    names = (entry["name"].rpartition("/")[2] for entry in listing if entry["type"] == "file")
    # An empty name is the folder's own marker, which some tools create.
    return [folder / name for name in sorted(names) if name]


def read_all(paths: Iterable[UPath]) -> Iterator[tuple[UPath, bytes]]:
    """Yield files with their content. From an object store, many are read concurrently."""
    waiting = list(paths)
    while waiting:
        now, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        if is_object_store(str(now[0])):
            content = now[0].fs.cat([p.path for p in now])
            yield from ((p, content[p.path]) for p in now)
        else:
            yield from ((p, p.read_bytes()) for p in now)


def read_below(folder: UPath, names: Iterable[str]) -> bytes | None:
    """Return the content of a file below a folder.

    Return None if there is none, or if a link leads out of the folder. The names must not be ``.``
    or ``..``.
    """
    file = folder.joinpath(*names)
    if is_object_store(str(folder)):
        try:
            content: bytes = file.fs.cat_file(file.path)
            return content
        except (FileNotFoundError, IsADirectoryError):
            return None
    if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
        return None
    return file.read_bytes()


def remove(folder: UPath) -> None:
    """Remove a folder with all its content. Safe to repeat."""
    with suppress(FileNotFoundError):
        folder.fs.rm(folder.path, recursive=True)


def probe(root: str) -> None:
    """Write, read and delete a small file.

    Raises:
        StorageUnavailableError: one of these operations fails.
    """
    import socket

    target = path(root) / "_doctor" / f"{socket.gethostname()}-{os.getpid()}"
    try:
        write(target, b"written to see whether it can be")
        target.fs.invalidate_cache()
        if target.fs.cat_file(target.path) != b"written to see whether it can be":
            raise OSError("it returns other content than was written")
        target.fs.rm_file(target.path)
    except Exception as error:  # errors of botocore, aiohttp and s3fs
        bucket, key = urlsplit(root).netloc, os.environ.get("AWS_ACCESS_KEY_ID") or "none"
        message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise StorageUnavailableError(
            f"bucket '{bucket}' (access key {key}) is read-only or full: it can be listed, and not be written, read and"
            f" deleted in ({message}). To do: let that key GetObject, PutObject and DeleteObject there, and see the"
            " server's mode and disk; docs/runbooks/storage.md"
        ) from error


def delta_options(uri: str) -> dict[str, str] | None:
    """Return the storage options of a Delta table.

    A commit is a put that only succeeds if the object does not exist: two writers cannot both
    create a version.
    """
    return {"aws_conditional_put": "etag"} if is_object_store(uri) else None


def complete(variables: MutableMapping[str, str]) -> None:
    """Add variables that the libraries need, derived from the standard ones.

    The libraries differ in which variables they read.
    """
    region = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or "us-east-1"
    variables.update({"AWS_REGION": region, "AWS_DEFAULT_REGION": region, "AWS_CONDITIONAL_PUT": "etag"})
    endpoint = variables.get("AWS_ENDPOINT_URL") or ""
    if endpoint:
        variables["MLFLOW_S3_ENDPOINT_URL"] = endpoint
    if endpoint.startswith("http://"):
        variables["AWS_ALLOW_HTTP"] = "true"
    else:
        variables.pop("AWS_ALLOW_HTTP", None)


@cache
def _require(bucket: str, _identity: int) -> None:
    """Check access to the bucket.

    This runs once in a process, and again after a failure or with another identity.
    """
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # an older instance has the old credentials
    try:
        UPath(f"{SCHEME}{bucket}", **OPTIONS).fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except Exception as error:  # errors of botocore, aiohttp and s3fs
        raise StorageUnavailableError(_explain(error, bucket)) from error


def _explain(error: Exception, bucket: str) -> str:
    endpoint, key = os.environ.get("AWS_ENDPOINT_URL") or "AWS", os.environ.get("AWS_ACCESS_KEY_ID") or "none"
    connection = get_settings().storage_connection
    origin = (
        f"Airflow connection '{connection}' in tasks, elsewhere the variables AWS_*"
        if connection
        else "the variables AWS_*"
    )
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    code = str(answer.get("Error", {}).get("Code", ""))
    if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
        what, fix = (
            "there are no credentials",
            f"give {origin} login and password" if connection else "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    elif isinstance(error, PermissionError) or code == "InvalidAccessKeyId" or code.endswith("UserNotFound"):
        what, fix = (
            "the credentials are refused",
            f"mend key and secret in {origin}, or what they may do with this bucket",
        )
    elif isinstance(error, FileNotFoundError):
        what, fix = "there is no such bucket", "make the bucket, or mend AIRLOOP_DATA_ROOT"
    elif code:
        what, fix = "it answers with an error", "see what it says, and its own log"
    else:
        what, fix = (
            "the endpoint does not answer",
            f"start it, or mend the endpoint in {origin} (extra endpoint_url of a connection, AWS_ENDPOINT_URL)",
        )
    message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (
        f"bucket '{bucket}' at {endpoint} ({origin}, access key {key}): {what} ({message}). To do: {fix};"
        " docs/runbooks/storage.md"
    )
