"""The one door to the project's data, be it a folder or an object store (``s3://bucket/prefix``).

* A file is written whole or not at all: on a file system through another name, on an object store because a put is one.
* Nothing is remembered of what a folder held: other processes write there too.
* Who cannot get in is told at the first touch: which bucket, as whom, and what to do. A bucket that is missing would else look empty.

Credentials are the standard variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...) of this process's environment, which s3fs, delta-rs and
MLflow all read; who put them there is no matter of this module (``include.dag_kit.storage`` does, in a task).
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
IDENTITY = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE")
# Else fsspec goes on telling what a folder held when this process first looked. Tries: those of botocore, for a server that is busy. A store that is down
# refuses at once; to connect may take long where this process itself gets no CPU (5 s were seen to be too few for a pod on a crowded node).
OPTIONS: dict[str, Any] = {"use_listings_cache": False, "config_kwargs": {"connect_timeout": 20, "read_timeout": 60, "retries": {"max_attempts": 3}}}
AT_ONCE = 64  # files whose content is fetched side by side, and held in memory


class StorageUnavailable(RuntimeError):
    """The object store cannot be used; the message says which bucket, as whom, and what to do."""


def is_object_store(uri: str) -> bool:
    return uri.startswith(SCHEME)


def path(uri: str | os.PathLike | UPath) -> UPath:
    """A path in the store.

    Raises:
        StorageUnavailable: its bucket cannot be read.
    """
    text = str(uri)
    if not is_object_store(text):
        return UPath(text)
    complete(os.environ)
    _require(urlsplit(text).netloc, hash(tuple(os.environ.get(name) for name in IDENTITY)))
    return UPath(text, **OPTIONS)


def write(target: UPath, content: bytes | str) -> UPath:
    """Write a file whole or not at all; whoever looks meanwhile sees the old one, or none. Makes its folder."""
    data = content.encode() if isinstance(content, str) else content
    if is_object_store(str(target)):
        target.fs.pipe_file(target.path, data)  # not open(): closing that puts there what was written before something went wrong
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
    """The other name of a file while it is written; not too long for a file system, however long the file's own is."""
    name = target.name.encode()[:150].decode(errors="ignore")
    return target.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}.partial")


def write_parquet(target: UPath, rows: "pa.Table") -> bytes:
    """Write a table as one parquet file, whole or not at all; gives the bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    content = buffer.getvalue()
    write(target, content)
    return content


def read_parquet(source: UPath) -> "pa.Table":
    """Raises FileNotFoundError if there is none."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(source.read_bytes()))


class Entry(NamedTuple):
    """What a folder holds: ``kind`` is file, link, folder or special (a pipe, say); ``size`` in bytes and ``changed`` of a file.

    On an object store there are no links, and a folder is a prefix under which there is something.
    """

    path: UPath
    kind: Literal["file", "link", "folder", "special"]
    size: int = 0
    changed: str = ""


def entries(folder: UPath) -> list[Entry]:
    """Everything in a folder, by name; nothing if there is no such folder. Links are not followed."""
    if not is_object_store(str(folder)):
        return sorted((_entry(p) for p in folder.iterdir()), key=lambda e: e.path.name) if folder.exists() else []
    try:
        found = folder.fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return []
    named = sorted((entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in found if entry["name"].rstrip("/") != folder.path.rstrip("/"))
    return [
        Entry(folder / name, "file", int(entry.get("size") or 0), str(entry.get("LastModified"))) if entry["type"] == "file" else Entry(folder / name, "folder")
        for name, entry in named
    ]


def _entry(path: UPath) -> Entry:
    found = os.lstat(str(path))
    kinds: dict[int, Literal["file", "link", "folder"]] = {stat.S_IFREG: "file", stat.S_IFLNK: "link", stat.S_IFDIR: "folder"}
    return Entry(path, kinds.get(stat.S_IFMT(found.st_mode), "special"), found.st_size, str(found.st_mtime_ns))


def read_each(paths: Iterable[UPath]) -> Iterator[tuple[UPath, bytes | OSError]]:
    """Files with their content, or with why it cannot be read: it is no file (any more), or its permissions are wrong. Links are not followed.

    From an object store many at once.

    Raises:
        OSError: the store itself is at fault.
    """
    waiting = list(paths)
    while waiting:
        now, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        if is_object_store(str(now[0])):
            content = now[0].fs.cat([p.path for p in now], on_error="return")
            found = ((p, content[p.path]) for p in now)
        else:
            found = ((p, _read_file(p)) for p in now)
        for path, read in found:
            if isinstance(read, Exception) and not isinstance(read, FileNotFoundError | PermissionError | IsADirectoryError) and not _of_this_file(read):
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
    """Copy a file, whole or not at all, without holding it in memory; makes its folder. Return False if the source is no regular file that can be read."""
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
    """The files of a folder (not those below it), by name; none if there is no such folder. One request, not one a file."""
    if not is_object_store(str(folder)):
        return sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.name) if folder.exists() else []
    try:
        found = folder.fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return []
    names = (entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "file")
    return [folder / name for name in sorted(names) if name]  # without one: the folder's own mark, which some tools put there


