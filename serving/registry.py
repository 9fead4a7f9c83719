"""Which model answers: follows the alias ``champion`` of registered models in MLflow, without a restart.

One thread asks the registry and decides. Versions are downloaded and tested in the background (``serving/loading.py``), at most one per model at a time,
so a model that hangs delays no other. Requests only ever see a model that answered its golden requests, taken from one dictionary. A failure leaves the
model that answers in its place.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from serving.checker import Checkers
from serving.jobs import Jobs
from serving.known_models import KnownModels, Model, State, Wanted
from serving.loading import Loader, Outcome
from serving.mlflow_registry import client_of, entries
from serving.model_cache import ModelCache
from serving.registry_entries import Entry
from serving.rollout import CHAMPION, Arm, Breaker, Shadow, traffic_of, withdrawn
from serving.served import Member, Route, Served
from serving.untrusted import line
from serving.version_files import Limits

QUICK, SLOW = "quick", "slow"
RESTORED = ""  # in place of an arm: the version came from the cache
LANES = {QUICK: 4, SLOW: 1}  # versions that are loaded at once; models whose last try ran into a deadline have a lane of their own
START_SECONDS = 30.0  # for which readiness waits for models outside SERVING_MODELS
MOST_UNREADABLE = 20  # entries that the status lists

log = logging.getLogger(__name__)


class ModelRegistry(KnownModels):
    """The models that this service serves.

    Args:
        names: registered models to follow; empty: every one with a champion.
        client: makes the MLflow client; called in the thread, since importing MLflow takes seconds.
        stale_seconds: age of the last successful poll at which the registry counts as not followed; None: ten times ``poll_seconds``, at least 30.
        patience: for which a poll waits for versions that are being loaded. One that takes longer delays the next poll by so much, and no other model.
    """

    def __init__(
        self, uri: str, cache: Path, *, names: tuple[str, ...] = (), poll_seconds: float = 1, threads: int = 1, client: Callable[[str], Any] | None = None,
        limits: Limits = Limits(), fetch_seconds: float = 120, check_seconds: float = 30, check_bytes: int = 4 * 2**30,  # noqa: B008 (frozen)
        stale_seconds: float | None = None, patience: float = 10,
    ) -> None:  # fmt: skip
        super().__init__(names, stale_seconds or max(30.0, 10 * poll_seconds))
        self.uri, self.cache, self.names, self.poll_seconds, self.patience = uri, ModelCache(cache), names, poll_seconds, patience
        self.unreadable: list[str] = []  # entries of the registry that belong to no model that could be served
        self.imported = threading.Event()
        self._client_of = client or client_of
        self._client: Any = None
        self._first_polled: float | None = None
        self._away = self._restored = False
        self._entries: dict[str, Entry] = {}
        self._known: dict[tuple[str, str], Wanted] = {}
        self._stop = threading.Event()
        self._jobs = Jobs(LANES)
        self._checkers = Checkers(sum(LANES.values()), seconds=check_seconds, memory_bytes=check_bytes, threads=threads, limits=limits)
        self._loader = Loader(
            self.cache, self._checkers, uri, threads=threads, limits=limits, fetch_seconds=fetch_seconds, poll_seconds=poll_seconds, cancelled=self._stop
        )
        self._thread = threading.Thread(target=self._run, name="model-registry", daemon=True)

    def start(self) -> None:
        self._checkers.warm()
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._checkers.close()
        if self._thread.is_alive():
            self._thread.join(5)

    def status(self) -> dict[str, Any]:
        polled = self.polled_at.isoformat() if self.polled_at else None
        return {
            "uri": self.uri, "polled_at": polled, "age_seconds": round(self.age, 1), "stale": self.stale, "error": self.error,
            "unreadable": self.unreadable,
        }  # fmt: skip

    def waiting(self) -> list[str]:
        """Why the service is not ready yet, as far as models decide that.

        A model that ``SERVING_MODELS`` names must answer. At least one of the others must answer, and each of them is waited for until loading it has failed,
        for at most ``START_SECONDS``: registering a model that does not load must not make the service unavailable for the others.
        """
        if self.polled_at is None and not self.models:
            return ["the registry has not answered yet"]
        absent = [model for model in tuple(self.models.values()) if model.served is None]
        if not self.names and len(absent) < len(self.models):
            started = self._first_polled is not None and time.monotonic() - self._first_polled > START_SECONDS
            absent = [model for model in absent if not model.tried and not started]
        return [f"model '{model.name}' is not loaded" for model in sorted(absent, key=lambda model: model.name)]

    # --- what the thread does ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except Exception as error:  # nothing may end the thread
                log.exception("following the registry failed")
                self.error = line(error)
            self._stop.wait(self.poll_seconds)

    def poll(self) -> None:
        """Ask the registry once and follow it."""
        try:
            if self._client is None:
                try:
                    self._client = self._client_of(self.uri)
                finally:
                    self.imported.set()
            found = list(entries(self._client, self.names))
        except Exception as error:  # MLflow's, the connection's, the database's
            if self.error is None:
                log.warning("the registry at %s does not answer; what is loaded keeps serving: %s", self.uri, line(error))
            self.error, self._away = line(error), True
            if self.polled_at is None and not self._restored:
                self._restored = True
                self._restore()
        else:
            self._follow_entries(found)
        for key, (arm, version, outcome) in self._jobs.results(self.patience):
            self._guarded(str(key), lambda name, a=arm, v=version, o=outcome: self._apply(name, a, v, o))  # type: ignore[misc]

    def _follow_entries(self, found: list[Entry]) -> None:
        if self._away:  # loaded versions and their cached files are compared with the registry again
            self._known.clear()
            self.models = {name: replace(model, verified=False) for name, model in self.models.items()}
            self._members = {key: replace(model, verified=False) for key, model in self._members.items()}
        unreadable = [entry.error or "" for entry in found if entry.name is None]
        if new := [error for error in unreadable if error not in self.unreadable]:
            log.warning("the registry has %d entries that are not followed, among them: %s", len(unreadable), new[0])
        self._owners = {entry.name: entry.owner for entry in found if entry.name is not None}
        self.unreadable = unreadable[:MOST_UNREADABLE]
        before, self._entries = self._entries, {entry.name: entry for entry in found if entry.name is not None}
        for name, entry in self._entries.items():
            if entry.error is None and name in before and before[name].created != entry.created:  # a registry that is made anew counts from 1 again
                self._known = {key: wanted for key, wanted in self._known.items() if key[0] != name}
            if name not in self.models and (entry.version is not None or entry.error):
                self._put(Model(name))  # known before the registry counts as asked: what is being fetched is not unknown
        if self.polled_at is None:
            self._recover()
        now = time.monotonic()
        self._first_polled = self._first_polled or now
        self.error, self.polled_at, self._last_polled, self._away = None, datetime.now(UTC), now, False
        for name in sorted(self.models):
            self._guarded(name, self._advance)

    def _guarded(self, name: str, step: Callable[[str], None]) -> None:
        """Nothing that one model does may stop the thread."""
        try:
            step(name)
        except Exception as error:
            log.exception("model %s", name)
            if name in self.models:
                self._put(replace(self.models[name], state="error", error=line(error)))

    def _advance(self, name: str, retry: bool = True) -> None:
        """Take a model's next step; what takes time becomes a job.

        Args:
            retry: also what has failed, if its pause is over. Once per poll, so that tries are at least a poll apart.
        """
        if self._jobs.busy(name):
            return
        entry, model = self._entries.get(name), self.models[name]
        if entry is not None and entry.error is not None:
            self._put(replace(model, state="error", error=entry.error, tried=True))
            return
        if entry is not None and entry.version is not None and self._traffic.get(name, ("",))[0] != entry.document:
            self._traffic[name] = (entry.document, *traffic_of(entry.document))
        model, needed = self._follow(model, entry.version if entry else None, retry)
        self._put(model)
        if needed:
            self._start(model, model.trying or "", CHAMPION)
        else:
            self._follow_traffic(name, retry)

    def _follow(self, model: Model, version: str | None, retry: bool) -> tuple[Model, bool]:
        """What is known of a model now, and whether a job is needed to follow it."""
        if version is None:
            if model.served is None:
                return replace(model, state="loading", wanted=None, trying=None, error=f"no version has the alias '{CHAMPION}'"), False
            # Deleted, or its alias was: an answer is better than none.
            state: State = "ready" if withdrawn(self._entry_document(model.name)) else "lost"
            error = f"no version has the alias '{CHAMPION}' any more; the last champion keeps answering"
            return replace(model, state=state, wanted=None, trying=None, error=error), False
        if version != model.trying:
            model = replace(model, state="ready" if model.served else "loading", error=None, trying=version, tries=0, next_try=0.0)
        known = self._known.get((model.name, version))
        if known is not None and model.verified and model.served and (model.served.version, model.served.source) == (known.version, known.source):
            return replace(model, state="ready", error=None, wanted=known), False
        if time.monotonic() < model.next_try or (model.tries and not retry) or (model.state == "refused" and known is not None and known == model.wanted):
            return model, False  # a refused one will be as wrong as the last time, until the alias moves
        return model, True

    def _start(self, model: Model, version: str, arm: str) -> None:
        known = self._known.get((model.name, version))
        client, loader = self._client, self._loader

        def work() -> tuple[str, str, Outcome]:
            try:
                return arm, version, loader.follow(client, model, version, known, arm)
            except Exception as error:
                log.exception("model %s", model.name)
                return arm, version, Outcome(replace(model, state="error", error=line(error), tried=True, next_try=time.monotonic() + 60))

        self._jobs.start(model.name, SLOW if model.slow else QUICK, work)

    def _apply(self, name: str, arm: str, version: str, outcome: Outcome) -> None:
        """Take over what a job made of a model, unless it is not wanted any more."""
        if outcome.wanted is not None:
            self._known[name, version] = outcome.wanted
        if arm == RESTORED:
            if outcome.model.served is not None:
                self._put(outcome.model)
            elif name not in self.models:
                return
        elif arm == CHAMPION and self.models[name].trying == version:
            self._put(outcome.model)
        elif any((entry.name, entry.version) == (arm, version) for entry in self._traffic_of(name)[0].entries):
            self._take(self._members.get((name, arm)), outcome.model)
            self._members[name, arm] = outcome.model
        used = {id(served): served for served in [self.models[name].served, *(m.served for key, m in self._members.items() if key[0] == name)] if served}
        self.cache.forget_others(name, {self.cache.folder(name, served.version, served.source) for served in used.values()})
        if self.polled_at is not None and not self._away:
            self._advance(name, retry=False)

    def _follow_traffic(self, name: str, retry: bool) -> None:
        """Arms and shadows as the rollout document has them; what is not loaded, or not fit to answer, takes no part."""
        champion = self.models[name].served
        if champion is None:
            return
        traffic = self._traffic_of(name)[0]
        arms: list[Member] = []
        shadows: list[tuple[Shadow, Served]] = []
        for entry in traffic.entries:
            member, needed = self._follow(self._members.get((name, entry.name)) or Model(name), entry.version, retry)
            self._members[name, entry.name] = member
            if needed and not self._jobs.busy(name):
                self._start(member, entry.version, entry.name)
            if member.served is None or member.served.version != entry.version:
                continue
            if isinstance(entry, Arm):
                arms.append(Member(entry, member.served, self._breakers.setdefault((name, entry), Breaker(entry))))
            else:
                shadows.append((entry, member.served))
        named = {(name, entry.name) for entry in traffic.entries}
        for key in [key for key in self._members if key[0] == name and key not in named]:
            self._take(self._members.pop(key), None)
        self._breakers = {key: breaker for key, breaker in self._breakers.items() if key[0] != name or key[1] in traffic.arms}
        route = Route(champion, traffic.salt, tuple(arms), tuple(shadows))
        if route != self.routes.get(name):
            self.routes = {**self.routes, name: route}

    def _put(self, model: Model) -> None:
        self._take(self.models.get(model.name), model)
        self.models = {**self.models, model.name: model}  # a new dictionary, so that readers need no lock
        known = self.routes.get(model.name)
        if model.served is None and known is not None:
            self.routes = {name: route for name, route in self.routes.items() if name != model.name}
        elif model.served is not None and (known is None or known.champion is not model.served):
            self.routes = {**self.routes, model.name: replace(known, champion=model.served) if known else Route(model.served)}

    def _take(self, before: Model | None, after: Model | None) -> None:
        """Begin the metrics of a version that answers from now on, and end those of the one before."""
        old, new = before.served if before else None, after.served if after else None
        if old is new:
            return
        if new is not None:
            new.begin()
        if old is not None and (new is None or new.meters.labels != old.meters.labels):
            old.end()

    def _entry_document(self, name: str) -> object:
        entry = self._entries.get(name)
        return entry.document if entry is not None else None

    def _recover(self) -> None:
        """Start with the last champions of models that have lost theirs. One that was rolled back on purpose stays away."""
        for kept in self.cache.kept():
            entry, model = self._entries.get(kept.name), self.models.get(kept.name) or Model(kept.name)
            if entry is None or entry.error or entry.version is not None or withdrawn(entry.document) or model.served or self._jobs.busy(kept.name):
                continue
            self._put(model)
            recover = partial(self._loader.recover, self._client, model, kept)
            self._jobs.start(kept.name, QUICK, lambda version=kept.version, recover=recover: (RESTORED, version, recover()))  # type: ignore[misc]

    def _restore(self) -> None:
        """Start from the cache, when the registry cannot be reached."""
        for kept in self.cache.kept():
            if self.names and kept.name not in self.names or self._jobs.busy(kept.name):
                continue
            model = self.models.get(kept.name) or Model(kept.name)
            self._jobs.start(kept.name, QUICK, lambda model=model, kept=kept: (RESTORED, kept.version, self._loader.restore(model, kept)))  # type: ignore[misc]
