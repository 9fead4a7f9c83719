"""The landing zone: which files are new. Upstream systems write there, nobody else; a file is known by its content."""

import hashlib
from typing import NamedTuple

from upath import UPath

from include import ledger
from include.data import layout, storage
from include.data.printable import in_line, said
from include.data.storage import Entry
from include.projects.base import Project, Source

LONGEST = 160  # bytes of a name in the folder of refused files: a file system takes 255, and something is added to it
NO_FILES = {
    "link": "it is a link, which is not followed; have the file itself put there",
    "folder": "it is a folder; have its files put beside it, not into it",
    "special": "it is neither a file nor a folder (a pipe, a socket or a device); have a file put there",
}


class Problem(NamedTuple):
    """Why a file is refused without a look at its content."""

    rule: str
    message: str


class LandedFile(NamedTuple):
    """A file that was not looked at before.

    Attributes:
        name: fit for messages and databases; where it has characters that are not, they are escapes.
        identity: under which the ledger knows it: the hash of its content; of a second file with that content, of its name too.
        first: name of the file that brought the same content before, or None.
        problem: why its content was not read, or None.
    """

    path: UPath
    name: str
    identity: str
    content: bytes
    first: str | None
    problem: Problem | None = None


def new_files(project: Project, source: Source) -> list[LandedFile]:
    """Files that the ledger does not know, in the order of their names; also links, folders and what cannot be read, each with its problem.

    A refused file is looked at again when somebody has taken its reason away from the folder of refused files.
    Names that begin with a dot are files that are still being written.
    """
    landed = [entry for entry in storage.entries(layout.landing(project, source)) if not entry.path.name.startswith(".")]
    known = {r["sha256"]: r["file"] for r in ledger.file_records(project.name) if r["source"] == source.name and not _reopened(project, source, r)}
    found: list[LandedFile] = []

    def refuse(entry: Entry, problem: Problem) -> None:
        """Under an identity that changes when somebody mends it."""
        identity = hashlib.sha256(f"{problem.rule}|{entry.kind}|{entry.size}|{entry.changed}|{in_line(entry.path.name)}".encode()).hexdigest()
        if identity not in known:
            known[identity] = in_line(entry.path.name)
            found.append(LandedFile(entry.path, known[identity], identity, b"", None, problem))

    readable = {}
    for entry in landed:
        if entry.kind != "file":
            refuse(entry._replace(changed=""), Problem("not_a_file", NO_FILES[entry.kind]))
        elif entry.size > source.max_bytes:
            size = f"it has {entry.size:,} bytes; the source's max_bytes is {source.max_bytes:,}"
            refuse(entry, Problem("too_large", f"{size}; have it split, or raise max_bytes of the source"))
        else:
            readable[entry.path] = entry
    for path, content in storage.read_each(readable):
        if isinstance(content, FileNotFoundError):
            continue  # the upstream has taken it away meanwhile
        if isinstance(content, OSError):
            refuse(readable[path], Problem("failed", f"it cannot be read ({said(content)}); let the account that runs ingest read it, or have it sent again"))
            continue
        name, sha256 = in_line(path.name), hashlib.sha256(content).hexdigest()
        first = known.get(sha256)
        if first == name:
            continue
        identity = sha256 if first is None else hashlib.sha256(f"{name}|{sha256}".encode()).hexdigest()
        if identity in known:
            continue
        known[identity] = name
        found.append(LandedFile(path, name, identity, content, first))
    return sorted(found, key=lambda file: file.name)


def keep_refused(project: Project, source: Source, name: str, reasons: str) -> None:
    """A copy of the file and why: the landing zone belongs to the upstream, which may clear it. Of a link or a folder, only why."""
    folder = layout.refused(project, source)
    landed = _landed(project, source, name)
    if landed is not None:
        storage.copy(landed, folder / _kept(name))
    storage.write(_reason(project, source, name), reasons)


def _landed(project: Project, source: Source, name: str) -> UPath | None:
    """The file with that name, or whose name is shown so."""
    entries = [entry for entry in storage.entries(layout.landing(project, source)) if entry.kind == "file"]
    return next((entry.path for entry in entries if in_line(entry.path.name) == name), None)


def _reopened(project: Project, source: Source, record: dict) -> bool:
    return record["status"] == "refused" and not _reason(project, source, record["file"]).exists()


def _reason(project: Project, source: Source, name: str) -> UPath:
    return layout.refused(project, source) / f"{_kept(name)}.reason.json"


def _kept(name: str) -> str:
    """The name of a refused file's copy: its own, or, if that is long, its beginning and a hash."""
    encoded = name.encode()
    if len(encoded) <= LONGEST:
        return name
    return f"{encoded[: LONGEST - 20].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:16]}"
