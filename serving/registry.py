"""Which model answers: follows the alias ``champion`` of registered models in MLflow, without a restart.

One thread asks the registry, fetches new versions, and tries them; requests only ever see a model that answered its golden
requests, taken from one dictionary. What goes wrong leaves the model that is there in its place.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from serving.bundle import Bundle, BundleError
from serving.model_cache import Kept, ModelCache
from serving.problems import Problem, unavailable

CHAMPION = "champion"
QUIET_TRIES = 3  # failed fetches before they are called an error: the network may only have blinked
LONGEST_PAUSE = 60.0

State = Literal["loading", "ready", "refused", "error"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    name: str
    version: str
    source: str
    bundle: Bundle
    loaded_at: datetime


@dataclass(frozen=True)
class Wanted:
    """Where the alias points. ``source`` tells apart equal numbers of two registries."""

    version: str
    source: str


@dataclass(frozen=True)
class Model:
    """What is known of one registered model.

    ``state``: ``loading`` (nothing answers yet), ``ready`` (the champion answers), ``refused`` (the champion is not fit to answer: another
    one, or none, does), ``error`` (the champion cannot be fetched; it is tried again).
    """

    name: str
    state: State = "loading"
    served: Served | None = None
    error: str | None = None
    wanted: Wanted | None = None  # what the alias points at
    tries: int = 0
    next_try: float = 0.0


class ModelRegistry:
    """The models that this service serves.

    Args:
        names: registered models to follow; empty: every one with a champion.
        client: makes the MLflow client; called in the thread, since importing MLflow takes seconds.
    """

    def __init__(
        self, uri: str, cache: Path, *, names: tuple[str, ...] = (), poll_seconds: float = 1, threads: int = 1, client: Callable[[str], Any] | None = None
    ) -> None:
        self.uri, self.cache, self.names, self.poll_seconds = uri, ModelCache(cache), names, poll_seconds
        self.models: dict[str, Model] = {name: Model(name) for name in names}
        self.polled_at: datetime | None = None
        self.error: str | None = None
        self.imported = threading.Event()
        self._threads = threads
        self._client_of = client or _mlflow_client
        self._client: Any = None
        self._restored = False
        self._created: dict[str, int] = {}  # model -> when the registry's entry was made: a registry that is made anew counts from 1 again
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-registry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def serving(self, name: str) -> Served:
        """The model that answers for ``name`` now.

        Raises:
            Problem: 404, there is no such model; 503, nothing answers yet.
        """
        model = self.model(name)
        if model.served is None:
            raise unavailable("model-not-loaded", "The model is not loaded", model.error or f"model '{name}' is being loaded")
        return model.served

    def model(self, name: str) -> Model:
        """What is known of a model.

        Raises:
            Problem: 404, there is no such model; 503, the registry has not been asked yet.
        """
        model = self.models.get(name)
        if model is not None:
            return model
        if self.polled_at is None:
            raise unavailable("registry-not-asked", "The model registry has not answered yet", self.error or "it is being asked which models there are")
        raise Problem(404, "unknown-model", "Unknown model", f"no registered model '{name}' is served here; GET /models lists those that are", field="name")

    def document(self, name: str) -> dict[str, Any]:
        """What is told of a model; an unreachable registry is told too, since nobody then knows who is champion."""
        model = self.model(name)
        served, away = model.served, f"the registry does not answer: {self.error}" if self.error else None
        return {
            "name": model.name,
            "version": served.version if served else None,
            "loaded_at": served.loaded_at.isoformat() if served else None,
            "state": model.state,
            "error": model.error or away,
        }

    def status(self) -> dict[str, Any]:
        return {"uri": self.uri, "polled_at": self.polled_at.isoformat() if self.polled_at else None, "error": self.error}

    # --- what the thread does ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            self.poll()
            self._stop.wait(self.poll_seconds)

    def poll(self) -> None:
        """Ask the registry once and follow it."""
        try:
            if self._client is None:
                try:
                    self._client = self._client_of(self.uri)
                finally:
                    self.imported.set()
            champions = self._champions()
        except Exception as error:  # MLflow's, the connection's, the database's
            if self.error is None:
                log.warning("the registry at %s does not answer; what is loaded keeps serving: %s", self.uri, error)
            self.error = _line(error)
            if self.polled_at is None and not self._restored:
                self._restored = True
                self._restore()
            return
        for name in champions.keys() - self.models.keys():
            self._put(Model(name))  # known before the registry counts as asked: what is being fetched is not unknown
        self.error, self.polled_at = None, datetime.now(UTC)
        for name, model in sorted(self.models.items()):
            try:
                self._follow(model, champions.get(name))
            except Exception as error:  # nothing that one model does may stop the thread
                log.exception("model %s", name)
                self._put(replace(model, state="error", error=_line(error)))

    def _champions(self) -> dict[str, Wanted]:
        """Model -> the version its alias points at; one request, and another one for each alias that moved."""
        found: dict[str, Wanted] = {}
        for entry in _named(self._client, self.names) if self.names else _all(self._client):
            version = entry.aliases.get(CHAMPION)
            if version is None:
                continue
            known = self.models[entry.name].wanted if entry.name in self.models else None
            if known is None or known.version != str(version) or self._created.get(entry.name) != entry.creation_timestamp:
                known = Wanted(str(version), self._client.get_model_version(entry.name, str(version)).source)
                self._created[entry.name] = entry.creation_timestamp
            found[entry.name] = known
        return found

    def _follow(self, model: Model, wanted: Wanted | None) -> None:
        if wanted is None:
            if model.served is None:
                self._put(replace(model, state="loading", wanted=None, error=f"no version has the alias '{CHAMPION}'"))
            elif model.wanted is not None:  # taken away: an answer is better than none, so the last champion keeps answering
                self._put(replace(model, wanted=None, error=f"no version has the alias '{CHAMPION}' any more; the last champion keeps answering"))
            return
        if wanted != model.wanted:
            model = replace(model, state="ready" if model.served else "loading", error=None, wanted=wanted, tries=0, next_try=0.0)
        if model.served and (model.served.version, model.served.source) == (wanted.version, wanted.source):
            self._put(replace(model, state="ready", error=None))
        elif model.state == "refused":
            return  # it will be as wrong as the last time, until the alias moves
        elif time.monotonic() >= model.next_try:
            self._put(self._try(model, wanted))

    def _try(self, model: Model, wanted: Wanted) -> Model:
        """Fetch, load and test a version; what it becomes of the model."""
        try:
            folder, bundle = self.cache.fetch(
                model.name, wanted.version, wanted.source, lambda into: _download(self._client, self.uri, model.name, wanted.version, into), self._load
            )
        except BundleError as error:
            log.warning("model %s version %s is refused: %s", model.name, wanted.version, error)
            return replace(model, state="refused", error=f"version {wanted.version}: {error}")
        except Exception as error:
            tries = model.tries + 1
            pause = min(LONGEST_PAUSE, self.poll_seconds * 2 ** (tries - 1))
            log.warning("model %s version %s cannot be fetched (try %d): %s", model.name, wanted.version, tries, error)
            later = replace(model, tries=tries, next_try=time.monotonic() + pause)
            if tries < QUIET_TRIES:
                return later
            return replace(later, state="error", error=f"version {wanted.version} cannot be fetched ({tries} tries): {_line(error)}")
        log.info("model %s: version %s answers", model.name, wanted.version)
        self.cache.keep(Kept(model.name, wanted.version, wanted.source, folder))
        served = Served(model.name, wanted.version, wanted.source, bundle, datetime.now(UTC))
        return replace(model, state="ready", served=served, error=None, tries=0)

    def _load(self, name: str, folder: Path) -> Bundle:
        bundle = Bundle.load(folder, threads=self._threads)
        if bundle.contract.project != name:
            raise BundleError(f"contract.json is of project '{bundle.contract.project}', the registered model is '{name}'")
        return bundle

    def _put(self, model: Model) -> None:
        self.models = {**self.models, model.name: model}  # a new dictionary, so that readers need no lock

    def _restore(self) -> None:
        """The last models that answered, when the registry is away at the start."""
        for kept in self.cache.kept():
            known = self.models.get(kept.name) or Model(kept.name)
            if self.names and kept.name not in self.names:
                continue
            try:
                served = Served(kept.name, kept.version, kept.source, self._load(kept.name, kept.folder), datetime.now(UTC))
            except (OSError, ValueError) as error:
                log.warning("%s cannot be used: %s", kept.folder, error)
                continue
            self._put(replace(known, state="ready", served=served, wanted=Wanted(kept.version, kept.source)))
            log.info("model %s: version %s answers, from the cache", kept.name, kept.version)


def _mlflow_client(uri: str):
    # MLflow's own defaults wait for minutes on a server that is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _named(client, names: tuple[str, ...]):
    from mlflow.exceptions import MlflowException

    for name in names:
        try:
            yield client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def _all(client):
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _download(client, uri: str, name: str, version: str, into: Path) -> Path:
    """The folder of a version's files, below ``into``."""
    import mlflow

    # Not models:/<name>/<version>: MLflow looks that up in its global registry, whatever URIs it is given (mlflow 3.17).
    where = client.get_model_version_download_uri(name, version)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=where, dst_path=str(into), tracking_uri=uri, registry_uri=uri))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
