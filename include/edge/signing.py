"""Signatures of edge bundles: Ed25519 (RFC 8032). The private key is a setting; on one machine it is made at the first use."""

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
    """A file is not signed, or not with this key, or was changed since."""


def private_key(settings: Settings) -> Ed25519PrivateKey:
    """The key of this installation.

    Raises:
        SettingsError: outside embedded it must be given.
    """
    given = settings.edge_signing_key
    if given is not None:
        return _key(given.get_secret_value(), "AIRLOOP_EDGE_SIGNING_KEY")
    if settings.profile != "embedded":
        raise SettingsError(
            "AIRLOOP_EDGE_SIGNING_KEY is not set: an edge bundle is signed with it. Make it once and keep it: `airloop secrets` adds one to the settings file, "
            "or python3 -c 'import base64, secrets; print(base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())'"
        )
    file = settings.home / "edge" / "signing_key"
    if not file.exists():
        _write_private(file, urlsafe_b64encode(secrets.token_bytes(32)).decode())
    return _key(file.read_text(), str(file))


def public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def sign(key: Ed25519PrivateKey, archive: bytes) -> bytes:
    """A zip archive whose comment is 64 bytes long, with the signature of everything before it in their place."""
    body = archive[:-SIGNATURE]
    return body + key.sign(body)


def check(archive: bytes, public_key: bytes, *, name: str, key_name: str) -> None:
    """Whether an archive is what was signed.

    Args:
        public_key: PEM.
        name, key_name: what the archive and the key are called in errors.

    Raises:
        SignatureError: it is not, or that is no public key.
    """
    try:
        key = load_pem_public_key(public_key)
    except ValueError as error:
        raise SignatureError(f"{key_name} is no public key in PEM: {error}") from None
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
    except ValueError:  # also binascii's; its words could quote the key
        raise SettingsError(f"{where} is not 32 bytes in URL-safe base64") from None


def _write_private(file: Path, text: str) -> None:
    """Whole or not at all, for its owner's eyes; if another process was faster, its key stands."""
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
