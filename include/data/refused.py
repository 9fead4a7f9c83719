"""Refused files, as an error that says what was refused and what to do."""

import re
from collections import defaultdict
from typing import Any

from include.data import report, storage
from include.projects.base import Project

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NAMED = 20  # files of a group that are named


class FilesRefused(RuntimeError):
    """Files were refused whole; each with file, rule, count."""


def explain_refused(project: Project, done: list[dict[str, Any]]) -> None:
    """Raise if any of the sources' summaries names refused files.

    Args:
        done: what ``ingest_source`` returned, by source; the reasons are read in the reports that it names.

    Raises:
        FilesRefused: one line per first reason, with the files that it is of.
    """
    found = [
        (str(source["source"]), outcome.file, first)
        for source in done
        if source["refused_files"]
        for outcome in report.outcomes(storage.path(source["report"]))
        if outcome.status == "refused"
        for first in outcome.reasons[:1]
    ]
    if found:
        where = f"copies and reasons lie in <store>/{project.name}/refused; docs/runbooks/ingest.md"
        raise FilesRefused(f"{len(found)} files were refused whole ({where}):\n" + "\n".join(f"  {line}" for line in grouped(found)))


def grouped(refused: list[tuple[str, str, dict[str, Any]]]) -> list[str]:
    """Lines about refused files, one for all that were refused for the same reason: that differ in name and numbers only.

    Args:
        refused: source, file, its first reason (rule, count, message).
    """
    groups: dict[tuple[str, str, str], list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for source, file, reason in refused:
        groups[source, reason["rule"], NUMBER.sub("#", reason["message"].replace(file, ""))].append((file, reason))
    lines = []
    for (source, rule, _), members in groups.items():
        rows, (_, first), others = sum(reason["count"] for _, reason in members), members[0], [file for file, _ in members[1:]]
        more = f"; and {len(others)} more for the same reason: {', '.join(others[:NAMED])}{', ...' if len(others) > NAMED else ''}" if others else ""
        lines.append(f"{source}: rule {rule}, {rows} rows: {first['message']}{more}")
    return lines
