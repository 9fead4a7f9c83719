"""Model versions on this machine: downloaded once, only those that load, and the last one that answered remembered for a start without the registry.

Nothing in the cache is trusted: names of folders are computed, links are not followed, notes are parsed within limits, files are compared with hashes.
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
from serving.registry_entries import MOST_SOURCE, NAME, VERSION
from serving.untrusted import DocumentError, line, parse_object
from serving.version_files import BundleError, Files

POINTER = "current.json"
VERSIONS = 2  # per model: the current one and the one before, for a fast way back
ABANDONED_SECONDS = 86_400.0  # age of a partial download that a killed process left

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """A version of a model and the hashes that the registry had for it."""

    name: str
    version: str
    source: str
    hashes: str = ""


class ModelCache:
    """``<root>/<model>/<version>-<hash of its source>/``, and per model ``current.json``, which names the one that answers.

    The source is in the name because another registry has a version 1 too. Several processes may share the root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str, version: str, source: str) -> Path:
        """Where a version's files are, or will be."""
        return self._model(name) / f"{version}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"

    def read(self, name: str, version: str, source: str, read: Callable[[Path], Files]) -> tuple[Path, Files] | None:
        """A version's folder and its files, if it is there and undamaged; a damaged one is removed.

        Args:
            read: reads a folder; what it raises is the damage.

        Raises:
            BundleError: the model's folder is a link.
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

    def fetch(self, name: str, version: str, source: str, download: Callable[[Path], Path], read: Callable[[Path], Files]) -> tuple[Path, Files]:
        """Download a version into a folder that ``keep_folder`` takes into the cache, or ``drop`` removes.

        Args:
            download: puts the files below the folder that it is given, and gives their folder.
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
        """Take a downloaded version, which has been tested, into the cache."""
        target = self.folder(name, version, source)
        try:
            downloaded.rename(target)
        except OSError:
            if not target.exists():  # else another worker was faster
                raise
        finally:
            self.drop(downloaded)

    def drop(self, downloaded: Path) -> None:
        """Remove a download."""
        shutil.rmtree(downloaded.parent, ignore_errors=True)

    def point(self, kept: Kept) -> None:
        """Remember a version as the one that answers. A full disk is logged, not raised."""
        pointer = self._model(kept.name) / POINTER
        try:
            # Replicas that share a volume can have the same process id.
            draft = pointer.with_name(f".{POINTER}.{new_id()}")
            with draft.open("x") as file:
                json.dump({"name": kept.name, "version": kept.version, "source": kept.source, "hashes": kept.hashes}, file, indent=1)
            draft.replace(pointer)
            self.folder(kept.name, kept.version, kept.source).touch()
        except OSError as error:
            log.warning("the cache of model %s: %s", kept.name, error)

    def forget_others(self, name: str, used: set[Path]) -> None:
        """Remove a model's folders except those that are used and the newest two."""
        try:
            versions = [entry for entry in self._model(name).iterdir() if entry.is_dir() and not entry.name.startswith(".")]
            newest = sorted(versions, key=lambda entry: entry.lstat().st_mtime, reverse=True)[:VERSIONS]
            for old in set(versions) - set(newest) - used:
                self._remove(old)
        except OSError as error:
            log.warning("the cache of model %s: %s", name, error)

    def kept(self) -> Iterator[Kept]:
        """The last version of each model that answered."""
        for pointer in sorted(self.root.glob(f"*/{POINTER}")):
            try:
                self._refuse_links(pointer.parent)
                descriptor = os.open(pointer, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                with os.fdopen(descriptor, "rb") as file:
                    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                        raise DocumentError(f"{pointer}: not a plain file")
                    entry = parse_object(file.read(2**20), str(pointer), most_bytes=2**19)
                found = Kept(entry["name"], entry["version"], entry["source"], entry.get("hashes", ""))
                if not all(isinstance(value, str) for value in (found.name, found.version, found.source, found.hashes)):
                    raise DocumentError(f"{pointer}: name, version, source and hashes must be text")
                if not NAME.fullmatch(found.name) or self._model(found.name) != pointer.parent:
                    raise DocumentError(f"{pointer}: names another model than its folder")
                if not VERSION.fullmatch(found.version) or len(found.source) > MOST_SOURCE:
                    raise DocumentError(f"{pointer}: its version is not a number, or its source is too long")
                yield found
            except (OSError, ValueError, KeyError) as error:
                log.warning("%s cannot be used: %s", pointer, line(error))

    def _model(self, name: str) -> Path:
        return self.root / quote(name, safe="").replace(".", "%2E")

    def _refuse_links(self, folder: Path) -> None:
        """Raise ``BundleError`` where a folder below the root is a link."""
        for entry in (folder, *folder.parents):
            if entry == self.root:
                return
            if entry.is_symlink():
                raise BundleError(f"{entry} is a link; remove it")

    def _remove(self, target: Path) -> None:
        """Remove a folder, or a link, as a whole: another process sees it or does not."""
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
                if entry.name.startswith((".partial-", ".gone-")) and time.time() - entry.lstat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)
