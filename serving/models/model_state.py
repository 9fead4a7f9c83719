"""The state of registered models: the targets of their aliases and the results of loading."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from serving.models.loaded_model import LoadedModel, Route
from serving.models.registry_entries import RegisteredVersion
from serving.models.rollout import NO_TRAFFIC, Arm, Breaker, Traffic
from serving.problems import ProblemError, unavailable

__all__ = ["ModelCatalog", "ModelState", "RegisteredVersion", "State"]
State = Literal["loading", "ready", "refused", "error", "lost"]


@dataclass(frozen=True)
class ModelState:
    """The state of one registered model, or of one arm.

    ``state`` is one of:

    * ``loading``: no version answers yet.
    * ``ready``: the wanted version answers.
    * ``refused``: the wanted version failed its checks. The previous version answers, if there is
      one.
    * ``error``: the wanted version cannot be downloaded or tested. The service tries again.
    * ``lost``: the champion alias does not exist any more. The last champion keeps answering.

    Attributes:
        wanted: The target of the alias.
        hashed: The answering version's files were compared with their hashes.
        verified: The files were compared with the registry since it was last unavailable.
        restored: The answering version came from the cache and has not been compared with the
            registry yet.
        trying: The version number that ``tries``, ``next_try`` and ``error`` refer to.
        tried: Loading some version has ended, successfully or not.
        slow: The last try reached a deadline, so the next one must not delay other models.
    """

    name: str
    state: State = "loading"
    served: LoadedModel | None = None
    error: str | None = None
    wanted: RegisteredVersion | None = None
    hashed: bool = False
    verified: bool = False
    restored: bool = False
    trying: str | None = None
    tries: int = 0
    next_try: float = 0.0
    tried: bool = False
    slow: bool = False


class ModelCatalog:
    """The models of a service as the request handlers see them.

    ``ModelRegistry`` updates this object from one thread. It replaces attributes and never changes
    their values in place.

    Attributes:
        routes: The route of each model that answers.
        polled_at: The time of the registry's last answer.
        error: The reason why the registry is unavailable.
    """

    def __init__(self, names: tuple[str, ...], stale_seconds: float) -> None:
        self.stale_seconds = stale_seconds
        self.models: dict[str, ModelState] = {name: ModelState(name) for name in names}
        self.routes: dict[str, Route] = {}
        self.polled_at: datetime | None = None
        self.error: str | None = None
        self._last_polled = time.monotonic()  # Initially the time of creation.
        # Model -> the installation that trains it.
        self._owners: dict[str, str | None] = {}
        # Arms and shadows, by model and name.
        self._members: dict[tuple[str, str], ModelState] = {}
        self._breakers: dict[tuple[str, Arm], Breaker] = {}
        # Model -> its parsed rollout document.
        self._traffic: dict[str, tuple[object, Traffic, str | None]] = {}

    @property
    def age(self) -> float:
        """Return the seconds since the last successful poll, or since the start."""
        return time.monotonic() - self._last_polled

    @property
    def stale(self) -> bool:
        """Return True if the last successful poll is too old.

        The champions may have changed since then.
        """
        return self.age > self.stale_seconds

    @property
    def up(self) -> bool:
        return self.polled_at is not None and self.error is None and not self.stale

    def route(self, name: str) -> Route:
        """Return the current route of the model ``name``.

        Raises:
            ProblemError: 404 if the model does not exist. 503 if no version answers yet.
        """
        route = self.routes.get(name)
        if route is None:
            model = self.model(name)
            raise unavailable(
                "model-not-loaded", "The model is not loaded", model.error or f"model '{name}' is being loaded"
            )
        return route

    def serving(self, name: str) -> LoadedModel:
        """Return the current champion of the model ``name``. Raises errors as ``route`` does."""
        return self.route(name).champion

    def model(self, name: str) -> ModelState:
        """Return the state of a model.

        Raises:
            ProblemError: 404 if the model does not exist. 503 if the registry has not been polled
                yet.
        """
        model = self.models.get(name)
        if model is not None:
            return model
        if self.polled_at is None:
            raise unavailable(
                "registry-not-asked",
                "The model registry has not answered yet",
                self.error or "it is being asked which models there are",
            )
        raise ProblemError(
            404,
            "unknown-model",
            "Unknown model",
            f"no registered model '{name}' is served here; GET /models lists those that are",
            field="name",
        )

    def document(self, name: str) -> dict[str, Any]:
        """Return the model's status document.

        It includes registry errors, because the champion may then be outdated.
        """
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
        """Return the rollout document's arms and shadows, including those that do not answer."""
        traffic = self._traffic_of(name)[0]
        documents = []
        for entry in traffic.entries:
            member = self._members.get((name, entry.name))
            breaker = self._breakers.get((name, entry)) if isinstance(entry, Arm) else None
            stopped = breaker.stopped if breaker else None
            state = "stopped" if stopped else member.state if member else "loading"
            share = {"weight": entry.weight} if isinstance(entry, Arm) else {"share": entry.share}
            documents.append(
                {
                    "name": entry.name,
                    "version": entry.version,
                    "state": state,
                    "error": stopped or (member.error if member else None),
                    **share,
                }
            )
        return documents

    def rollout_errors(self) -> dict[str, str | None]:
        """Return per model the reason why its rollout document is not followed, or None."""
        return {name: self._traffic_of(name)[1] for name in tuple(self.models)}

    def _traffic_of(self, name: str) -> tuple[Traffic, str | None]:
        _, traffic, error = self._traffic.get(name, (None, NO_TRAFFIC, None))
        return traffic, error
