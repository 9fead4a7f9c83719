"""Read the rollout document, which assigns entities to versions of a model.

The document is a tag of the registered model that ``deploy`` writes. Serving uses only ``traffic``
and ``state`` with ``previous`` (see ``withdrawn``). All other members belong to the writer::

    {"traffic": {"salt": "2026-01-01",
                 "arms": [{"name": "canary", "version": "8", "weight": 0.05,
                           "max_failures": 5, "max_seconds": 0.5}],
                 "shadows": [{"name": "next", "version": "9", "share": 0.5}]}}

An arm answers a fixed share of the entities. The champion answers all others. A shadow gets the
same requests, and its answers are logged and not returned.

The tag is untrusted input. ``traffic_of`` parses it within limits and reports its errors.
"""

from collections import deque
from hashlib import blake2b
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.encoding import dumps
from serving.models.untrusted import DocumentError, parse_object, printable

TAG = "rollout"
CHAMPION = "champion"
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Version = Annotated[str, Field(pattern=r"^[0-9]{1,18}$")]
# Maximum number of arms, and of shadows. Each one is a version in memory.
MOST_ENTRIES = 10
# Number of an arm's last requests whose failures are counted.
WINDOW = 100


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
    """The assignment of entities to arms."""

    model_config = ConfigDict(frozen=True)

    salt: str = Field("", max_length=64, description="Another salt, another choice of entities; at most 64 bytes.")
    arms: tuple[Arm, ...] = Field((), max_length=MOST_ENTRIES)
    shadows: tuple[Shadow, ...] = Field((), max_length=MOST_ENTRIES)

    @property
    def entries(self) -> "tuple[Arm | Shadow, ...]":
        return (*self.arms, *self.shadows)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if len(self.salt.encode(errors="surrogatepass")) > 64:
            raise ValueError("the salt has more than 64 bytes")
        names = [entry.name for entry in self.entries]
        if CHAMPION in names or len(set(names)) < len(names):
            raise ValueError(f"arms and shadows need different names, none of them '{CHAMPION}': {', '.join(names)}")
        if sum(arm.weight for arm in self.arms) > 1 + 1e-9:
            raise ValueError(f"the arms' weights add up to {sum(arm.weight for arm in self.arms):g}, more than 1")
        return self


NO_TRAFFIC = Traffic()


def traffic_of(tag: object) -> tuple[Traffic, str | None]:
    """Parse a rollout document with arbitrary content.

    Returns:
        The traffic and None. For an invalid document, ``NO_TRAFFIC`` (the champion answers all
            requests) and the error on one printable line.
    """
    if tag is None or tag == "":
        return NO_TRAFFIC, None
    if not isinstance(tag, str):
        return NO_TRAFFIC, f"rollout document: must be text, is {type(tag).__name__}"
    try:
        document = parse_object(tag, "rollout document")
        traffic = document.get("traffic")
        return (NO_TRAFFIC if traffic is None else Traffic.model_validate(traffic)), None
    except DocumentError as error:
        return NO_TRAFFIC, str(error)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(("traffic", *(str(part) for part in first["loc"])))
        return NO_TRAFFIC, printable(f"rollout document: {where}: {first['msg']}")


def withdrawn(tag: object) -> bool:
    """Return True if the champion was rolled back and no previous one exists.

    Then the missing champion is intended, and it does not count as lost.
    """
    try:
        document = parse_object(tag, "rollout document") if isinstance(tag, str) else {}
    except DocumentError:
        return False
    return document.get("state") in ("rolling_back", "rolled_back") and not document.get("previous")


def place(salt: str, entity: object) -> float:
    """Map an entity to a uniformly distributed number in [0, 1).

    The number is the same in every process and different for another salt.
    """
    key = salt.encode(errors="surrogatepass")[:64]
    return int.from_bytes(blake2b(dumps(entity), digest_size=8, key=key).digest(), "big") / 2**64


class Breaker:
    """Stop an arm that fails too often.

    ``stopped`` contains the reason. The arm stays out until its entry in the rollout document
    changes.
    """

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.stopped: str | None = None
        self._failed: deque[bool] = deque(maxlen=WINDOW)

    def note(self, failure: str | None) -> None:
        """Record a request of the arm. None means that it succeeded."""
        self._failed.append(failure is not None)
        if failure is not None and self.stopped is None and sum(self._failed) >= self.arm.max_failures:
            self.stopped = (
                f"{sum(self._failed)} of its last {len(self._failed)} requests failed; the last one: {failure}"
            )
