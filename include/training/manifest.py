"""Result manifests: small JSON files that describe the result of a training step."""

import hashlib
import json
from typing import Any

from upath import UPath

from include.data import storage


def write(uri: str | UPath, content: dict[str, Any]) -> None:
    """Write a manifest atomically."""
    storage.write(storage.path(uri), json.dumps(content, indent=1, sort_keys=True, allow_nan=True))


def read(uri: str | UPath) -> dict[str, Any]:
    """Return the manifest.

    Raises:
        FileNotFoundError: there is none.
    """
    made: dict[str, Any] = json.loads(storage.path(uri).read_text())
    return made


def finished(uri: str | UPath, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of an earlier try from the same inputs, or None."""
    try:
        manifest = read(uri)
    except FileNotFoundError:
        return None
    return manifest if manifest.get("made_from") == fingerprint(made_from) else None


def fingerprint(made_from: dict[str, Any]) -> str:
    """Return a short hash of a step's inputs. The manifest contains it as ``made_from``."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]
