"""What is known of registered models: where their aliases point, and what became of it."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from serving.problems import Problem, unavailable
from serving.registry_entries import Wanted
from serving.rollout import NO_TRAFFIC, Arm, Breaker, Traffic
from serving.served import Route, Served

__all__ = ["KnownModels", "Model", "State", "Wanted"]
State = Literal["loading", "ready", "refused", "error", "lost"]


@dataclass(frozen=True)
class Model:
    """What is known of one registered model, or of one arm.

    ``state``: ``loading`` (nothing answers yet), ``ready`` (the wanted version answers), ``refused`` (the wanted version is not fit to answer: another
    one, or none, does), ``error`` (it cannot be downloaded or tested; it is tried again), ``lost`` (no version is champion any more: the last one answers).

    Attributes:
        wanted: what the alias points at.
        hashed: the answering version's files were compared with their hashes.
        verified: they were compared with the registry's since it was last away.
        restored: the answering version came from the cache, and was not compared with the registry yet.
        trying: the version number that ``tries``, ``next_try`` and ``error`` are about.
        tried: loading some version has ended, well or not.
        slow: the last try ran into a deadline, so the next one must not delay other models.
    """

    name: str
    state: State = "loading"
    served: Served | None = None
    error: str | None = None
    wanted: Wanted | None = None
    hashed: bool = False
    verified: bool = False
    restored: bool = False
    trying: str | None = None
    tries: int = 0
    next_try: float = 0.0
    tried: bool = False
    slow: bool = False


class KnownModels:
    """The models of a service, for those that answer requests. ``ModelRegistry`` fills it, from one thread; every attribute is replaced, never changed.

    Attributes:
        routes: who answers, by model.
        polled_at: when the registry last answered.
        error: why it does not answer now.
    """

    def __init__(self, names: tuple[str, ...], stale_seconds: float) -> None:
        self.stale_seconds = stale_seconds
        self.models: dict[str, Model] = {name: Model(name) for name in names}
        self.routes: dict[str, Route] = {}
        self.polled_at: datetime | None = None
        self.error: str | None = None
        self._last_polled = time.monotonic()  # or when this was made
        self._owners: dict[str, str | None] = {}  # model -> the installation that trains it
        self._members: dict[tuple[str, str], Model] = {}  # arms and shadows, by model and name
        self._breakers: dict[tuple[str, Arm], Breaker] = {}
        self._traffic: dict[str, tuple[object, Traffic, str | None]] = {}  # model -> its rollout document, read

    @property
    def age(self) -> float:
        """Seconds since the last successful poll, or since the start."""
        return time.monotonic() - self._last_polled

    @property
    def stale(self) -> bool:
        """Whether the last successful poll is too old: the registry may name other champions now."""
        return self.age > self.stale_seconds

    @property
    def up(self) -> bool:
        return self.polled_at is not None and self.error is None and not self.stale

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
        """What the service reports of a model; an unreachable registry too, since the champion may have changed."""
        model = self.model(name)
        served, away = model.served, f"the registry does not answer: {self.error}" if self.error else None
        if away is None and self.stale:
            away = f"the registry was last read {self.age:.0f} s ago"
        return {
            "name": model.name,
            "version": served.version if served else None,
            "loaded_at": served.loaded_at.isoformat() if served else None,
            "state": model.state,
            "error": model.error or away,
            "hash_checked": bool(served and model.hashed),
            "arms": self._arms(name),
            "rollout_error": self._traffic_of(name)[1],
            "installation": self._owners.get(name),
        }

    def _arms(self, name: str) -> list[dict[str, Any]]:
        """The arms and shadows that the rollout document names, whether they answer or not."""
        traffic = self._traffic_of(name)[0]
        told = []
        for entry in traffic.entries:
            member = self._members.get((name, entry.name))
            breaker = self._breakers.get((name, entry)) if isinstance(entry, Arm) else None
            stopped = breaker.stopped if breaker else None
            state = "stopped" if stopped else member.state if member else "loading"
            share = {"weight": entry.weight} if isinstance(entry, Arm) else {"share": entry.share}
            told.append({"name": entry.name, "version": entry.version, "state": state, "error": stopped or (member.error if member else None), **share})
        return told

    def rollout_errors(self) -> dict[str, str | None]:
        """Model -> why its rollout document is not followed."""
        return {name: self._traffic_of(name)[1] for name in tuple(self.models)}

    def _traffic_of(self, name: str) -> tuple[Traffic, str | None]:
        _, traffic, error = self._traffic.get(name, (None, NO_TRAFFIC, None))
        return traffic, error
