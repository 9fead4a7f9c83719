"""Follow the alias ``champion`` of registered models in MLflow without a restart.

One thread polls the registry and decides. Versions are downloaded and tested in the background
(``serving/models/loading.py``), at most one per model at a time. So a model that hangs does not
delay other models. Requests use only models that have passed their golden requests, from one
dictionary. If an update fails, the loaded model keeps answering.
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

from serving.models.checker import Checkers
from serving.models.jobs import Jobs
from serving.models.loaded_model import LoadedModel, Member, Route
from serving.models.loading import Loader, Outcome
from serving.models.mlflow_registry import client_of, entries
from serving.models.model_cache import ModelCache
from serving.models.model_state import ModelCatalog, ModelState, RegisteredVersion, State
from serving.models.registry_entries import RegistryEntry
from serving.models.rollout import CHAMPION, Arm, Breaker, Shadow, traffic_of, withdrawn
from serving.models.untrusted import line
from serving.models.version_files import FileLimits

QUICK, SLOW = "quick", "slow"
# The arm's name of jobs that load a version from the cache.
RESTORED = ""
# Concurrent version loads. Models whose last try reached a deadline have a separate lane.
LANES = {QUICK: 4, SLOW: 1}
# Time in seconds for which readiness waits for models outside SERVING_MODELS.
START_SECONDS = 30.0
MOST_UNREADABLE = 20  # Entries that the status lists.

log = logging.getLogger(__name__)


def _restored(version: str, load: Callable[[], Any]) -> tuple[str, str, Any]:
    """Return what ``load`` returns as the result of a job that restores a cached version."""
    return RESTORED, version, load()


class ModelRegistry(ModelCatalog):
    """The models that this service serves.

    Args:
        names: Registered models to follow. If empty, all models with a champion are followed.
        client: Creates the MLflow client. The thread calls it, because importing MLflow takes
            seconds.
        stale_seconds: Age of the last successful poll at which the registry counts as stale. The
            default is ten times ``poll_seconds``, at least 30.
        patience: Time in seconds for which a poll waits for loading versions. A version that takes
            longer delays the next poll by this time, and does not delay other models.
    """

    def __init__(
        self, uri: str, cache: Path, *, names: tuple[str, ...] = (), poll_seconds: float = 1, threads: int = 1, client: Callable[[str], Any] | None = None,  # noqa: E501
        limits: FileLimits = FileLimits(), fetch_seconds: float = 120, check_seconds: float = 30, check_bytes: int = 4 * 2**30,  # noqa: E501
        stale_seconds: float | None = None, patience: float = 10,
    ) -> None:  # fmt: skip
        super().__init__(names, stale_seconds or max(30.0, 10 * poll_seconds))
        self.uri, self.cache, self.names, self.poll_seconds, self.patience = (
            uri,
            ModelCache(cache),
            names,
            poll_seconds,
            patience,
        )
        # Invalid registry entries that do not belong to a model that could be served.
        self.unreadable: list[str] = []
        self.imported = threading.Event()
        self._client_of = client or client_of
        self._client: Any = None
        self._first_polled: float | None = None
        self._away = self._restored = False
        self._entries: dict[str, RegistryEntry] = {}
        self._known: dict[tuple[str, str], RegisteredVersion] = {}
        self._stop = threading.Event()
        self._jobs = Jobs(LANES)
        self._checkers = Checkers(
            sum(LANES.values()), seconds=check_seconds, memory_bytes=check_bytes, threads=threads, limits=limits
        )
        self._loader = Loader(
            self.cache,
            self._checkers,
            uri,
            threads=threads,
            limits=limits,
            fetch_seconds=fetch_seconds,
            poll_seconds=poll_seconds,
            cancelled=self._stop,
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
            "uri": self.uri,
            "polled_at": polled,
            "age_seconds": round(self.age, 1),
            "stale": self.stale,
            "error": self.error,
            "unreadable": self.unreadable,
        }

    def waiting(self) -> list[str]:
        """Return the reasons of the models why the service is not ready yet.

        A model that ``SERVING_MODELS`` names must answer. Of the other models, at least one must
        answer. Readiness waits for each of them until it has loaded or failed, for at most
        ``START_SECONDS``. So a registered model that cannot be loaded does not make the service
        unavailable for the others.
        """
        if self.polled_at is None and not self.models:
            return ["the registry has not answered yet"]
        absent = [model for model in tuple(self.models.values()) if model.served is None]
        if not self.names and len(absent) < len(self.models):
            started = self._first_polled is not None and time.monotonic() - self._first_polled > START_SECONDS
            absent = [model for model in absent if not model.tried and not started]
        return [f"model '{model.name}' is not loaded" for model in sorted(absent, key=lambda model: model.name)]

    # --- the thread's work
    # --------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except Exception as error:  # An exception must not end the thread.
                log.exception("following the registry failed")
                self.error = line(error)
            self._checkers.reap()
            self._stop.wait(self.poll_seconds)

    def poll(self) -> None:
        """Poll the registry once and follow it."""
        try:
            if self._client is None:
                try:
                    self._client = self._client_of(self.uri)
                finally:
                    self.imported.set()
            registry_entries = list(entries(self._client, self.names))
        except Exception as error:
            # An error of MLflow, the connection or the database.
            if self.error is None:
                log.warning(
                    "the registry at %s does not answer; loaded versions stay in use: %s", self.uri, line(error)
                )
            self.error, self._away = line(error), True
            if self.polled_at is None and not self._restored:
                self._restored = True
                self._restore()
        else:
            self._follow_entries(registry_entries)
        for key, (arm, version, outcome) in self._jobs.results(self.patience):
            self._guarded(str(key), lambda name, a=arm, v=version, o=outcome: self._apply(name, a, v, o))  # type: ignore[misc]

    def _follow_entries(self, registry_entries: list[RegistryEntry]) -> None:
        # Compare the loaded versions and their cached files with the registry again.
        if self._away:
            self._known.clear()
            self.models = {name: replace(model, verified=False) for name, model in self.models.items()}
            self._members = {key: replace(model, verified=False) for key, model in self._members.items()}
        unreadable = [entry.error or "" for entry in registry_entries if entry.name is None]
        if new := [error for error in unreadable if error not in self.unreadable]:
            log.warning("the registry has %d entries that are not followed, among them: %s", len(unreadable), new[0])
        self._owners = {entry.name: entry.owner for entry in registry_entries if entry.name is not None}
        self.unreadable = unreadable[:MOST_UNREADABLE]
        before, self._entries = (
            self._entries,
            {entry.name: entry for entry in registry_entries if entry.name is not None},
        )
        for name, entry in self._entries.items():
            # The model was deleted and created again, so its version numbers start at 1 again.
            if entry.error is None and name in before and before[name].created != entry.created:
                self._known = {key: version for key, version in self._known.items() if key[0] != name}
            if name not in self.models and (entry.version is not None or entry.error):
                # Add the model before ``polled_at`` is set. Otherwise requests would get 404 for a
                # model that is still being fetched.
                self._put(ModelState(name))
        if self.polled_at is None:
            self._recover()
        now = time.monotonic()
        self._first_polled = self._first_polled or now
        self.error, self.polled_at, self._last_polled, self._away = None, datetime.now(UTC), now, False
        for name in sorted(self.models):
            self._guarded(name, self._advance)

    def _guarded(self, name: str, step: Callable[[str], None]) -> None:
        """Run a step of one model. An exception from it does not end the thread."""
        try:
            step(name)
        except Exception as error:
            log.exception("model %s", name)
            if name in self.models:
                self._put(replace(self.models[name], state="error", error=line(error)))

    def _advance(self, name: str, retry: bool = True) -> None:
        """Take a model's next step. Slow work becomes a job.

        Args:
            retry: True to repeat failed work whose pause is over. True once per poll, so that tries
                are at least one poll apart.
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

    def _follow(self, model: ModelState, version: str | None, retry: bool) -> tuple[ModelState, bool]:
        """Return the updated state of a model, and True if a job is needed to follow it."""
        if version is None:
            if model.served is None:
                return (
                    replace(
                        model, state="loading", wanted=None, trying=None, error=f"no version has the alias '{CHAMPION}'"
                    ),
                    False,
                )
            # The version or its alias was deleted. The last champion keeps answering.
            state: State = "ready" if withdrawn(self._entry_document(model.name)) else "lost"
            error = f"no version has the alias '{CHAMPION}' any more; the last champion keeps answering"
            return replace(model, state=state, wanted=None, trying=None, error=error), False
        if version != model.trying:
            model = replace(
                model, state="ready" if model.served else "loading", error=None, trying=version, tries=0, next_try=0.0
            )
        known = self._known.get((model.name, version))
        if (
            known is not None
            and model.verified
            and model.served
            and (model.served.version, model.served.source) == (known.version, known.source)
        ):
            return replace(model, state="ready", error=None, wanted=known), False
        if (
            time.monotonic() < model.next_try
            or (model.tries and not retry)
            or (model.state == "refused" and known is not None and known == model.wanted)
        ):
            # A refused version would fail again, so it is not tried until the alias moves.
            return model, False
        return model, True

    def _start(self, model: ModelState, version: str, arm: str) -> None:
        known = self._known.get((model.name, version))
        client, loader = self._client, self._loader

        def work() -> tuple[str, str, Outcome]:
            try:
                return arm, version, loader.follow(client, model, version, known, arm)
            except Exception as error:
                log.exception("model %s", model.name)
                return (
                    arm,
                    version,
                    Outcome(
                        replace(model, state="error", error=line(error), tried=True, next_try=time.monotonic() + 60)
                    ),
                )

        self._jobs.start(model.name, SLOW if model.slow else QUICK, work)

    def _apply(self, name: str, arm: str, version: str, outcome: Outcome) -> None:
        """Take over a job's result for a model, unless the version is not wanted any more."""
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
        used = {
            id(served): served
            for served in [self.models[name].served, *(m.served for key, m in self._members.items() if key[0] == name)]
            if served
        }
        self.cache.forget_others(
            name, {self.cache.folder(name, served.version, served.source) for served in used.values()}
        )
        if self.polled_at is not None and not self._away:
            self._advance(name, retry=False)

    def _follow_traffic(self, name: str, retry: bool) -> None:
        """Follow the arms and shadows of the rollout document.

        Versions that are not loaded or were refused do not take part.
        """
        champion = self.models[name].served
        if champion is None:
            return
        traffic = self._traffic_of(name)[0]
        arms: list[Member] = []
        shadows: list[tuple[Shadow, LoadedModel]] = []
        for entry in traffic.entries:
            member, needed = self._follow(
                self._members.get((name, entry.name)) or ModelState(name), entry.version, retry
            )
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
        self._breakers = {
            key: breaker for key, breaker in self._breakers.items() if key[0] != name or key[1] in traffic.arms
        }
        route = Route(champion, traffic.salt, tuple(arms), tuple(shadows))
        if route != self.routes.get(name):
            self.routes = {**self.routes, name: route}

    def _put(self, model: ModelState) -> None:
        self._take(self.models.get(model.name), model)
        # A new dictionary, so that readers do not need a lock.
        self.models = {**self.models, model.name: model}
        known = self.routes.get(model.name)
        if model.served is None and known is not None:
            self.routes = {name: route for name, route in self.routes.items() if name != model.name}
        elif model.served is not None and (known is None or known.champion is not model.served):
            self.routes = {
                **self.routes,
                model.name: replace(known, champion=model.served) if known else Route(model.served),
            }

    def _take(self, before: ModelState | None, after: ModelState | None) -> None:
        """Start the metrics of a version that now answers, and end those of the previous one."""
        old, new = before.served if before else None, after.served if after else None
        if old is new:
            return
        if new is not None:
            new.begin()
        if old is not None and (new is None or new.model_metrics.labels != old.model_metrics.labels):
            old.end()

    def _entry_document(self, name: str) -> object:
        entry = self._entries.get(name)
        return entry.document if entry is not None else None

    def _recover(self) -> None:
        """Load the last champions of models whose alias was lost.

        A champion that was rolled back on purpose is not loaded.
        """
        for cached_version in self.cache.cached_versions():
            entry, model = (
                self._entries.get(cached_version.name),
                self.models.get(cached_version.name) or ModelState(cached_version.name),
            )
            if (
                entry is None
                or entry.error
                or entry.version is not None
                or withdrawn(entry.document)
                or model.served
                or self._jobs.busy(cached_version.name)
            ):
                continue
            self._put(model)
            recover = partial(self._loader.recover, self._client, model, cached_version)
            self._jobs.start(cached_version.name, QUICK, partial(_restored, cached_version.version, recover))

    def _restore(self) -> None:
        """Load the cached versions if the registry is unavailable at the start."""
        for cached_version in self.cache.cached_versions():
            if self.names and cached_version.name not in self.names or self._jobs.busy(cached_version.name):
                continue
            model = self.models.get(cached_version.name) or ModelState(cached_version.name)
            restore = partial(self._loader.restore, model, cached_version)
            self._jobs.start(cached_version.name, QUICK, partial(_restored, cached_version.version, restore))
