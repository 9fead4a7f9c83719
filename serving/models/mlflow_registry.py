"""Access MLflow's registry over its REST API, or with MLflow's own client if necessary."""

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from serving.models.http_deadline import Deadline
from serving.models.mlflow_rest import MlflowRest, mlflow_by_itself
from serving.models.registry_entries import (
    RegisteredVersion,
    RegistryEntry,
    entry_of,
    registered_version_of,
    unreadable,
)
from serving.models.untrusted import line
from serving.models.version_files import BundleError, FileLimits

# Artifact stores that MLflow's own client may read. HTTP and FTP are excluded, because the author
# of a version could make this service send requests to any host.
SCHEMES = frozenset(("", "file", "s3", "gs", "wasbs", "abfss", "hdfs", "viewfs", "r2", "b2", "mlflow-artifacts"))

# Time limit in seconds for reading named models one by one while some of them fail.
NAMED_SECONDS = 30.0


def client_of(uri: str) -> Any:
    """Return the client of the registry at this address."""
    if uri.startswith(("http://", "https://")):
        return MlflowRest(uri)
    # The registry is in a file, or only MLflow's own client can reach it.
    return mlflow_by_itself(uri)


def entries(client: Any, names: tuple[str, ...]) -> Iterator[RegistryEntry]:
    """Yield the registry's entries of these names, or of all registered models.

    An entry that cannot be read contains its error. The others are still returned.

    Raises:
        Exception: The registry fails for all names, or does not answer within ``NAMED_SECONDS``.
    """
    if not names:
        yield from map(entry_of, _all(client))
        return
    failed, deadline = 0, Deadline(NAMED_SECONDS)
    for name in names:
        try:
            raw = _one(client, name)
        except Exception as error:  # An error of the connection, or of the registry for this entry.
            failed += 1
            if failed == len(names) or not deadline.left:
                raise
            yield unreadable(name, line(error))
            continue
        if raw is not None:
            yield entry_of(raw)


def registered_version(client: Any, name: str, version: str) -> RegisteredVersion:
    """Return a registered version.

    Raises:
        BundleError: Its entry is invalid.
        Exception: The registry is unavailable, or the version does not exist.
    """
    return registered_version_of(
        client.model_version(name, version)
        if isinstance(client, MlflowRest)
        else client.get_model_version(name, version),
        version,
    )


def download(
    client: Any,
    uri: str,
    name: str,
    version: str,
    into: Path,
    select_files: Callable[[Iterable[str]], Iterable[str]],
    limits: FileLimits,
    deadline: Deadline,
) -> Path:
    """Download files of a version into ``files`` below the folder ``into``. Return that folder.

    Args:
        select_files: Selects the files to download from the names of the version's files.

    Raises:
        BundleError: There are too many files, they are too large, or their location is not allowed.
        OSError: The download failed, or exceeded the deadline.
    """
    target = into / "files"
    if isinstance(client, MlflowRest):
        if client.download(name, version, target, select_files, limits, deadline):
            return target
        client = mlflow_by_itself(uri)
    # MLflow's client does not support a deadline. When ours passes, its thread is abandoned. The
    # version is not downloaded again until that thread ends.
    _within(deadline, (name, version), lambda: _by_mlflow(client, uri, name, version, target, select_files, limits))
    return target


def _by_mlflow(
    client: Any,
    uri: str,
    name: str,
    version: str,
    into: Path,
    select_files: Callable[[Iterable[str]], Iterable[str]],
    limits: FileLimits,
) -> None:
    import mlflow

    # models:/<name>/<version> is not used, because MLflow always looks that up in its global
    # registry, even if other URIs are passed (mlflow 3.17).
    where = str(client.get_model_version_download_uri(name, version))
    if where.startswith("models:/m-"):
        where = str(client.get_logged_model(where.removeprefix("models:/")).artifact_location)
    if (scheme := urlparse(where).scheme) not in SCHEMES:
        raise BundleError(f"the version's files are at '{scheme}:', where serving does not read")
    listed = mlflow.artifacts.list_artifacts(artifact_uri=where, tracking_uri=uri)
    sizes = {Path(entry.path).name: int(entry.file_size or 0) for entry in listed}
    taken = {file: sizes[file] for file in select_files(sizes)}
    if folders := taken.keys() & {Path(entry.path).name for entry in listed if entry.is_dir}:
        raise BundleError(f"{min(folders)} is a folder")
    limits.check(taken)
    into.mkdir(parents=True)
    for file in taken:
        mlflow.artifacts.download_artifacts(
            artifact_uri=f"{where.rstrip('/')}/{file}", dst_path=str(into), tracking_uri=uri, registry_uri=uri
        )


_left: dict[tuple[str, str], threading.Thread] = {}


def _within(deadline: Deadline, key: tuple[str, str], work: Callable[[], None]) -> None:
    """Run work in a thread and wait for it until the deadline."""
    before = _left.get(key)
    if before is not None and before.is_alive():
        raise TimeoutError(f"the last download of version {key[1]} still hangs")
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # Raised again below.
            failed.append(error)

    thread = _left[key] = threading.Thread(target=run, name=f"download-{key[0]}", daemon=True)
    thread.start()
    while thread.is_alive() and deadline.left:
        thread.join(min(deadline.left, 0.2))
    if thread.is_alive():
        deadline.check(f"the download of version {key[1]}")
    del _left[key]
    if failed:
        raise failed[0]


def _one(client: Any, name: str) -> Any:
    if isinstance(client, MlflowRest):
        return client.registered_model(name)
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _all(client: Any) -> Iterator[Any]:
    if isinstance(client, MlflowRest):
        yield from client.registered_models()
        return
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        yield from page
        token = page.token
        if not token:
            return
