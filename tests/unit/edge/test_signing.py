"""Signatures of edge bundles: the client's plain Python agrees with the library.

No changed byte passes.
"""

import importlib.util
import stat
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

import include.edge
from include.edge import signing
from include.settings import Settings, SettingsError

FILE = Path(include.edge.__file__).parent / "client" / "ed25519.py"


def plain_python():
    spec = importlib.util.spec_from_file_location("client_ed25519", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ED25519 = plain_python()
# RFC 8032, section 7.1: public key, message, signature
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
]  # fmt: skip


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS)
def test_the_standards_own_vectors(key, message, signature):
    assert ED25519.verify(bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(signature))
    assert not ED25519.verify(bytes.fromhex(key), bytes.fromhex(message) + b"!", bytes.fromhex(signature))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.binary(min_size=32, max_size=32),
    message=st.binary(max_size=300),
    place=st.integers(0, 95),
    bit=st.integers(0, 7),
)
def test_plain_python_says_what_the_library_says(seed, message, place, bit):
    key = Ed25519PrivateKey.from_private_bytes(seed)
    whole = bytearray(raw(key) + key.sign(message))
    assert ED25519.verify(bytes(whole[:32]), message, bytes(whole[32:]))
    whole[place] ^= 1 << bit
    assert not ED25519.verify(bytes(whole[:32]), message, bytes(whole[32:]))


def test_a_signature_with_another_number_of_the_same_value_is_refused():
    """A signature with another number of the same value is refused.

    S and S + L are equal in the equation. The standard accepts only the smaller one. Otherwise a
    changed file would pass.
    """
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    signature = key.sign(b"x")
    greater = (int.from_bytes(signature[32:], "little") + ED25519.L).to_bytes(32, "little")
    assert not ED25519.verify(raw(key), b"x", signature[:32] + greater)


@pytest.mark.parametrize(
    "wrong",
    [b"", bytes(31), b"\xff" * 32, (2).to_bytes(32, "little"), bytes(33)],
    ids=["none", "short", "beyond", "no point", "long"],
)
def test_what_is_no_key_verifies_nothing(wrong):
    assert not ED25519.verify(wrong, b"", bytes(64))


def test_no_changed_byte_passes_and_each_fault_has_its_words():
    key = Ed25519PrivateKey.generate()
    pem, unsigned = signing.public_pem(key), b"archive" * 5 + b"\x40\x00" + bytes(64)
    signed = signing.sign(key, unsigned)

    def fault(archive: bytes, public: bytes = pem) -> str:
        with pytest.raises(signing.SignatureError) as error:
            signing.check(archive, public, name="b.zip", key_name="k.pem")
        return str(error.value)

    signing.check(signed, pem, name="b.zip", key_name="k.pem")
    for place in range(len(signed)):
        fault(signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :])
    assert fault(signed[:-1]) == fault(b"") == "b.zip is not signed"
    assert fault(b"A" + signed[1:]) == fault(unsigned) == "b.zip is damaged, or not signed with the key of k.pem"
    assert "damaged, or not signed" in fault(signed, signing.public_pem(Ed25519PrivateKey.generate()))
    assert "k.pem is not a public key in PEM" in fault(signed, b"-----BEGIN")
    other = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert fault(signed, other) == "k.pem is no Ed25519 key"


def test_the_key_is_a_setting_and_on_one_machine_made_at_the_first_use(tmp_path):
    settings = Settings(home=tmp_path)
    first = signing.private_key(settings)
    assert raw(signing.private_key(settings)) == raw(first)  # and stored
    assert stat.S_IMODE((tmp_path / "edge" / "signing_key").stat().st_mode) == 0o600
    given = Settings(home=tmp_path / "other", edge_signing_key=SecretStr(urlsafe_b64encode(bytes(range(32))).decode()))
    assert raw(signing.private_key(given)) == raw(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    assert not (tmp_path / "other").exists()


def test_without_a_key_outside_embedded_nothing_is_signed_and_the_setting_named(tmp_path):
    stranger = Settings(home=tmp_path).model_copy(update={"profile": "compose"})
    with pytest.raises(SettingsError, match="AIRLOOP_EDGE_SIGNING_KEY is not set"):
        signing.private_key(stranger)
    with pytest.raises(SettingsError) as error:
        signing.private_key(Settings(home=tmp_path, edge_signing_key=SecretStr("c2hvcnQ=")))
    assert str(error.value) == "AIRLOOP_EDGE_SIGNING_KEY is not 32 bytes in URL-safe base64"
    assert list(tmp_path.iterdir()) == []
