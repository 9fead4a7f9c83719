"""What serving asks MLflow, over its REST API. MLflow's own client takes seconds to import, and milliseconds of this process each second.

Source: https://mlflow.org/docs/latest/rest-api.html; the artifacts as ``mlflow/store/artifact/mlflow_artifacts_repo.py`` has them.
"""

import base64
import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

SECONDS = 5.0
PROXIED = "mlflow-artifacts:"


class MlflowError(OSError):
    """MLflow does not answer, or not as it should. The message holds no credentials."""


@dataclass(frozen=True)
class RegisteredModel:
    name: str
    aliases: dict[str, str]
    tags: dict[str, str]
    creation_timestamp: int


@dataclass(frozen=True)
class ModelVersion:
    version: str
    source: str
    tags: dict[str, str] = field(default_factory=dict)


class MlflowRest:
    """The registry of a tracking server. User and password: ``MLFLOW_TRACKING_USERNAME`` and ``_PASSWORD``, or ``MLFLOW_TRACKING_TOKEN``, as everywhere."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._headers = {"User-Agent": "airloop-serving"}
        user, password, token = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN"))
        if user and password:
            self._headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        elif token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._tls = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")) if self.uri.startswith("https:") else None

    def registered_model(self, name: str) -> RegisteredModel | None:
        """A registered model; None: there is none of that name."""
        try:
            return _model(self._ask("registered-models/get", name=name)["registered_model"])
        except MlflowError as error:
            if "RESOURCE_DOES_NOT_EXIST" in str(error):
                return None
            raise

    def registered_models(self) -> list[RegisteredModel]:
        found, token = [], ""
        while True:
            page = self._ask("registered-models/search", max_results="100", **({"page_token": token} if token else {}))
            found += [_model(entry) for entry in page.get("registered_models", [])]
            token = page.get("next_page_token", "")
            if not token:
                return found

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        entry = self._ask("model-versions/get", name=name, version=version)["model_version"]
        return ModelVersion(str(entry["version"]), entry["source"], _pairs(entry.get("tags")))

    def download(self, name: str, version: str, into: Path) -> Path | None:
        """Put a version's files into a folder; None: the server does not pass its artifacts through, so MLflow's own client is needed.

        Raises:
            MlflowError: they do not come.
        """
        where = str(self._ask("model-versions/get-download-uri", name=name, version=version)["artifact_uri"])
        if where.startswith("models:/m-"):  # a logged model: where its files are
            where = str(self._ask(f"logged-models/{where.removeprefix('models:/')}")["model"]["info"]["artifact_uri"])
        if not where.startswith(PROXIED):
            return None
        root = PurePosixPath(urllib.parse.urlparse(where).path.lstrip("/"))
        self._fetch(root, PurePosixPath(), into)
        return into

    def _fetch(self, root: PurePosixPath, below: PurePosixPath, into: Path) -> None:
        listed = self._json(f"/api/2.0/mlflow-artifacts/artifacts?{urllib.parse.urlencode({'path': str(root / below)})}")
        for entry in listed.get("files", []):
            path = below / PurePosixPath(entry["path"]).name
            if path.name in ("", ".", ".."):
                raise MlflowError(f"MLflow names a file '{entry['path']}'")
            if entry.get("is_dir"):
                self._fetch(root, path, into)
                continue
            target = into / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._open(f"/api/2.0/mlflow-artifacts/artifacts/{urllib.parse.quote(str(root / path))}") as answer, target.open("wb") as file:
                while block := answer.read(1 << 20):
                    file.write(block)

    def _ask(self, what: str, **query: str) -> Any:
        return self._json(f"/api/2.0/mlflow/{what}" + (f"?{urllib.parse.urlencode(query)}" if query else ""))

    def _json(self, path: str) -> Any:
        with self._open(path) as answer:
            try:
                return json.load(answer)
            except ValueError as error:
                raise MlflowError(f"{path.partition('?')[0]} answers no JSON: {error}") from error

    def _open(self, path: str) -> Any:
        request = urllib.request.Request(self.uri + path, headers=self._headers)
        try:
            return urllib.request.urlopen(request, timeout=SECONDS, context=self._tls)
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace")
            raise MlflowError(f"{path.partition('?')[0]}: HTTP {error.code} {said}") from None
        except (OSError, ValueError) as error:
            raise MlflowError(f"{path.partition('?')[0]}: {error}") from None


def _model(entry: dict[str, Any]) -> RegisteredModel:
    aliases = {alias["alias"]: str(alias["version"]) for alias in entry.get("aliases", [])}
    return RegisteredModel(entry["name"], aliases, _pairs(entry.get("tags")), int(entry.get("creation_timestamp", 0)))


def _pairs(entries: list[dict[str, str]] | None) -> dict[str, str]:
    return {entry["key"]: entry.get("value", "") for entry in entries or []}


def mlflow_by_itself(uri: str) -> Any:
    """MLflow's own client."""
    # Its own defaults wait for minutes on a server that is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)
