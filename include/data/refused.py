"""Refused files, as an error that says what was refused and what to do."""

from typing import Any

from include.data import report, storage
from include.projects.base import Project


class FilesRefused(RuntimeError):
    """Files were refused whole; each with file, rule, count."""


def explain_refused(project: Project, done: list[dict[str, Any]]) -> None:
    """Raise if any of the sources' summaries names refused files.

    Args:
        done: what ``ingest_source`` returned, by source; the reasons are read in the reports that it names.

    Raises:
        FilesRefused: one line per file, with the first reason.
    """
    lines = [
        f"  {source['source']}: rule {first['rule']}, {first['count']} rows: {first['message']}"
        for source in done
        if source["refused_files"]
        for outcome in report.outcomes(storage.path(source["report"]))
        if outcome.status == "refused"
        for first in outcome.reasons[:1]
    ]
    if lines:
        where = f"copies and reasons lie in <store>/{project.name}/refused; docs/runbooks/ingest.md"
        raise FilesRefused(f"{len(lines)} files were refused whole ({where}):\n" + "\n".join(lines))
