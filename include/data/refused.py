"""Raise an error for refused files, with the reasons and instructions."""

import re
from collections import defaultdict
from typing import Any

from include.data import report, storage
from include.projects.base import Project

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NAMED = 20  # maximum number of files of a group that are named


class FilesRefusedError(RuntimeError):
    """Raised when files were refused. The message has file, rule and count of each."""


def explain_refused(project: Project, done: list[dict[str, Any]]) -> None:
    """Raise if any of the sources' summaries names refused files.

    Args:
        done: what ``ingest_source`` returned, by source. The reasons are read from the reports that
            it names.

    Raises:
        FilesRefusedError: one line for each distinct first reason, with its files.
    """
    files = [
        (str(source["source"]), outcome.file, first)
        for source in done
        if source["refused_files"]
        for outcome in report.outcomes(storage.path(source["report"]))
        if outcome.status == "refused"
        for first in outcome.reasons[:1]
    ]
    if files:
        where = f"copies and reasons lie in <store>/{project.name}/refused; docs/runbooks/ingest.md"
        raise FilesRefusedError(
            f"{len(files)} files were refused whole ({where}):\n" + "\n".join(f"  {line}" for line in grouped(files))
        )


def grouped(refused: list[tuple[str, str, dict[str, Any]]]) -> list[str]:
    """Return lines about refused files, one for all files with the same reason.

    Reasons are the same if they differ only in names and numbers.

    Args:
        refused: source, file, its first reason (rule, count, message).
    """
    groups: dict[tuple[str, str, str], list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for source, file, reason in refused:
        groups[source, reason["rule"], NUMBER.sub("#", reason["message"].replace(file, ""))].append((file, reason))
    lines = []
    for (source, rule, _), members in groups.items():
        rows, (_, first), others = (
            sum(reason["count"] for _, reason in members),
            members[0],
            [file for file, _ in members[1:]],
        )
        more = (
            f"; and {len(others)} more for the same reason:"
            f" {', '.join(others[:NAMED])}{', ...' if len(others) > NAMED else ''}"
            if others
            else ""
        )
        lines.append(f"{source}: rule {rule}, {rows} rows: {first['message']}{more}")
    return lines
