"""Which version answers whom: the rollout document, a tag of the registered model that ``deploy`` writes.

Serving reads of it only ``traffic``; everything else is the writer's own::

    {"traffic": {"salt": "2026-01-01", "arms": [{"name": "canary", "version": "8", "weight": 0.05, "max_failures": 5, "max_seconds": 0.5}],
                 "shadows": [{"name": "next", "version": "9", "share": 0.5}]}}

An arm answers a fixed share of the entities; whom no arm answers, the champion does. A shadow answers nobody: it is asked beside, and logged.
"""

import json
from collections import deque
from hashlib import blake2b
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.encoding import dumps

TAG = "rollout"
CHAMPION = "champion"
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Version = Annotated[str, Field(pattern=r"^[0-9]+$")]
WINDOW = 100  # an arm's last requests, of which its failures are counted


class Arm(BaseModel):
    """A canary, or one arm of an A/B test."""

    model_config = ConfigDict(frozen=True)

    name: Name
    version: Version
    weight: float = Field(ge=0, le=1, description="Share of the entities that it answers.")
    max_failures: int = Field(5, ge=1, description="So many failures among its last 100 requests take it out.")
    max_seconds: float = Field(1.0, gt=0, le=60, description="An answer that takes longer is a failure.")


class Shadow(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: Name
    version: Version
    share: float = Field(1.0, ge=0, le=1, description="Share of the requests that it is asked too.")


class Traffic(BaseModel):
    """Who answers whom."""

    model_config = ConfigDict(frozen=True)

    salt: str = Field("", description="Another salt, another choice of entities.")
    arms: tuple[Arm, ...] = ()
    shadows: tuple[Shadow, ...] = ()

    @property
    def entries(self) -> "tuple[Arm | Shadow, ...]":
        return (*self.arms, *self.shadows)

    @model_validator(mode="after")
    def _adds_up(self):
        names = [entry.name for entry in self.entries]
        if CHAMPION in names or len(set(names)) < len(names):
            raise ValueError(f"arms and shadows need names of their own, none of them '{CHAMPION}': {', '.join(names)}")
        if sum(arm.weight for arm in self.arms) > 1 + 1e-9:
            raise ValueError(f"the arms' weights add up to {sum(arm.weight for arm in self.arms):g}, more than 1")
        return self


NO_TRAFFIC = Traffic()


def traffic_of(tag: str | None) -> tuple[Traffic, str | None]:
    """What a rollout document says, and what is wrong with it (then the champion answers everybody)."""
    if not tag:
        return NO_TRAFFIC, None
    try:
        return Traffic.model_validate(json.loads(tag).get("traffic") or {}), None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(("traffic", *(str(part) for part in first["loc"])))
        return NO_TRAFFIC, f"rollout document: {where}: {first['msg']}"
    except (ValueError, AttributeError):
        return NO_TRAFFIC, "rollout document: no JSON object"


def place(salt: str, entity: object) -> float:
    """A number in [0, 1) for an entity: the same in every process, evenly spread, and another for another salt."""
    return int.from_bytes(blake2b(dumps(entity), digest_size=8, key=salt.encode()[:64]).digest(), "big") / 2**64


class Breaker:
    """Takes an arm out that fails too often. ``stopped`` says why; it stays out until the rollout document says something else about it."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.stopped: str | None = None
        self._failed: deque[bool] = deque(maxlen=WINDOW)

    def note(self, failure: str | None) -> None:
        """Count a request of the arm; None: it was well answered."""
        self._failed.append(failure is not None)
        if failure is not None and self.stopped is None and sum(self._failed) >= self.arm.max_failures:
            self.stopped = f"{sum(self._failed)} of its last {len(self._failed)} requests failed; the last one: {failure}"
