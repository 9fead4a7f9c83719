"""API keys: permissions and rates of callers.

    python -m serving.keys create --name checkout --role predict --model flights
        --rate 200 keys.json
    python -m serving.keys list keys.json

``create`` prints the key once; the service stores only hashes.

A key file is JSON: ``{"keys": [{"name": "checkout", "sha256": "<hex of SHA-256 of the key>",
"roles": ["predict"], "rate": 200}]}``. Keys have 256 random bits. They cannot be guessed, so a
plain hash is sufficient.
"""

import argparse
import hashlib
import json
import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Role = Literal["predict", "feedback", "metrics", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)


class KeysError(ValueError):
    """Raised if the key file is not usable.

    The message names the file and the position, and does not contain any of the file's content.
    """


class Key(BaseModel):
    """One caller. The role ``admin`` includes all other roles."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    models: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="Models that the key may use. Default: all models."
    )
    rate: float | None = Field(
        None, gt=0, description="Maximum requests per second in the long run. Default: no limit."
    )
    burst: int | None = Field(None, ge=1, description="Maximum requests in one burst. Default: twice the rate.")
    rows: float | None = Field(
        None, gt=0, description="Maximum rows (instances or labels) per second in the long run. Default: no limit."
    )
    labels_of: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None,
        description="Callers. The key may send labels of their predictions. Default: all predictions of its models.",
    )
    corrects: bool = Field(False, description="The key may replace labels that were sent before.")
    expires: datetime | None = Field(None, description="Time when the key expires.")

    @model_validator(mode="after")
    def _expiry_has_a_zone(self) -> Self:
        if self.expires is not None and self.expires.tzinfo is None:
            raise ValueError("expires needs a time zone, as in 2027-01-01T00:00:00Z")
        return self

    @model_validator(mode="after")
    def _labels_need_the_role(self) -> Self:
        if (self.corrects or self.labels_of) and not {"feedback", "admin"} & set(self.roles):
            raise ValueError("corrects and labels_of are of keys with the role feedback")
        return self

    def may(self, role: Role | None) -> bool:
        """Return True if the key has the role. None means that any key is sufficient."""
        return role is None or role in self.roles or "admin" in self.roles


class Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    keys: tuple[Key, ...]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for part in ("name", "sha256"):
            values = [getattr(key, part) for key in self.keys]
            if twice := {key.name for key in self.keys if values.count(getattr(key, part)) > 1}:
                raise ValueError(f"{part} occurs twice: {', '.join(sorted(twice))}")
        return self


def digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def read(file: Path) -> Keys:
    """Return the keys of a file.

    Raises:
        KeysError: The file cannot be read, or its content is invalid.
    """
    try:
        return Keys.model_validate(json.loads(file.read_bytes()))
    except OSError as error:
        raise KeysError(f"{file}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise KeysError(f"{file}: {where + ': ' if where else ''}{first['msg']}") from None
    except (ValueError, RecursionError):  # The parser's message could quote the file.
        raise KeysError(f"{file} is not JSON") from None


def create(file: Path, name: str, roles: list[Role], **limits: Any) -> str:
    """Create a key, add its hash to the file, and return the key.

    A new file is readable only for its owner.

    Args:
        limits: Fields of ``Key``: models, rate, burst, rows, expires, labels_of, corrects.

    Raises:
        KeysError: The file is not usable, or already has a key of that name.
    """
    known = read(file).keys if file.exists() else ()
    if name in {key.name for key in known}:
        raise KeysError(f"{file} has a key '{name}' already: take another name, or remove that one from the file")
    key = f"airloop_{secrets.token_urlsafe(32)}"
    try:
        keys = Keys(keys=(*known, Key(name=name, sha256=digest(key.encode()), roles=tuple(roles), **limits)))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise KeysError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(keys.model_dump(mode="json", exclude_none=True), indent=1) + "\n")
    draft.replace(file)
    return key


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving.keys",
        description="Manage the API keys of the serving API. The file contains only hashes.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("create", help="create a key, add its hash to the file and print the key once")
    making.add_argument(
        "--name", required=True, help="name of the caller, shown in the prediction log, the access log and metrics"
    )
    making.add_argument("--role", required=True, action="append", choices=ROLES, help="role of the key; repeatable")
    making.add_argument("--model", action="append", help="model that the key may use; repeatable; default: all models")
    making.add_argument(
        "--rate",
        type=float,
        help="requests per second in the long run, for all workers of a service together; default: no limit",
    )
    making.add_argument("--burst", type=int, help="requests in one burst; default: twice the rate")
    making.add_argument(
        "--rows", type=float, help="rows (instances or labels) per second in the long run; default: no limit"
    )
    making.add_argument(
        "--labels-of",
        action="append",
        metavar="CALLER",
        help="with the role feedback: accept labels only for this caller's predictions; repeatable",
    )
    making.add_argument(
        "--corrects",
        action="store_true",
        help="with the role feedback: allow the key to replace labels that were sent before",
    )
    making.add_argument(
        "--expires", type=datetime.fromisoformat, help="time when the key expires, for example 2027-01-01T00:00:00Z"
    )
    listing = commands.add_parser("list", help="show names, roles and limits")
    for command in (making, listing):
        command.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "create":
            limits = {
                "rate": given.rate,
                "burst": given.burst,
                "rows": given.rows,
                "expires": given.expires,
                "corrects": given.corrects,
            }
            chosen = {
                "models": tuple(given.model) if given.model else None,
                "labels_of": tuple(given.labels_of) if given.labels_of else None,
            }
            print(create(given.file, given.name, given.role, **limits, **chosen))
            return 0
        for key in read(given.file).keys:
            until = f", until {key.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if key.expires else ""
            models = f" for {', '.join(key.models)}" if key.models else ""
            rows = f", {key.rows:g} rows a second" if key.rows else ""
            corrects = ", may correct labels" if key.corrects else ""
            print(
                f"{key.name}: {', '.join(key.roles)}{models};"
                f" {f'{key.rate:g} requests a second' if key.rate else 'no limit'}{rows}{corrects}{until}"
            )
    except KeysError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
