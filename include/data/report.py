"""The report of an ingest task: what became of each file, with the Data Docs page of the validation beside it."""

import html
import json
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
from upath import UPath

from include.data import storage
from include.projects.base import Project, Source

STYLE = """body{font:14px/1.5 system-ui,sans-serif;color:#1d2329;margin:1.5rem;max-width:75rem}table{border-collapse:collapse;margin:1rem 0}
th,td{padding:.3rem .7rem;border-bottom:1px solid #e4e8ec;text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
.refused{color:#b3261e;font-weight:600}.ingested{color:#1b7f5c}iframe{width:100%;height:70vh;border:1px solid #e4e8ec}"""
COUNTS = ("rows", "table", "quarantine", "refused")


class FileOutcome(NamedTuple):
    """What became of a file: ``counts`` of rows, table, quarantine, refused; ``reasons`` as dicts of rule, count, message, severity."""

    file: str
    sha256: str
    status: str
    counts: dict[str, int]
    reasons: list[dict[str, Any]]


class SourceReport(NamedTuple):
    """What was found out about the new files of a source: ``page`` is the Data Docs page, ``good`` and ``bad`` the rows (None: no such row)."""

    files: list[FileOutcome]
    page: str | None
    good: pa.Table | None
    bad: pd.DataFrame | None


def totals(done: list[FileOutcome]) -> dict[str, int]:
    return {what: sum(outcome.counts[what] for outcome in done) for what in COUNTS}


def outcomes(folder: UPath | None) -> list[FileOutcome]:
    """What a run has done with files so far: what its earlier tries wrote down."""
    file = folder / "outcomes.json" if folder is not None else None
    return [FileOutcome(**outcome) for outcome in json.loads(file.read_text())] if file is not None and file.exists() else []


def add_outcomes(folder: UPath | None, done: list[FileOutcome], more: list[FileOutcome]) -> list[FileOutcome]:
    """Write down what was done with further files; the same ones again change nothing."""
    added = {outcome.sha256 for outcome in more}
    both = [*(outcome for outcome in done if outcome.sha256 not in added), *more]
    if folder is not None:
        storage.write(folder / "outcomes.json", json.dumps([outcome._asdict() for outcome in both]))
    return both


def write_data_docs(folder: UPath, page: str) -> None:
    storage.write(folder / "data_docs.html", page)


def write_page(folder: UPath, project: Project, source: Source, done: list[FileOutcome], silent: list[str]) -> None:
    """``index.html``: the files with something to say first; what was refused on top."""
    total, refused = totals(done), sum(outcome.status == "refused" for outcome in done)
    lines = [
        f'<tr><td>{html.escape(o.file)}<td class="{o.status}">{o.status}'
        + "".join(f'<td class="n">{o.counts[what]:,}' for what in COUNTS)
        + "<td>"
        + "<br>".join(("warning: " if r["severity"] == "warning" else "") + html.escape(r["message"]) for r in o.reasons)
        for o in sorted(done, key=lambda o: (o.status != "refused", not o.reasons, o.file))
    ]
    warned = "".join(f"<li>{html.escape(message)}</li>" for message in silent)
    docs = ""
    if (folder / "data_docs.html").exists():
        docs = '<h2>Great Expectations</h2><p><a href="data_docs.html" target="_self">Data Docs of this run</a></p><iframe src="data_docs.html"></iframe>'
    storage.write(
        folder / "index.html",
        f"<!doctype html><meta charset=utf-8><title>ingest {project.name} {source.name}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(project.name)}: {html.escape(source.name)}</h1><p>{len(done)} new files, {total['rows']:,} rows: {total['table']:,} into the table, "
        f"{total['quarantine']:,} into quarantine, {total['refused']:,} refused ({refused} files whole).</p>"
        + (f"<h2>Nothing any more</h2><ul>{warned}</ul>" if warned else "")
        + "<table><tr><th>file<th>status<th>rows<th>table<th>quarantine<th>refused<th>why</tr>" + "\n".join(lines) + f"</table>{docs}",
    )  # fmt: skip