def read_all(paths: Iterable[UPath]) -> Iterator[tuple[UPath, bytes]]:
    """Files with their content; from an object store many at once."""
    waiting = list(paths)
    while waiting:
        now, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        if is_object_store(str(now[0])):
            content = now[0].fs.cat([p.path for p in now])
            yield from ((p, content[p.path]) for p in now)
        else:
            yield from ((p, p.read_bytes()) for p in now)


def read_below(folder: UPath, names: Iterable[str]) -> bytes | None:
    """A file below a folder; None if there is none, or if a link leads out of the folder. The names must not be ``.`` or ``..``."""
    file = folder.joinpath(*names)
    if is_object_store(str(folder)):
        try:
            return file.fs.cat_file(file.path)
        except (FileNotFoundError, IsADirectoryError):
            return None
    if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
        return None
    return file.read_bytes()


def remove(folder: UPath) -> None:
    """A folder with everything in it; safe to repeat."""
    with suppress(FileNotFoundError):
        folder.fs.rm(folder.path, recursive=True)


def probe(root: str) -> None:
    """Write, read and take away a small file.

    Raises:
        StorageUnavailable: one of these cannot be done.
    """
    import socket

    target = path(root) / "_doctor" / f"{socket.gethostname()}-{os.getpid()}"
    try:
        write(target, b"written to see whether it can be")
        target.fs.invalidate_cache()
        if target.fs.cat_file(target.path) != b"written to see whether it can be":
            raise OSError("what was written is not what is read")
        target.fs.rm_file(target.path)
    except Exception as error:  # botocore's, aiohttp's and s3fs' own
        bucket, key = urlsplit(root).netloc, os.environ.get("AWS_ACCESS_KEY_ID") or "none"
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise StorageUnavailable(
            f"bucket '{bucket}' (access key {key}) is read-only or full: it can be listed, and not be written, read and deleted in ({said}). "
            "To do: let that key GetObject, PutObject and DeleteObject there, and see the server's mode and disk; docs/runbooks/storage.md"
        ) from error


def delta_options(uri: str) -> dict[str, str] | None:
    """Storage options of a Delta table. A commit is a put that only succeeds where nothing is yet: two writers cannot both make a version."""
    return {"aws_conditional_put": "etag"} if is_object_store(uri) else None


def complete(variables: MutableMapping[str, str]) -> None:
    """Add what follows from the standard variables that are there: the libraries differ in which of them they read."""
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
    """Look into the bucket: once in a process, again after a failure, and as somebody else."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # one that was made before has the credentials of then
    try:
        UPath(f"{SCHEME}{bucket}", **OPTIONS).fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except Exception as error:  # botocore's, aiohttp's and s3fs' own
        raise StorageUnavailable(_explain(error, bucket)) from error


def _explain(error: Exception, bucket: str) -> str:
    endpoint, key = os.environ.get("AWS_ENDPOINT_URL") or "AWS", os.environ.get("AWS_ACCESS_KEY_ID") or "none"
    connection = get_settings().storage_connection
    origin = f"Airflow connection '{connection}' in tasks, elsewhere the variables AWS_*" if connection else "the variables AWS_*"
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    code = str(answer.get("Error", {}).get("Code", ""))
    if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
        what, fix = "there are no credentials", f"give {origin} login and password" if connection else "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif isinstance(error, PermissionError) or code == "InvalidAccessKeyId" or code.endswith("UserNotFound"):
        what, fix = "the credentials are refused", f"mend key and secret in {origin}, or what they may do with this bucket"
    elif isinstance(error, FileNotFoundError):
        what, fix = "there is no such bucket", "make the bucket, or mend AIRLOOP_DATA_ROOT"
    elif code:
        what, fix = "it answers with an error", "see what it says, and its own log"
    else:
        what, fix = "the endpoint does not answer", f"start it, or mend the endpoint in {origin} (extra endpoint_url of a connection, AWS_ENDPOINT_URL)"
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"bucket '{bucket}' at {endpoint} ({origin}, access key {key}): {what} ({said}). To do: {fix}; docs/runbooks/storage.md"
