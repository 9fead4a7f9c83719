"""``airloop export``: a model version as one signed file, for devices that cannot call an API.

It is a zip archive: ``model.onnx``, ``contract.json`` (the schema), ``golden.json``,
``manifest.json`` (its identity and origin), and the client that predicts from it with onnxruntime
alone. Its comment is an Ed25519 signature of every byte before. The same version and key give the
same bytes.
"""

import io
import json
import os
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from include.edge import signing
from include.projects.base import Project
from include.registry import versions
from include.settings import get_settings
from include.training.bundle import Bundle

CLIENT = ("client.py", "ed25519.py")
FORMAT = 1
# Tags of the version that are included.
LINEAGE = ("cutoff", "fitted_until", "candidate", "git_sha", "gate", "table_versions")


class ExportError(ValueError):
    """Raised when there is nothing to export, or the files differ from the registered ones.

    The message has the reason.
    """


class Exported(NamedTuple):
    bundle: Path
    public_key: Path
    version: str


def export(project: Project, version: str | None = None, folder: Path | None = None) -> Exported:
    """Write ``<project>-<version>.edge.zip``, and next to it the public key to verify it.

    Args:
        version: version of the registered model. Default: the champion.
        folder: the target. Default: the current folder.

    Raises:
        ExportError: there is no champion or no such version, or its files differ from those that
            training wrote.
        SettingsError: there is no key to sign with.
    """
    number = version or versions.aliases(project).get(versions.CHAMPION)
    if number is None:
        raise ExportError(
            f"project {project.name} has no champion to export: train one (airloop retrain {project.name}), or name a"
            " version"
        )
    model_version = versions.find_version(project, number)
    if model_version is None:
        raise ExportError(f"project {project.name} has no version {number}")
    model = Bundle.load(versions.bundle(project, number))
    hashes = json.loads(model_version.tags.get("bundle_sha256") or "{}")
    if other := [name for name, value in model.hashes().items() if hashes and hashes.get(name) != value]:
        raise ExportError(
            f"version {number} of {project.name}: {', '.join(other)} is not the file that was registered (its SHA-256"
            " is another one)"
        )
    model.check_golden()
    key = signing.private_key(get_settings())
    target = folder or Path()
    target.mkdir(parents=True, exist_ok=True)
    bundle, public = target / f"{project.name}-{number}.edge.zip", target / "airloop-edge.pem"
    lineage = {name: model_version.tags[name] for name in LINEAGE if name in model_version.tags}
    _write(bundle, signing.sign(key, archive(model, {"project": project.name, "version": number, **lineage})))
    _write(public, signing.public_pem(key))
    return Exported(bundle, public, number)


def archive(model: Bundle, about: dict[str, Any]) -> bytes:
    """Return the unsigned archive, with space for a signature.

    It does not depend on when or where it was made.
    """
    here = Path(__file__).parent / "client"
    files = {
        "model.onnx": model.graph,
        "contract.json": json.dumps(model.contract, indent=1).encode(),
        "golden.json": json.dumps(model.golden, indent=1).encode(),
        **{name: (here / name).read_bytes() for name in CLIENT},
    }
    manifest = {
        "format": FORMAT,
        **about,
        "sha256": {name: sha256(content).hexdigest() for name, content in files.items()},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in {
            "manifest.json": json.dumps(manifest, indent=1, sort_keys=True).encode(),
            **files,
        }.items():
            entry = zipfile.ZipInfo(name)  # dated 1980, readable by all users
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(entry, content)
        made.comment = bytes(signing.SIGNATURE)
    return buffer.getvalue()


def verify(bundle: Path, public_key: Path) -> dict[str, Any]:
    """Return the manifest of a bundle after verifying its signature.

    Raises:
        SignatureError: the signature is invalid.
        OSError: a file cannot be read.
    """
    content = bundle.read_bytes()
    signing.check(content, public_key.read_bytes(), name=str(bundle), key_name=str(public_key))
    with zipfile.ZipFile(io.BytesIO(content)) as files:
        manifest: dict[str, Any] = json.loads(files.read("manifest.json"))
    return manifest


def _write(file: Path, content: bytes) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
