"""Create the settings file of a profile with generated secrets: `airloop init-env`.

The example file marks the places: each ``CHANGE_ME`` in a value stands for a new secret, and
``CHANGE_ME_<VARIABLE>`` for that of another variable. Existing values are never changed. Therefore
the command can be run again after an upgrade that needs another secret.
"""

import os
import re
import secrets
from base64 import urlsafe_b64encode
from pathlib import Path

from include.settings import PLACEHOLDER, REPOSITORY

PLACEHOLDER_PATTERN = re.compile(PLACEHOLDER + r"(?:_([A-Z0-9_]+))?")
LINE = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")


class SecretsError(ValueError):
    """Raised when the file cannot be created. The message says why."""


def example(profile: str) -> Path:
    return REPOSITORY / f".env.{profile}.example"


def make_secrets(profile: str, file: Path) -> list[str]:
    """Write the profile's settings file or add missing values, readable only by its owner.

    Returns:
        Names of the variables that got a secret. Empty if none was missing.

    Raises:
        SecretsError: The file belongs to another profile.
    """
    template = example(profile).read_text()
    text = file.read_text() if file.exists() else template
    known = values(text)
    if known.get("AIRLOOP_PROFILE", profile) != profile:
        raise SecretsError(
            f"{file} is of the profile {known['AIRLOOP_PROFILE']}, not {profile}: name another one with --file"
        )
    wanted = {name: value for name, value in values(template).items() if PLACEHOLDER_PATTERN.search(value)}
    if lacking := [name for name in wanted if not known.get(name)]:
        text = "".join(
            line for line in text.splitlines(keepends=True) if not re.match(rf"(?:{'|'.join(lacking)})=\s*$", line)
        )
        text = text.rstrip("\n") + "\n" + "".join(f"{name}={wanted[name]}\n" for name in lacking)
    made: dict[str, str] = {}
    all_of_it = values(text)
    for name, value in all_of_it.items():
        if PLACEHOLDER_PATTERN.search(value):
            _fill(name, all_of_it, made)
    text = re.sub(
        rf"^{LINE.pattern}$", lambda line: f"{line[1]}={made.get(line[1], line[2])}", text, flags=re.MULTILINE
    )
    _write(file, text)
    return list(made)


def values(text: str) -> dict[str, str]:
    """Return variable -> value for the lines of a settings file."""
    return {match[1]: match[2] for line in text.splitlines() if (match := LINE.fullmatch(line.strip()))}


def _fill(name: str, known: dict[str, str], made: dict[str, str]) -> str:
    """Return the variable's value with generated secrets.

    If it contains another variable's secret, that one is generated first.
    """
    if name not in made and PLACEHOLDER_PATTERN.search(known.get(name, "")):
        made[name] = PLACEHOLDER_PATTERN.sub(
            lambda place: _fill(place[1], known, made) if place[1] else _secret(name), known[name]
        )
    return made.get(name) or known[name]


def _secret(name: str) -> str:
    """Return 192 random bits in characters without a special meaning in URLs, shells and Compose.

    Fernet and signing keys get 256 bits.
    """
    if name.endswith(("FERNET_KEY", "EDGE_SIGNING_KEY")):
        return urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(24)


def _write(file: Path, text: str) -> None:
    """Write the file atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        draft.touch(mode=0o600)
        draft.write_text(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
