"""Which model answers: follows the alias ``champion`` of registered models in MLflow, without a restart.

One thread asks the registry, fetches new versions, and tries them; requests only ever see a model that answered its golden
requests, taken from one dictionary. What goes wrong leaves the model that is there in its place.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving import metrics
from serving.bundle import Bundle, BundleError, check_hashes
from serving.known_models import Model, Wanted
from serving.mlflow_registry import all_models, client_of, download, named_models
from serving.model_cache import Kept, ModelCache
from serving.problems import Problem, unavailable
from serving.rollout import CHAMPION, TAG, Arm, Breaker, Shadow, traffic_of
from serving.served import Member, Route, Served

HASHES = "bundle_sha256"  # tag of a version
QUIET_TRIES = 3  # failed fetches before they are called an error: the network may only have blinked
LONGEST_PAUSE = 60.0

log = logging.getLogger(__name__)


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
        self._client_of = client or client_of
        self._client: Any = None
        self._restored = False
        self.routes: dict[str, Route] = {}
        self._members: dict[tuple[str, str], Model] = {}  # arms and shadows, by model and name
        self._breakers: dict[tuple[str, Arm], Breaker] = {}
        self._documents: dict[str, str | None] = {}  # model -> its rollout document
        self._known: dict[tuple[str, str], Wanted] = {}
        self._created: dict[str, int] = {}  # model -> when the registry's entry was made: a registry that is made anew counts from 1 again
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-registry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def route(self, name: str) -> Route:
        """Who answers for ``name`` now.

        Raises:
            Problem: 404, there is no such model; 503, nothing answers yet.
        """
        route = self.routes.get(name)
        if route is None:
            model = self.model(name)
            raise unavailable("model-not-loaded", "The model is not loaded", model.error or f"model '{name}' is being loaded")
        return route

    def serving(self, name: str) -> Served:
        """The champion that answers for ``name`` now. Raises as ``route`` does."""
        return self.route(name).champion

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
            "hash_checked": bool(served and model.hashed),
            "arms": self._arms(name),
            "rollout_error": traffic_of(self._documents.get(name))[1],
        }

    def _arms(self, name: str) -> list[dict[str, Any]]:
        """The arms and shadows that the rollout document names, whether they answer or not."""
        traffic, _ = traffic_of(self._documents.get(name))
        told = []
        for entry in traffic.entries:
            member = self._members.get((name, entry.name))
            breaker = self._breakers.get((name, entry)) if isinstance(entry, Arm) else None
            stopped = breaker.stopped if breaker else None
            state = "stopped" if stopped else member.state if member else "loading"
            share = {"weight": entry.weight} if isinstance(entry, Arm) else {"share": entry.share}
            told.append({"name": entry.name, "version": entry.version, "state": state, "error": stopped or (member.error if member else None), **share})
        return told

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
                self._put(self._follow(model, champions.get(name)))
                self._follow_traffic(name)
            except Exception as error:  # nothing that one model does may stop the thread
                log.exception("model %s", name)
                self._put(replace(self.models[name], state="error", error=_line(error)))

    def _champions(self) -> dict[str, Wanted]:
        """Model -> the version its alias points at; one request, and another one for each alias that moved."""
        found: dict[str, Wanted] = {}
        for entry in named_models(self._client, self.names) if self.names else all_models(self._client):
            version = entry.aliases.get(CHAMPION)
            if version is None:
                continue
            self._documents[entry.name] = (getattr(entry, "tags", None) or {}).get(TAG)
            if self._created.get(entry.name) != entry.creation_timestamp:
                self._known = {key: wanted for key, wanted in self._known.items() if key[0] != entry.name}
                self._created[entry.name] = entry.creation_timestamp
            known = self._wanted(entry.name, str(version))
            found[entry.name] = known
        return found

    def _wanted(self, name: str, version: str) -> Wanted:
        """A version as the registry has it: asked for once, since a version does not change."""
        found = self._known.get((name, version))
        if found is None:
            entry = self._client.get_model_version(name, version)
            found = self._known[name, version] = Wanted(version, entry.source, (getattr(entry, "tags", None) or {}).get(HASHES, ""))
        return found

    def _follow(self, model: Model, wanted: Wanted | None, arm: str = CHAMPION) -> Model:
        """Go after what is wanted; what becomes of the model."""
        if wanted is None:
            if model.served is None:
                return replace(model, state="loading", wanted=None, error=f"no version has the alias '{CHAMPION}'")
            if model.wanted is not None:  # taken away: an answer is better than none, so the last champion keeps answering
                return replace(model, wanted=None, error=f"no version has the alias '{CHAMPION}' any more; the last champion keeps answering")
            return model
        if wanted != model.wanted:
            model = replace(model, state="ready" if model.served else "loading", error=None, wanted=wanted, tries=0, next_try=0.0)
        if model.served and (model.served.version, model.served.source) == (wanted.version, wanted.source):
            return replace(model, state="ready", error=None)
        if model.state == "refused" or time.monotonic() < model.next_try:
            return model  # a refused one will be as wrong as the last time, until the alias moves
        return self._try(model, wanted, arm)

    def _follow_traffic(self, name: str) -> None:
        """Arms and shadows as the rollout document has them; what is not loaded, or not fit to answer, takes no part."""
        champion = self.models[name].served
        if champion is None:
            return
        traffic, _ = traffic_of(self._documents.get(name))
        arms: list[Member] = []
        shadows: list[tuple[Shadow, Served]] = []
        for entry in traffic.entries:
            member = self._members.get((name, entry.name)) or Model(name)
            try:
                member = self._follow(member, self._wanted(name, entry.version), entry.name)
            except Exception as error:  # the registry's: there is no such version, or it is away just now
                member = replace(member, state="error", error=_line(error))
            self._members[name, entry.name] = member
            if member.served is None or member.served.version != entry.version:
                continue
            if isinstance(entry, Arm):
                arms.append(Member(entry, member.served, self._breakers.setdefault((name, entry), Breaker(entry))))
            else:
                shadows.append((entry, member.served))
        named = {(name, entry.name) for entry in traffic.entries}
        for key in [key for key in self._members if key[0] == name and key not in named]:
            gone = self._members.pop(key).served
            if gone is not None:
                gone.meters.forget()
        self._breakers = {key: breaker for key, breaker in self._breakers.items() if key[0] != name or key[1] in traffic.arms}
        route = Route(champion, traffic.salt, tuple(arms), tuple(shadows))
        if route != self.routes.get(name):
            self.routes = {**self.routes, name: route}

    def _try(self, model: Model, wanted: Wanted, arm: str) -> Model:
        """Fetch, load and test a version; what it becomes of the model."""
        try:
            folder, bundle = self.cache.fetch(
                model.name,
                wanted.version,
                wanted.source,
                lambda into: download(self._client, self.uri, model.name, wanted.version, into),
                lambda name, folder: self._load(name, folder, wanted.hashes),
            )
        except BundleError as error:
            metrics.swaps.labels(model.name, "refused").inc()
            log.warning("model %s version %s is refused: %s", model.name, wanted.version, error)
            return replace(model, state="refused", error=f"version {wanted.version}: {error}")
        except Exception as error:
            tries = model.tries + 1
            pause = min(LONGEST_PAUSE, self.poll_seconds * 2 ** (tries - 1))
            log.warning("model %s version %s cannot be fetched (try %d): %s", model.name, wanted.version, tries, error)
            later = replace(model, tries=tries, next_try=time.monotonic() + pause)
            if tries < QUIET_TRIES:
                return later
            metrics.swaps.labels(model.name, "error").inc()
            return replace(later, state="error", error=f"version {wanted.version} cannot be fetched ({tries} tries): {_line(error)}")
        log.info("model %s: version %s answers, as %s", model.name, wanted.version, arm)
        metrics.swaps.labels(model.name, "swapped").inc()
        if arm == CHAMPION:
            self.cache.keep(Kept(model.name, wanted.version, wanted.source, folder, wanted.hashes))
        served = Served(model.name, wanted.version, wanted.source, bundle, datetime.now(UTC), arm)
        metrics.answering.labels(*served.meters.labels).set(1)
        if model.served is not None and model.served.version != served.version:
            model.served.meters.forget()
        return replace(model, state="ready", served=served, error=None, tries=0, hashed=bool(wanted.hashes))

    def _load(self, name: str, folder: Path, hashes: str = "") -> Bundle:
        if hashes:
            check_hashes(folder, hashes)
        bundle = Bundle.load(folder, threads=self._threads)
        if bundle.contract.project != name:
            raise BundleError(f"contract.json is of project '{bundle.contract.project}', the registered model is '{name}'")
        return bundle

    def _put(self, model: Model) -> None:
        self.models = {**self.models, model.name: model}  # a new dictionary, so that readers need no lock
        known = self.routes.get(model.name)
        if model.served is not None and (known is None or known.champion is not model.served):
            self.routes = {**self.routes, model.name: replace(known, champion=model.served) if known else Route(model.served)}

    def _restore(self) -> None:
        """The last models that answered, when the registry is away at the start."""
        for kept in self.cache.kept():
            known = self.models.get(kept.name) or Model(kept.name)
            if self.names and kept.name not in self.names:
                continue
            try:
                served = Served(kept.name, kept.version, kept.source, self._load(kept.name, kept.folder, kept.hashes), datetime.now(UTC))
            except (OSError, ValueError) as error:
                log.warning("%s cannot be used: %s", kept.folder, error)
                continue
            self._put(replace(known, state="ready", served=served, wanted=Wanted(kept.version, kept.source, kept.hashes), hashed=bool(kept.hashes)))
            log.info("model %s: version %s answers, from the cache", kept.name, kept.version)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
