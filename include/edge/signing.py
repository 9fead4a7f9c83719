"""Signatures of edge bundles: Ed25519 (RFC 8032).

The private key is a setting. On one machine it is generated at the first use.
"""

import os
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from include.settings import Settings, SettingsError

SIGNATURE = 64  # bytes


class SignatureError(ValueError):
    """Raised when a file is unsigned, signed with another key, or was changed after signing."""


def private_key(settings: Settings) -> Ed25519PrivateKey:
    """Return the signing key of this installation.

    Raises:
        SettingsError: the key is not set, and the profile is not embedded.
    """
    given = settings.edge_signing_key
    if given is not None:
        return _key(given.get_secret_value(), "AIRLOOP_EDGE_SIGNING_KEY")
    if settings.profile != "embedded":
        raise SettingsError(
            "AIRLOOP_EDGE_SIGNING_KEY is not set: an edge bundle is signed with it. Create it once and keep it:"
            " `airloop init-env` adds it to the file, or python3 -c 'import base64, secrets;"
            " print(base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())'"
        )
    file = settings.home / "edge" / "signing_key"
    if not file.exists():
        _write_private(file, urlsafe_b64encode(secrets.token_bytes(32)).decode())
    return _key(file.read_text(), str(file))


def public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def sign(key: Ed25519PrivateKey, archive: bytes) -> bytes:
    """Sign a zip archive whose comment is 64 bytes long.

    The signature of all preceding bytes replaces the comment.
    """
    body = archive[:-SIGNATURE]
    return body + key.sign(body)


def check(archive: bytes, public_key: bytes, *, name: str, key_name: str) -> None:
    """Verify that an archive is unchanged since it was signed.

    Args:
        public_key: PEM.
        name, key_name: names of the archive and the key in errors.

    Raises:
        SignatureError: the signature is invalid, or the key is not a public key.
    """
    try:
        key = load_pem_public_key(public_key)
    except ValueError as error:
        raise SignatureError(f"{key_name} is not a public key in PEM: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{key_name} is no Ed25519 key")
    if archive[-SIGNATURE - 2 : -SIGNATURE] != SIGNATURE.to_bytes(2, "little"):
        raise SignatureError(f"{name} is not signed")
    try:
        key.verify(archive[-SIGNATURE:], archive[:-SIGNATURE])
    except InvalidSignature:
        raise SignatureError(f"{name} is damaged, or not signed with the key of {key_name}") from None


def _key(text: str, where: str) -> Ed25519PrivateKey:
    try:
        return Ed25519PrivateKey.from_private_bytes(urlsafe_b64decode(text))
    # Includes binascii's error. Its message could quote the key.
    except ValueError:
        raise SettingsError(f"{where} is not 32 bytes in URL-safe base64") from None


def _write_private(file: Path, text: str) -> None:
    """Write a file atomically, readable by its owner only.

    If another process was faster, its key is kept.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text)
    try:
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
