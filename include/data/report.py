"""The report of an ingest task: what became of each file, with the Data Docs page of the validation beside it."""

import html
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
from upath import UPath

from include.data.validation import Validation
from include.projects.base import Project, Source

STYLE = """body{font:14px/1.5 system-ui,sans-serif;color:#1d2329;margin:1.5rem;max-width:75rem}table{border-collapse:collapse;margin:1rem 0}
th,td{padding:.3rem .7rem;border-bottom:1px solid #e4e8ec;text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
.refused{color:#b3261e;font-weight:600}.ingested{color:#1b7f5c}iframe{width:100%;height:70vh;border:1px solid #e4e8ec}"""


class FileOutcome(NamedTuple):
    """What became of a file: ``counts`` of rows, table, quarantine, refused; ``reasons`` as dicts of rule, count, message."""

    file: str
    sha256: str
    status: str
    counts: dict[str, int]
    reasons: list[dict[str, Any]]


class SourceReport(NamedTuple):
    """What was found out about the new files of a source."""

    files: list[FileOutcome]
    validation: Validation | None
    good: pa.Table | None
    bad: pd.DataFrame | None
    warnings: list[str] = []


def write_report(folder: UPath, project: Project, source: Source, found: SourceReport, summary: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    page = ""
    if found.validation is not None:
        (folder / "data_docs.html").write_text(found.validation.page, encoding="utf-8")
        page = '<h2>Great Expectations</h2><p><a href="data_docs.html" target="_self">Data Docs of this run</a></p><iframe src="data_docs.html"></iframe>'
    lines = [
        f'<tr><td>{html.escape(o.file)}<td class="{o.status}">{o.status}'
        + "".join(f'<td class="n">{o.counts[c]:,}' for c in ("rows", "table", "quarantine", "refused"))
        + "<td>"
        + "<br>".join(html.escape(r["message"]) for r in o.reasons)
        for o in sorted(found.files, key=lambda o: (o.status != "refused", not o.reasons, o.file))
    ]
    warned = "".join(f"<li>{html.escape(w)}</li>" for w in found.warnings)
    (folder / "index.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>ingest {project.name} {source.name}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(project.name)}: {html.escape(source.name)}</h1><p>{summary['files']} new files, {summary['rows']:,} rows: {summary['table']:,} into the table, "
        f"{summary['quarantine']:,} into quarantine, {summary['refused']:,} refused.</p>"
        + (f"<h2>Warnings</h2><ul>{warned}</ul>" if warned else "")
        + "<table><tr><th>file<th>status<th>rows<th>table<th>quarantine<th>refused<th>why</tr>" + "\n".join(lines) + f"</table>{page}",
        encoding="utf-8",
    )  # fmt: skip
