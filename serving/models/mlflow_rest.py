"""Call MLflow's REST API.

MLflow's own client takes seconds to import and uses milliseconds of CPU time each second.

Source: https://mlflow.org/docs/latest/rest-api.html. The artifacts API follows
``mlflow/store/artifact/mlflow_artifacts_repo.py``. Every answer has a deadline and a size limit.
"""

import base64
import json
import os
import ssl
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from serving.models.http_deadline import Deadline, blocks, opened
from serving.models.version_files import BundleError, FileLimits

# Deadline for one answer in seconds, except for artifacts.
SECONDS = 10.0
# Maximum size of one answer, except for artifacts.
MOST_BYTES = 8 * 2**20
PAGE = 100  # Registered models per page.
PROXIED = "mlflow-artifacts:"


class MlflowError(OSError):
    """Raised if MLflow is unavailable or returns an invalid answer.

    The message does not contain credentials.
    """


class MlflowTimeoutError(MlflowError, TimeoutError):
    """Raised if MLflow does not answer in time."""


class TooLongError(MlflowError):
    """Raised if an answer is longer than ``MOST_BYTES``."""


class MlflowRest:
    """The registry of a tracking server.

    Credentials come from MLflow's standard variables: ``MLFLOW_TRACKING_USERNAME`` and
    ``_PASSWORD``, or ``MLFLOW_TRACKING_TOKEN``.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._headers = {"User-Agent": "airloop-serving"}
        user, password, token = (
            os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN")
        )
        if user and password:
            self._headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        elif token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._tls = (
            ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
            if self.uri.startswith("https:")
            else None
        )

    def registered_model(self, name: str) -> Any:
        """Return the registry's entry of a registered model, or None if it does not exist."""
        try:
            return self._ask("registered-models/get", name=name).get("registered_model")
        except MlflowError as error:
            if "RESOURCE_DOES_NOT_EXIST" in str(error):
                return None
            raise

    def registered_models(self) -> Iterator[Any]:
        """Yield the registry's entries of all registered models.

        For an entry that exceeds the size limit of an answer, a ``TooLongError`` is yielded.
        """
        token = ""
        while True:
            try:
                page = self._page(PAGE, token)
            except TooLongError:
                at = _offset(token)
                yield from self._in_parts(at, PAGE)
                token = _token(at + PAGE)
                continue
            yield from _list(page.get("registered_models"))
            token = page.get("next_page_token") or ""
            if not token:
                return

    def _in_parts(self, at: int, size: int) -> Iterator[Any]:
        """Yield the entries of an oversized page, and ``TooLongError`` for oversized entries."""
        for start, count in ((at, size // 2), (at + size // 2, size - size // 2)):
            try:
                yield from _list(self._page(count, _token(start)).get("registered_models"))
            except TooLongError as error:
                if count > 1:
                    yield from self._in_parts(start, count)
                else:
                    yield error

    def _page(self, size: int, token: str) -> dict[str, Any]:
        return self._ask("registered-models/search", max_results=str(size), **({"page_token": token} if token else {}))

    def model_version(self, name: str, version: str) -> dict[str, Any]:
        """Return the registry's entry of a version."""
        entry = self._ask("model-versions/get", name=name, version=version).get("model_version")
        if not isinstance(entry, dict):
            raise MlflowError("model-versions/get answers without a version")
        return entry

    def download(
        self,
        name: str,
        version: str,
        into: Path,
        select_files: Callable[[Iterable[str]], Iterable[str]],
        limits: FileLimits,
        deadline: Deadline,
    ) -> bool:
        """Download files of a version into a folder.

        Args:
            select_files: Selects the files to download from the names of the version's files.

        Returns:
            True, or False if the server does not proxy its artifacts. Then MLflow's own client is
                needed.

        Raises:
            BundleError: There are too many files, or they are too large.
            OSError: The download failed, or exceeded the deadline.
        """
        where = str(self._ask("model-versions/get-download-uri", name=name, version=version).get("artifact_uri"))
        # The version refers to a logged model, so its location is looked up.
        if where.startswith("models:/m-"):
            logged_model = self._ask(f"logged-models/{urllib.parse.quote(where.removeprefix('models:/'), safe='')}")
            try:
                where = str(logged_model["model"]["info"]["artifact_uri"])
            except (KeyError, TypeError):
                raise MlflowError("logged-models answers without the place of the files") from None
        if not where.startswith(PROXIED):
            return False
        root = PurePosixPath(urllib.parse.urlparse(where).path.lstrip("/"))
        listed = self._json(
            f"/api/2.0/mlflow-artifacts/artifacts?{urllib.parse.urlencode({'path': str(root)})}", deadline
        ).get("files")
        names = [PurePosixPath(str(entry.get("path", ""))).name for entry in _list(listed) if isinstance(entry, dict)]
        if len(names) > 1000:
            raise BundleError(f"the version's folder lists {len(names)} files")
        sizes = dict.fromkeys(select_files(names), 0)
        limits.check(sizes)
        into.mkdir(parents=True)
        for file in sizes:
            most = min(limits.limit_for(file), limits.total_bytes - sum(sizes.values()))
            path = f"/api/2.0/mlflow-artifacts/artifacts/{urllib.parse.quote(str(root / file))}"
            with self._open(path, deadline) as answer, (into / file).open("xb") as target:
                for block in blocks(answer, deadline, file):
                    sizes[file] += len(block)
                    if sizes[file] > most:
                        raise BundleError(
                            f"{file} has more than {most} bytes; no more are downloaded (SERVING_MAX_MODEL_BYTES)"
                        )
                    target.write(block)
        return True

    def _ask(self, what: str, **query: str) -> dict[str, Any]:
        return self._json(
            f"/api/2.0/mlflow/{what}" + (f"?{urllib.parse.urlencode(query, errors='replace')}" if query else ""),
            Deadline(SECONDS),
        )

    def _json(self, path: str, deadline: Deadline) -> dict[str, Any]:
        where, content = path.partition("?")[0], bytearray()
        with self._open(path, deadline) as answer:
            for block in blocks(answer, deadline, where):
                content += block
                if len(content) > MOST_BYTES:
                    raise TooLongError(f"{where} answers with more than {MOST_BYTES} bytes")
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise MlflowError(f"{where} answers no JSON: {error}") from None
        if not isinstance(document, dict):
            raise MlflowError(f"{where} answers no JSON object")
        return document

    @contextmanager
    def _open(self, path: str, deadline: Deadline) -> Iterator[Any]:
        where = path.partition("?")[0]
        try:
            with opened(self.uri + path, self._headers, deadline, self._tls) as answer:
                yield answer
        except MlflowError:
            raise
        except (OSError, ValueError) as error:  # The caller handles BundleError.
            if isinstance(error, BundleError):
                raise
            if isinstance(error, TimeoutError):
                raise MlflowTimeoutError(f"{where}: {error}") from None
            raise MlflowError(f"{where}: {error}") from None


def _list(entries: Any) -> list[Any]:
    return entries if isinstance(entries, list) else []


def _token(offset: int) -> str:
    """Return MLflow's token for the page that begins at an offset.

    See ``mlflow.utils.search_utils.SearchUtils.create_page_token``.
    """
    return base64.b64encode(json.dumps({"offset": offset}).encode()).decode()


def _offset(token: str) -> int:
    try:
        return int(json.loads(base64.b64decode(token))["offset"]) if token else 0
    except (ValueError, TypeError, KeyError):
        raise MlflowError("registered-models/search: the page is too long, and its token has no offset") from None


def mlflow_by_itself(uri: str) -> Any:
    """Return MLflow's own client."""
    # With its defaults the client waits for minutes if a server is unavailable.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)
