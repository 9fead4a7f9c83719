"""The landing zone, and which of its files are new.

Only upstream systems write there. A file is identified by its content.
"""

import hashlib
from typing import Any, NamedTuple

from upath import UPath

from include import ledger
from include.data import layout, storage
from include.data.printable import error_text, in_line
from include.data.storage import Entry
from include.projects.base import Project, Source

# Maximum length in bytes of a name in the folder of refused files. File systems allow 255, and a
# suffix is added.
LONGEST = 160
NO_FILES = {
    "link": "it is a link, which is not followed; have the file itself put there",
    "folder": "it is a folder; have its files put beside it, not into it",
    "special": "it is neither a file nor a folder (a pipe, a socket or a device); have a file put there",
}


class Problem(NamedTuple):
    """Why a file is refused before its content is read."""

    rule: str
    message: str


class LandedFile(NamedTuple):
    """A new file.

    Attributes:
        name: suitable for messages and databases. Unsuitable characters are escaped.
        identity: the file's key in the ledger: the hash of its content. For a second file with that
            content, the hash also covers its name.
        first: name of the file that had the same content before, or None.
        problem: why its content was not read, or None.
    """

    path: UPath
    name: str
    identity: str
    content: bytes
    first: str | None
    problem: Problem | None = None


def new_files(project: Project, source: Source) -> list[LandedFile]:
    """Return files that the ledger does not know, by name.

    The result includes links, folders and unreadable files, each with its problem. A refused file
    is processed again when a user has removed its reason from the folder of refused files. Names
    that begin with a dot are files that are still being written.
    """
    landed = [
        entry for entry in storage.entries(layout.landing(project, source)) if not entry.path.name.startswith(".")
    ]
    known = {
        r["sha256"]: r["file"]
        for r in ledger.file_records(project.name)
        if r["source"] == source.name and not _reopened(project, source, r)
    }
    files: list[LandedFile] = []

    def refuse(entry: Entry, problem: Problem) -> None:
        """Add a file under an identity that changes when the file is fixed."""
        identity = hashlib.sha256(
            f"{problem.rule}|{entry.kind}|{entry.size}|{entry.changed}|{in_line(entry.path.name)}".encode()
        ).hexdigest()
        if identity not in known:
            known[identity] = in_line(entry.path.name)
            files.append(LandedFile(entry.path, known[identity], identity, b"", None, problem))

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
            continue  # the upstream has removed it in the meantime
        if isinstance(content, OSError):
            refuse(
                readable[path],
                Problem(
                    "failed",
                    f"it cannot be read ({error_text(content)}); let the account that runs ingest read it, or have it"
                    " sent again",
                ),
            )
            continue
        name, sha256 = in_line(path.name), hashlib.sha256(content).hexdigest()
        first = known.get(sha256)
        if first == name:
            continue
        identity = sha256 if first is None else hashlib.sha256(f"{name}|{sha256}".encode()).hexdigest()
        if identity in known:
            continue
        known[identity] = name
        files.append(LandedFile(path, name, identity, content, first))
    return sorted(files, key=lambda file: file.name)


def keep_refused(project: Project, source: Source, name: str, reasons: str) -> None:
    """Store a copy of the file and the reasons.

    The landing zone belongs to the upstream, which may clear it. For a link or a folder, only the
    reasons are stored.
    """
    folder = layout.refused(project, source)
    landed = _landed(project, source, name)
    if landed is not None:
        storage.copy(landed, folder / _kept(name))
    storage.write(_reason(project, source, name), reasons)


def _landed(project: Project, source: Source, name: str) -> UPath | None:
    """Return the file with that name, or whose escaped name it is. Return None if there is none."""
    entries = [entry for entry in storage.entries(layout.landing(project, source)) if entry.kind == "file"]
    return next((entry.path for entry in entries if in_line(entry.path.name) == name), None)


def _reopened(project: Project, source: Source, record: dict[str, Any]) -> bool:
    return record["status"] == "refused" and not _reason(project, source, record["file"]).exists()


def _reason(project: Project, source: Source, name: str) -> UPath:
    return layout.refused(project, source) / f"{_kept(name)}.reason.json"


def _kept(name: str) -> str:
    """Return the name of a refused file's copy: its own, or a prefix and a hash if too long."""
    encoded = name.encode()
    if len(encoded) <= LONGEST:
        return name
    return f"{encoded[: LONGEST - 20].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:16]}"
