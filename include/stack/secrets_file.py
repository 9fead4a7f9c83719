"""The settings file of a profile with real secrets in place of its placeholders: `airloop secrets`.

The example file says where secrets go: each ``CHANGE_ME`` in a value is one of its own, ``CHANGE_ME_<VARIABLE>`` is that of another variable. What has
a value is never touched, so that it may be run again, after an upgrade that needs one more.
"""

import os
import re
import secrets
from base64 import urlsafe_b64encode
from pathlib import Path

from include.settings import PLACEHOLDER, REPOSITORY

PLACE = re.compile(PLACEHOLDER + r"(?:_([A-Z0-9_]+))?")
LINE = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")


class SecretsError(ValueError):
    """The file cannot be made; the message says why."""


def example(profile: str) -> Path:
    return REPOSITORY / f".env.{profile}.example"


def make_secrets(profile: str, file: Path) -> list[str]:
    """Write the profile's settings file, or into it what it lacks; for its owner's eyes only.

    Returns:
        names of the variables that got a secret; none if all had theirs.

    Raises:
        SecretsError: the file is of another profile.
    """
    template = example(profile).read_text()
    text = file.read_text() if file.exists() else template
    known = values(text)
    if known.get("AIRLOOP_PROFILE", profile) != profile:
        raise SecretsError(f"{file} is of the profile {known['AIRLOOP_PROFILE']}, not {profile}: name another one with --file")
    wanted = {name: value for name, value in values(template).items() if PLACE.search(value)}
    if lacking := [name for name in wanted if not known.get(name)]:
        text = "".join(line for line in text.splitlines(keepends=True) if not re.match(rf"(?:{'|'.join(lacking)})=\s*$", line))
        text = text.rstrip("\n") + "\n" + "".join(f"{name}={wanted[name]}\n" for name in lacking)
    made: dict[str, str] = {}
    all_of_it = values(text)
    for name, value in all_of_it.items():
        if PLACE.search(value):
            _fill(name, all_of_it, made)
    text = re.sub(rf"^{LINE.pattern}$", lambda line: f"{line[1]}={made.get(line[1], line[2])}", text, flags=re.MULTILINE)
    _write(file, text)
    return list(made)


def values(text: str) -> dict[str, str]:
    """Variable -> value of a settings file's lines."""
    return {match[1]: match[2] for line in text.splitlines() if (match := LINE.fullmatch(line.strip()))}


def _fill(name: str, known: dict[str, str], made: dict[str, str]) -> str:
    """The variable's value with secrets in it; another variable's is made first."""
    if name not in made and PLACE.search(known.get(name, "")):
        made[name] = PLACE.sub(lambda place: _fill(place[1], known, made) if place[1] else _secret(name), known[name])
    return made.get(name) or known[name]


def _secret(name: str) -> str:
    """192 random bits, in letters that no URL, shell, command line or Compose file reads as anything else."""
    if name.endswith(("FERNET_KEY", "EDGE_SIGNING_KEY")):
        return urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(24)


def _write(file: Path, text: str) -> None:
    """At once or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        draft.touch(mode=0o600)
        draft.write_text(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
