"""Read waiting files of the landing zone in the same way as ingest.

This reports a wrong delimiter or format before the first run.
"""

from collections.abc import Iterator

from include import ledger
from include.checks.finding import Files, Finding
from include.data import layout, storage
from include.data.added import ExpressionError
from include.data.reading import FileRefusedError, read
from include.projects.base import Project, Source

# Limits of each source.
FILES, MOST_BYTES = 3, 32 * 2**20


def waiting(project: Project) -> dict[str, list[storage.Entry]]:
    """Return the first files of each source that were not ingested yet, by source."""
    known = {(record["source"], record["file"]) for record in ledger.file_records(project.name)}
    files: dict[str, list[storage.Entry]] = {}
    for source in project.sources:
        entries = [
            entry
            for entry in storage.entries(layout.landing(project, source))
            if entry.kind == "file" and not entry.path.name.startswith(".") and entry.size <= MOST_BYTES
        ]
        new = sorted(
            (entry for entry in entries if (source.name, entry.path.name) not in known),
            key=lambda entry: entry.path.name,
        )
        if new:
            files[source.name] = new[:FILES]
    return files


def findings(project: Project, waiting_files: dict[str, list[storage.Entry]]) -> list[Finding]:
    """Return a warning for each file that ingest would refuse or quarantine rows of.

    The cause is either the file or the declaration.
    """
    files = Files(project)
    return [
        one
        for name, entries in waiting_files.items()
        for entry in entries
        for one in _read(project.source(name), entry, files)
    ]


def _read(source: Source, entry: storage.Entry, files: Files) -> Iterator[Finding]:
    lead = f"landing/{source.name}/{entry.path.name}"
    try:
        rows = read(source, entry.path.name, entry.path.read_bytes())
    except FileRefusedError as error:
        message = error.reason.message.removeprefix(f"{entry.path.name}: ")
        yield files.finding(
            "__init__",
            error.reason.rule,
            source.name,
            f"{lead} would be refused: {message}",
            stage="ingest",
            warning=True,
        )
        return
    except ExpressionError as error:
        yield files.finding(
            "__init__", "known_at", source.known_at_expression or source.known_at, str(error), stage="ingest"
        )
        return
    for rule, message, mask in rows.faults:
        if count := int(mask.sum()):
            share = f"{count} of {len(rows)} rows of {lead} would go to quarantine"
            refused = (
                f"; that is more than tolerance={source.tolerance:g}, so the file would be refused"
                if count > source.tolerance * len(rows)
                else ""
            )
            yield files.finding(
                "__init__", rule, source.name, f"{share}: {message}{refused}", stage="ingest", warning=True
            )
