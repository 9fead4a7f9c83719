"""The age of a project's newest data.

If historical data is loaded at the current cutoff, features after the data's end do not have
values.
"""

from datetime import datetime, timedelta

from include import ledger
from include.data import layout, tables
from include.ledger import iso, moment
from include.projects.base import Project

# Monthly sources are within this limit. Features are computed for each hour or day up to the
# cutoff, so a longer pause needs a warning.
FAR = timedelta(days=35)


def newest_row(project: Project) -> datetime | None:
    """Return the latest time at which a row of any source became known, or None."""
    there = [
        (source, table)
        for source in project.sources
        if (table := tables.open_table(layout.table(project, source.name))) is not None
    ]
    return max(
        (latest for source, table in there for _, _, latest in tables.file_ranges(table, source.known_at)), default=None
    )


def warning(project: Project, cutoff: str | datetime) -> str | None:
    """Return a warning with instructions if the newest row is much older than a cutoff, or None."""
    newest, at = newest_row(project), moment(iso(cutoff))
    if newest is None or at - newest <= FAR:
        return None
    ends = iso(newest)
    # The suggested cutoff is after the newest row.
    to = iso(newest.replace(microsecond=0) + timedelta(seconds=1)).removesuffix("Z")
    return (
        f"the newest row was known at {ends}, {(at - newest).days} days before the cutoff {iso(cutoff)}: features after"
        f" it have no values. Is it history? Then run each stage at its own time: `airloop run {project.name} ingest"
        f" --cutoff {to}`. Were features built already? `airloop rewind {project.name} --to {to} --reason ...` takes"
        " them back. Is it not history? Then ask the upstream for what is missing"
    )


def warn(project: Project, cutoff: str) -> str | None:
    """Return ``warning``, and write it as a notice to the ledger, once for each end of the data."""
    text = warning(project, cutoff)
    if text:
        ledger.note(project.name, f"data ends long before the cutoff, {text.partition(',')[0]}", text)
    return text
