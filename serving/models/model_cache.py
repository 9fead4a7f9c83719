"""Cache model versions on this machine.

A version is downloaded once, and kept only if it loads. The cache remembers the last version that
answered, for a start without the registry.

The cache's content is not trusted. Folder names are computed, links are not followed, JSON files
are parsed within limits, and files are compared with their hashes.
"""

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from serving.ids import new_id
from serving.models.registry_entries import MOST_SOURCE, NAME, VERSION
from serving.models.untrusted import DocumentError, line, parse_object
from serving.models.version_files import BundleError, Files

POINTER = "current.json"
# Versions per model: the current one and the previous one, for a fast rollback.
VERSIONS = 2
# Age after which the partial download of a killed process is removed.
ABANDONED_SECONDS = 86_400.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedVersion:
    """A version of a model and its hashes from the registry."""

    name: str
    version: str
    source: str
    hashes: str = ""


class ModelCache:
    """The folders ``<root>/<model>/<version>-<hash of its source>/``.

    Each model also has ``current.json``, which names the version that answers. The folder name
    contains the source, because version numbers repeat across registries. Several processes may
    share the root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str, version: str, source: str) -> Path:
        """Return the folder of a version, which may not exist yet."""
        return self._model(name) / f"{version}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"

    def read(self, name: str, version: str, source: str, read: Callable[[Path], Files]) -> tuple[Path, Files] | None:
        """Return a version's folder and its files, or None if it is missing or damaged.

        A damaged version is removed.

        Args:
            read: Reads a folder. An exception from it means that the version is damaged.

        Raises:
            BundleError: The model's folder is a link.
        """
        target = self.folder(name, version, source)
        self._refuse_links(target.parent)
        if not os.path.lexists(target):
            return None
        try:
            return target, read(target)
        except (BundleError, OSError) as error:
            log.warning("%s is damaged (%s) and downloaded again", target, line(error))
            self._remove(target)
            return None

    def fetch(
        self, name: str, version: str, source: str, download: Callable[[Path], Path], read: Callable[[Path], Files]
    ) -> tuple[Path, Files]:
        """Download a version into a temporary folder.

        Afterwards, ``keep_folder`` moves it into the cache, or ``drop`` removes it.

        Args:
            download: Writes the files below the given folder, and returns their folder.
        """
        parent = self._model(name)
        self._refuse_links(parent)
        parent.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned(parent)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=parent))
        try:
            downloaded = download(partial)
            return downloaded, read(downloaded)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def keep_folder(self, downloaded: Path, name: str, version: str, source: str) -> None:
        """Move a downloaded and tested version into the cache."""
        target = self.folder(name, version, source)
        try:
            downloaded.rename(target)
        except OSError:
            if not target.exists():  # Otherwise another worker was faster.
                raise
        finally:
            self.drop(downloaded)

    def drop(self, downloaded: Path) -> None:
        """Remove a download."""
        shutil.rmtree(downloaded.parent, ignore_errors=True)

    def point(self, cached_version: CachedVersion) -> None:
        """Record a version as the one that answers. A full disk is logged and not raised."""
        pointer = self._model(cached_version.name) / POINTER
        try:
            # Replicas that share a volume can have the same process id.
            draft = pointer.with_name(f".{POINTER}.{new_id()}")
            with draft.open("x") as file:
                json.dump(
                    {
                        "name": cached_version.name,
                        "version": cached_version.version,
                        "source": cached_version.source,
                        "hashes": cached_version.hashes,
                    },
                    file,
                    indent=1,
                )
            draft.replace(pointer)
            self.folder(cached_version.name, cached_version.version, cached_version.source).touch()
        except OSError as error:
            log.warning("the cache of model %s: %s", cached_version.name, error)

    def forget_others(self, name: str, used: set[Path]) -> None:
        """Remove a model's folders, except those in use and the newest two."""
        try:
            versions = [
                entry for entry in self._model(name).iterdir() if entry.is_dir() and not entry.name.startswith(".")
            ]
            newest = sorted(versions, key=lambda entry: entry.lstat().st_mtime, reverse=True)[:VERSIONS]
            for old in set(versions) - set(newest) - used:
                self._remove(old)
        except OSError as error:
            log.warning("the cache of model %s: %s", name, error)

    def cached_versions(self) -> Iterator[CachedVersion]:
        """Yield the last version of each model that answered."""
        for pointer in sorted(self.root.glob(f"*/{POINTER}")):
            try:
                self._refuse_links(pointer.parent)
                descriptor = os.open(pointer, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                with os.fdopen(descriptor, "rb") as file:
                    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                        raise DocumentError(f"{pointer}: not a plain file")
                    entry = parse_object(file.read(2**20), str(pointer), most_bytes=2**19)
                cached_version = CachedVersion(
                    entry["name"], entry["version"], entry["source"], entry.get("hashes", "")
                )
                if not all(
                    isinstance(value, str)
                    for value in (
                        cached_version.name,
                        cached_version.version,
                        cached_version.source,
                        cached_version.hashes,
                    )
                ):
                    raise DocumentError(f"{pointer}: name, version, source and hashes must be text")
                if not NAME.fullmatch(cached_version.name) or self._model(cached_version.name) != pointer.parent:
                    raise DocumentError(f"{pointer}: names another model than its folder")
                if not VERSION.fullmatch(cached_version.version) or len(cached_version.source) > MOST_SOURCE:
                    raise DocumentError(f"{pointer}: its version is not a number, or its source is too long")
                yield cached_version
            except (OSError, ValueError, KeyError) as error:
                log.warning("%s cannot be used: %s", pointer, line(error))

    def _model(self, name: str) -> Path:
        return self.root / quote(name, safe="").replace(".", "%2E")

    def _refuse_links(self, folder: Path) -> None:
        """Raise ``BundleError`` if a folder below the root is a link."""
        for entry in (folder, *folder.parents):
            if entry == self.root:
                return
            if entry.is_symlink():
                raise BundleError(f"{entry} is a link; remove it")

    def _remove(self, target: Path) -> None:
        """Remove a folder or a link atomically for other processes."""
        gone = target.with_name(f".gone-{new_id()}")
        with suppress(FileNotFoundError):
            target.rename(gone)
            if gone.is_dir() and not gone.is_symlink():
                shutil.rmtree(gone, ignore_errors=True)
            else:
                gone.unlink()

    def _remove_abandoned(self, parent: Path) -> None:
        for entry in parent.glob(".*-*"):
            with suppress(OSError):
                if (
                    entry.name.startswith((".partial-", ".gone-"))
                    and time.time() - entry.lstat().st_mtime > ABANDONED_SECONDS
                ):
                    shutil.rmtree(entry, ignore_errors=True)
