"""MLflow's registry, whichever way it is reached: over its REST API, or, where that is not enough, by its own client."""

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from serving.http_deadline import Deadline
from serving.mlflow_rest import MlflowRest, mlflow_by_itself
from serving.registry_entries import Entry, Wanted, entry_of, unreadable, wanted_of
from serving.untrusted import line
from serving.version_files import BundleError, Limits

# Stores of artifacts that MLflow's own client may read. Not HTTP and FTP: the author of a version could make this service send requests to any host.
SCHEMES = frozenset(("", "file", "s3", "gs", "wasbs", "abfss", "hdfs", "viewfs", "r2", "b2", "mlflow-artifacts"))

NAMED_SECONDS = 30.0  # for asking for named models one by one, while some of them fail


def client_of(uri: str) -> Any:
    """What asks the registry at this address."""
    if uri.startswith(("http://", "https://")):
        return MlflowRest(uri)
    return mlflow_by_itself(uri)  # a registry in a file, or one that only MLflow's own client reaches


def entries(client: Any, names: tuple[str, ...]) -> Iterator[Entry]:
    """The registry's entries: of these names, or of all registered models. One that cannot be read says so, and hides no other.

    Raises:
        Exception: the registry answers for none of the names, or not within ``NAMED_SECONDS``.
    """
    if not names:
        yield from map(entry_of, _all(client))
        return
    failed, deadline = 0, Deadline(NAMED_SECONDS)
    for name in names:
        try:
            found = _one(client, name)
        except Exception as error:  # the connection's, or the registry's, for this entry alone
            failed += 1
            if failed == len(names) or not deadline.left:
                raise
            yield unreadable(name, line(error))
            continue
        if found is not None:
            yield entry_of(found)


def wanted(client: Any, name: str, version: str) -> Wanted:
    """A version as the registry has it.

    Raises:
        BundleError: its entry cannot be read.
        Exception: the registry does not answer, or has no such version.
    """
    return wanted_of(client.model_version(name, version) if isinstance(client, MlflowRest) else client.get_model_version(name, version), version)


def download(
    client: Any, uri: str, name: str, version: str, into: Path, wanted: Callable[[Iterable[str]], Iterable[str]], limits: Limits, deadline: Deadline
) -> Path:
    """Download files of a version into the folder ``files`` below ``into``; give that folder.

    Args:
        wanted: the files to download, of the names that the version has.

    Raises:
        BundleError: they are too many or too large, or come from a place that is not read.
        OSError: they cannot be downloaded, or not within the deadline.
    """
    target = into / "files"
    if isinstance(client, MlflowRest):
        if client.download(name, version, target, wanted, limits, deadline):
            return target
        client = mlflow_by_itself(uri)
    # MLflow's client does not support a deadline. When ours passes, its thread is abandoned; the version is not downloaded again until that thread ends.
    _within(deadline, (name, version), lambda: _by_mlflow(client, uri, name, version, target, wanted, limits))
    return target


def _by_mlflow(client: Any, uri: str, name: str, version: str, into: Path, wanted: Callable[[Iterable[str]], Iterable[str]], limits: Limits) -> None:
    import mlflow

    # Not models:/<name>/<version>: MLflow looks that up in its global registry, whatever URIs it is given (mlflow 3.17).
    where = str(client.get_model_version_download_uri(name, version))
    if where.startswith("models:/m-"):
        where = str(client.get_logged_model(where.removeprefix("models:/")).artifact_location)
    if (scheme := urlparse(where).scheme) not in SCHEMES:
        raise BundleError(f"the version's files are at '{scheme}:', where serving does not read")
    listed = mlflow.artifacts.list_artifacts(artifact_uri=where, tracking_uri=uri)
    sizes = {Path(entry.path).name: int(entry.file_size or 0) for entry in listed}
    taken = {file: sizes[file] for file in wanted(sizes)}
    if folders := taken.keys() & {Path(entry.path).name for entry in listed if entry.is_dir}:
        raise BundleError(f"{min(folders)} is a folder")
    limits.check(taken)
    into.mkdir(parents=True)
    for file in taken:
        mlflow.artifacts.download_artifacts(artifact_uri=f"{where.rstrip('/')}/{file}", dst_path=str(into), tracking_uri=uri, registry_uri=uri)


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
        except BaseException as error:  # raised below
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
