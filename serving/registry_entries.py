"""Entries of the model registry, read one by one: an invalid entry affects its own model only."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.rollout import CHAMPION, TAG
from serving.untrusted import line, printable
from serving.version_files import BundleError

NAME = re.compile(r"[a-z][a-z0-9_]{1,39}")  # as serving/contract.py has it: no bundle loads under another name
VERSION = re.compile(r"[0-9]{1,18}")
MOST_SOURCE = 4096
INSTALLATION = re.compile(r"[0-9a-f-]{1,36}")
HASHES = "bundle_sha256"  # tag of a version
OWNER = "airloop.installation"  # tag of a registered model


@dataclass(frozen=True)
class Wanted:
    """A version as the registry has it. ``source`` tells apart equal numbers of two registries."""

    version: str
    source: str
    hashes: str = ""  # tag of the version: JSON of SHA-256 by file; empty: training wrote none


@dataclass(frozen=True)
class Entry:
    """A registered model.

    Attributes:
        name: printable; None: it cannot be served under its name, or has none.
        version: that the alias ``champion`` names; None: the alias is not set.
        document: the rollout document, unread; None: not set.
        created: changes when the model was deleted and made again.
        error: why the entry cannot be read.
        owner: id of the installation that trains the model; None: not known.
    """

    name: str | None
    version: str | None = None
    document: object = None
    created: object = None
    error: str | None = None
    owner: str | None = None


def unreadable(name: object, error: str) -> Entry:
    named = isinstance(name, str) and NAME.fullmatch(name)
    return Entry(str(name) if named else None, error=error)


def entry_of(raw: Any) -> Entry:
    """Read an entry: an object of MLflow's REST API or of its own client, or an error in its place."""
    name: object = None
    try:
        if isinstance(raw, Exception):
            return unreadable(None, line(raw))
        name = _get(raw, "name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return unreadable(None, f"registered model {printable(repr(name), 80)}: the name matches no project's ({NAME.pattern})")
        version = _pairs(_get(raw, "aliases"), "alias", "version").get(CHAMPION)
        if version is not None and not VERSION.fullmatch(version := str(version)):
            return unreadable(name, f"the alias '{CHAMPION}' names the version {printable(repr(version), 80)}, which is no number")
        created = _get(raw, "creation_timestamp")
        tags = _pairs(_get(raw, "tags"), "key", "value")
        owner = tags.get(OWNER)
        known = owner if isinstance(owner, str) and INSTALLATION.fullmatch(owner) else None
        return Entry(name, version, tags.get(TAG), created if isinstance(created, int | str) else None, owner=known)
    except Exception as error:  # any type may be in any place
        return unreadable(name, f"the registry's entry cannot be read: {line(error)}")


def wanted_of(raw: Any, version: str) -> Wanted:
    """Read a version's entry.

    Raises:
        BundleError: it is not as it should be.
    """
    source = _get(raw, "source")
    if not isinstance(source, str) or not source.isprintable() or len(source) > MOST_SOURCE:
        raise BundleError("the registry's entry lacks a readable source")
    hashes = _pairs(_get(raw, "tags"), "key", "value").get(HASHES, "")
    if not isinstance(hashes, str):
        raise BundleError(f"the version's tag {HASHES} is no text")
    return Wanted(version, source, hashes)


def _get(raw: Any, field: str) -> Any:
    return raw.get(field) if isinstance(raw, Mapping) else getattr(raw, field, None)


def _pairs(raw: Any, key: str, value: str) -> dict[str, Any]:
    """Aliases or tags: a mapping, or the REST API's list of objects. What has other types is left out."""
    if isinstance(raw, Mapping):
        return {name: found for name, found in raw.items() if isinstance(name, str)}
    entries = raw if isinstance(raw, Iterable) and not isinstance(raw, str | bytes) else []
    return {entry[key]: entry.get(value, "") for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get(key), str)}
