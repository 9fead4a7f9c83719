"""The landing zone: which files are new. Upstream systems write there, nobody else; a file is known by its content."""

import hashlib
from typing import NamedTuple

from upath import UPath

from include import ledger
from include.data import layout, storage
from include.projects.base import Project, Source


class LandedFile(NamedTuple):
    """A file that was not looked at before.

    Attributes:
        identity: under which the ledger knows it: the hash of its content; of a second file with that content, of its name too.
        first: name of the file that brought the same content before, or None.
    """

    path: UPath
    name: str
    identity: str
    content: bytes
    first: str | None


def new_files(project: Project, source: Source) -> list[LandedFile]:
    """Files that the ledger does not know, in the order of their names.

    A refused file is looked at again when somebody has taken its reason away from the folder of refused files.
    Names that begin with a dot are files that are still being written.
    """
    landed = [p for p in storage.files(layout.landing(project, source)) if not p.name.startswith(".")]
    known = {r["sha256"]: r["file"] for r in ledger.file_records(project.name) if r["source"] == source.name and not _reopened(project, source, r)}
    found = []
    for path, content in storage.read_all(landed):
        sha256 = hashlib.sha256(content).hexdigest()
        first = known.get(sha256)
        if first == path.name:
            continue
        identity = sha256 if first is None else hashlib.sha256(f"{path.name}|{sha256}".encode()).hexdigest()
        if identity in known:
            continue
        known[identity] = path.name
        found.append(LandedFile(path, path.name, identity, content, first))
    return found


def keep_refused(project: Project, source: Source, name: str, reasons: str) -> None:
    """A copy of the file and why: the landing zone belongs to the upstream, which may clear it."""
    folder = layout.refused(project, source)
    landed = layout.landing(project, source) / name
    if landed.exists():
        storage.write(folder / name, landed.read_bytes())
    storage.write(_reason(project, source, name), reasons)


def _reopened(project: Project, source: Source, record: dict) -> bool:
    return record["status"] == "refused" and not _reason(project, source, record["file"]).exists()


def _reason(project: Project, source: Source, name: str) -> UPath:
    return layout.refused(project, source) / f"{name}.reason.json"
