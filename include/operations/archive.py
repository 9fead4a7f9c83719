"""The archive of a backup: a zip file of rows and one manifest with the hashes of all members.

Only its owner can read it.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

FORMAT = 1
MANIFEST = "manifest.json"


class ArchiveError(ValueError):
    """Raised when the archive cannot be written, or this code cannot restore it.

    The message contains the archive's name and the reason.
    """


class Writer:
    """Write an archive. The target file does not exist before the archive is complete."""

    def __init__(self, file: zipfile.ZipFile):
        self._file = file
        self._hashes: dict[str, str] = {}

    @contextmanager
    def member(self, name: str) -> Iterator[IO[bytes]]:
        hashed = hashlib.sha256()

        class Hashing:
            def write(self, content: bytes) -> int:
                hashed.update(content)
                return into.write(content)

        with self._file.open(name, "w", force_zip64=True) as into:
            yield Hashing()  # type: ignore[misc]
        self._hashes[name] = hashed.hexdigest()

    def finish(self, manifest: dict[str, Any]) -> None:
        content = json.dumps({"format": FORMAT, **manifest, "members": self._hashes}, indent=1, sort_keys=True)
        self._file.writestr(
            MANIFEST, json.dumps({"manifest": content, "sha256": hashlib.sha256(content.encode()).hexdigest()})
        )


@contextmanager
def writing(target: Path) -> Iterator[Writer]:
    """Create a new archive. If this is killed or fails, no archive is left.

    Raises:
        ArchiveError: The file exists already.
    """
    if target.exists():
        raise ArchiveError(f"{target} exists already, and a backup never overwrites a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.touch(mode=0o600)
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
            yield Writer(file)
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


class Reader:
    """A complete and undamaged archive."""

    def __init__(self, file: zipfile.ZipFile, manifest: dict[str, Any]):
        self._file, self.manifest = file, manifest

    @contextmanager
    def member(self, name: str) -> Iterator[IO[bytes]]:
        with self._file.open(name) as content:
            yield content


@contextmanager
def reading(source: Path) -> Iterator[Reader]:
    """Open an archive after verifying all of its content.

    Raises:
        ArchiveError: The archive does not exist, is damaged, or was made by a newer Airloop.
    """
    try:
        file = zipfile.ZipFile(source)
    except FileNotFoundError:
        raise ArchiveError(f"this archive does not exist: {source}") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise _damaged(source, str(error)) from error
    with file:
        yield Reader(file, _checked(source, file))


def _checked(source: Path, file: zipfile.ZipFile) -> dict[str, Any]:
    try:
        sealed = json.loads(file.read(MANIFEST))
        content, expected_sha256 = sealed["manifest"], sealed["sha256"]
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(source, f"its manifest cannot be read ({error})") from error
    if hashlib.sha256(content.encode()).hexdigest() != expected_sha256:
        raise _damaged(source, "its manifest was changed after the backup")
    manifest: dict[str, Any] = json.loads(content)
    if manifest["format"] > FORMAT:
        made_by = f"format {manifest['format']}, made by Airloop {manifest.get('airloop')}"
        raise ArchiveError(f"{source} is of {made_by}; this one reads {FORMAT}: use a newer Airloop")
    for name, expected in manifest["members"].items():
        digest = hashlib.sha256()
        try:
            with file.open(name) as member:
                while block := member.read(1 << 20):
                    digest.update(block)
        except (KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise _damaged(source, f"{name} cannot be read ({error})") from error
        if digest.hexdigest() != expected:
            raise _damaged(source, f"{name} was changed after the backup")
    return manifest


def _damaged(source: Path, why: str) -> ArchiveError:
    return ArchiveError(f"{source} is damaged: {why}. Nothing was restored; take another backup")
