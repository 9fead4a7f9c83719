"""Refused files, as an error that says what was refused and what to do."""

from typing import Any

from include import ledger
from include.projects.base import Project


class FilesRefused(RuntimeError):
    """Files were refused whole; each with file, rule, count."""


def explain_refused(project: Project, done: list[dict[str, Any]]) -> None:
    """Raise if any of the sources' summaries names refused files.

    Raises:
        FilesRefused: one line per file, with the first reason.
    """
    names = {(d["source"], name) for d in done for name in d["refused_files"]}
    records = [r for r in ledger.file_records(project.name) if (r["source"], r["file"]) in names and r["status"] == "refused"]
    if names:
        lines = "\n".join(f"  {r['source']}/{r['reasons'][0]['message']} [rule {r['reasons'][0]['rule']}]" for r in records)
        raise FilesRefused(f"{len(names)} files were refused whole; copies and reasons lie in <store>/{project.name}/refused:\n{lines}")
