"""The report of an ingest task: each file's outcome, and the Data Docs page of the validation."""

import json
from typing import Any, NamedTuple

import pyarrow as pa
from upath import UPath

from include.data import storage
from include.data.pages import Markup, document, embedded, fill, join, write_report_page
from include.projects.base import Project, Source

STYLE = """body{font:14px/1.5 system-ui,sans-serif;color:#1d2329;margin:1.5rem;max-width:75rem}table{border-collapse:collapse;margin:1rem 0}
th,td{padding:.3rem .7rem;border-bottom:1px solid #e4e8ec;text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
.refused{color:#b3261e;font-weight:600}.ingested{color:#1b7f5c}iframe{width:100%;height:70vh;border:1px solid #e4e8ec}"""  # noqa: E501
COUNTS = ("rows", "table", "quarantine", "refused")


class FileOutcome(NamedTuple):
    """The outcome of a file.

    ``counts`` are numbers of rows: rows, table, quarantine, refused. ``reasons`` are dicts of rule,
    count, message, severity.
    """

    file: str
    sha256: str
    status: str
    counts: dict[str, int]
    reasons: list[dict[str, Any]]


class SourceReport(NamedTuple):
    """The result of judging the new files of a source.

    ``page`` is the Data Docs page. ``good`` and ``bad`` are the rows, or None if there are none.
    ``corrected`` are good rows that replace those of the same key.
    """

    files: list[FileOutcome]
    page: str | None
    good: pa.Table | None
    bad: pa.Table | None
    corrected: pa.Table | None = None


def totals(done: list[FileOutcome]) -> dict[str, int]:
    return {what: sum(outcome.counts[what] for outcome in done) for what in COUNTS}


def outcomes(folder: UPath | None) -> list[FileOutcome]:
    """Return the outcomes that earlier tries of a run have recorded."""
    file = folder / "outcomes.json" if folder is not None else None
    return (
        [FileOutcome(**outcome) for outcome in json.loads(file.read_text())]
        if file is not None and file.exists()
        else []
    )


def add_outcomes(folder: UPath | None, done: list[FileOutcome], more: list[FileOutcome]) -> list[FileOutcome]:
    """Record the outcomes of further files. Repeating it changes nothing."""
    added = {outcome.sha256 for outcome in more}
    both = [*(outcome for outcome in done if outcome.sha256 not in added), *more]
    if folder is not None:
        storage.write(folder / "outcomes.json", json.dumps([outcome._asdict() for outcome in both]))
    return both


def write_data_docs(folder: UPath, page: str) -> None:
    write_report_page(folder, page, name="data_docs.html")


def write_page(folder: UPath, project: Project, source: Source, done: list[FileOutcome], silent: list[str]) -> None:
    """Write ``index.html``: refused files first, then files with reasons."""
    total, refused = totals(done), sum(outcome.status == "refused" for outcome in done)
    lines = [_line(o) for o in sorted(done, key=lambda o: (o.status != "refused", not o.reasons, o.file))]
    head = fill(
        "<h1>{}: {}</h1><p>{} new files, {:,} rows: {:,} into the table, {:,} into quarantine, {:,} refused ({} files"
        " whole).</p>",
        project.name,
        source.name,
        len(done),
        total["rows"],
        total["table"],
        total["quarantine"],
        total["refused"],
        refused,
    )
    sections = [head]
    if silent:
        sections.append(
            fill("<h2>Nothing any more</h2><ul>{}</ul>", join(fill("<li>{}</li>", message) for message in silent))
        )
    columns = fill("<tr><th>file<th>status<th>rows<th>table<th>quarantine<th>refused<th>why</tr>")
    sections.append(fill("<table>{}{}</table>", columns, join(lines, "\n")))
    docs = folder / "data_docs.html"
    if docs.exists():
        sections += [
            fill("<h2>Great Expectations</h2>"),
            embedded(docs.read_text(encoding="utf-8"), "Data Docs of this run"),
        ]
    write_report_page(folder, document(f"ingest {project.name} {source.name}", *sections, style=STYLE))


def _line(outcome: FileOutcome) -> Markup:
    counts = join(fill('<td class="n">{:,}', outcome.counts[what]) for what in COUNTS)
    why = join(
        (("warning: " if r["severity"] == "warning" else "") + r["message"] for r in outcome.reasons), Markup("<br>")
    )
    return fill('<tr><td>{}<td class="{}">{}{}<td>{}', outcome.file, outcome.status, outcome.status, counts, why)
