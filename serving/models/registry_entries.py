"""Read entries of the model registry one by one.

An invalid entry affects only its own model.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.models.rollout import CHAMPION, TAG
from serving.models.untrusted import line, printable
from serving.models.version_files import BundleError

# The pattern of serving/models/contract.py: a bundle with another name cannot be loaded.
NAME = re.compile(r"[a-z][a-z0-9_]{1,39}")
VERSION = re.compile(r"[0-9]{1,18}")
MOST_SOURCE = 4096
INSTALLATION = re.compile(r"[0-9a-f-]{1,36}")
HASHES = "bundle_sha256"  # A tag of a version.
OWNER = "airloop.installation"  # A tag of a registered model.


@dataclass(frozen=True)
class RegisteredVersion:
    """A registered version. ``source`` distinguishes equal version numbers of two registries."""

    version: str
    source: str
    # The version's tag: JSON of SHA-256 by file. Empty if training did not write the tag.
    hashes: str = ""


@dataclass(frozen=True)
class RegistryEntry:
    """A registered model.

    Attributes:
        name: The printable name, or None if the name is missing or invalid for serving.
        version: The version that the alias ``champion`` points to, or None if the alias is not set.
        document: The unparsed rollout document, or None if it is not set.
        created: A value that changes when the model is deleted and created again.
        error: The reason why the entry is invalid, or None.
        owner: The id of the installation that trains the model, or None if it is unknown.
    """

    name: str | None
    version: str | None = None
    document: object = None
    created: object = None
    error: str | None = None
    owner: str | None = None


def unreadable(name: object, error: str) -> RegistryEntry:
    named = isinstance(name, str) and NAME.fullmatch(name)
    return RegistryEntry(str(name) if named else None, error=error)


def entry_of(raw: Any) -> RegistryEntry:
    """Read an entry: an object of MLflow's REST API or of its own client, or an error instead."""
    name: object = None
    try:
        if isinstance(raw, Exception):
            return unreadable(None, line(raw))
        name = _get(raw, "name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return unreadable(
                None, f"registered model {printable(repr(name), 80)}: the name matches no project's ({NAME.pattern})"
            )
        version = _pairs(_get(raw, "aliases"), "alias", "version").get(CHAMPION)
        if version is not None and not VERSION.fullmatch(version := str(version)):
            return unreadable(
                name, f"the alias '{CHAMPION}' names the version {printable(repr(version), 80)}, which is not a number"
            )
        created = _get(raw, "creation_timestamp")
        tags = _pairs(_get(raw, "tags"), "key", "value")
        owner = tags.get(OWNER)
        known = owner if isinstance(owner, str) and INSTALLATION.fullmatch(owner) else None
        return RegistryEntry(
            name, version, tags.get(TAG), created if isinstance(created, int | str) else None, owner=known
        )
    except Exception as error:  # Any field may have any type.
        return unreadable(name, f"the registry's entry cannot be read: {line(error)}")


def registered_version_of(raw: Any, version: str) -> RegisteredVersion:
    """Read a version's entry.

    Raises:
        BundleError: The entry is invalid.
    """
    source = _get(raw, "source")
    if not isinstance(source, str) or not source.isprintable() or len(source) > MOST_SOURCE:
        raise BundleError("the registry's entry lacks a readable source")
    hashes = _pairs(_get(raw, "tags"), "key", "value").get(HASHES, "")
    if not isinstance(hashes, str):
        raise BundleError(f"the version's tag {HASHES} is no text")
    return RegisteredVersion(version, source, hashes)


def _get(raw: Any, field: str) -> Any:
    return raw.get(field) if isinstance(raw, Mapping) else getattr(raw, field, None)


def _pairs(raw: Any, key: str, value: str) -> dict[str, Any]:
    """Return aliases or tags from a mapping or from the REST API's list of objects.

    Values of other types are ignored.
    """
    if isinstance(raw, Mapping):
        return {name: content for name, content in raw.items() if isinstance(name, str)}
    entries = raw if isinstance(raw, Iterable) and not isinstance(raw, str | bytes) else []
    return {
        entry[key]: entry.get(value, "")
        for entry in entries
        if isinstance(entry, Mapping) and isinstance(entry.get(key), str)
    }
