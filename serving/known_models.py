"""What is known of registered models: where their aliases point, and what became of it."""

from dataclasses import dataclass
from typing import Literal

from serving.served import Served

State = Literal["loading", "ready", "refused", "error"]


@dataclass(frozen=True)
class Wanted:
    """Where the alias points. ``source`` tells apart equal numbers of two registries."""

    version: str
    source: str
    hashes: str = ""  # tag of the version: JSON of SHA-256 by file; empty: training wrote none


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
    hashed: bool = False  # the answering version's files were held to their hashes
    tries: int = 0
    next_try: float = 0.0
