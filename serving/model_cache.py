"""Model versions on this machine: fetched once, only what loads, and the last one that answered remembered for a start without the registry."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from serving.bundle import Bundle, BundleError

POINTER = "current.json"
VERSIONS = 2  # per model: the current one and the one before, for a fast way back

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """A version of a model and the folder of its bundle."""

    name: str
    version: str
    source: str
    folder: Path
    hashes: str = ""


class ModelCache:
    """``<root>/<model>/<version>-<hash of its source>/``, and per model ``current.json``, which names the one that answers.

    The source is in the name because another registry has a version 1 too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def fetch(self, name: str, version: str, source: str, download: Callable[[Path], Path], load: Callable[[str, Path], Bundle]) -> tuple[Path, Bundle]:
        """A version's folder and the model in it, downloaded if need be; a damaged copy is downloaded again.

        Args:
            download: puts the bundle below the folder it is given, and gives its folder.
            load: of the model's name and a folder; what it raises keeps the bundle out of the cache.
        """
        target = self._folder(name) / f"{version}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
        if target.exists():
            try:
                return target, load(name, target)
            except (BundleError, OSError) as error:
                log.warning("%s is damaged (%s) and fetched again", target, error)
                shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
        try:
            downloaded = download(partial)
            bundle = load(name, downloaded)
            try:
                downloaded.rename(target)
            except OSError:
                if not target.exists():  # else another worker was faster
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target, bundle

    def keep(self, kept: Kept) -> None:
        """Remember a version as the one that answers, and forget those before the last one. A full disk is logged, not raised."""
        pointer = self._folder(kept.name) / POINTER
        try:
            draft = pointer.with_name(f".{POINTER}.{os.getpid()}")
            draft.write_text(
                json.dumps({"name": kept.name, "version": kept.version, "source": kept.source, "folder": kept.folder.name, "hashes": kept.hashes}, indent=1)
            )
            draft.replace(pointer)
            kept.folder.touch()
            versions = [entry for entry in pointer.parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
            for old in sorted(versions, key=lambda entry: entry.stat().st_mtime, reverse=True)[VERSIONS:]:
                shutil.rmtree(old)
        except OSError as error:
            log.warning("the cache of model %s: %s", kept.name, error)

    def kept(self) -> Iterator[Kept]:
        """The last version of each model that answered."""
        for pointer in sorted(self.root.glob(f"*/{POINTER}")):
            try:
                entry = json.loads(pointer.read_text())
                yield Kept(entry["name"], entry["version"], entry["source"], pointer.parent / entry["folder"], entry.get("hashes", ""))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s cannot be used: %s", pointer, error)

    def _folder(self, name: str) -> Path:
        return self.root / quote(name, safe="").replace(".", "%2E")
