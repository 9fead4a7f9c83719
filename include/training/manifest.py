"""Result manifests: small JSON files by which a training step says what it made. Written whole or not at all."""

import hashlib
import json
from typing import Any

from upath import UPath

from include.data import storage


def write(uri: str | UPath, content: dict[str, Any]) -> None:
    """Write a manifest; no reader ever sees half of one."""
    storage.write(storage.path(uri), json.dumps(content, indent=1, sort_keys=True, allow_nan=True))


def read(uri: str | UPath) -> dict[str, Any]:
    """The manifest.

    Raises:
        FileNotFoundError: there is none.
    """
    return json.loads(storage.path(uri).read_text())


def finished(uri: str | UPath, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an earlier try, if there is one and it was made from the same inputs."""
    try:
        found = read(uri)
    except FileNotFoundError:
        return None
    return found if found.get("made_from") == fingerprint(made_from) else None


def fingerprint(made_from: dict[str, Any]) -> str:
    """A short hash of a step's inputs; goes into its manifest as ``made_from``."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]
