"""How old the newest data of a project is: history that is loaded at today's cutoff makes features without values, up to today."""

from datetime import datetime, timedelta

from include import ledger
from include.data import layout, tables
from include.ledger import iso, moment
from include.projects.base import Project

# Sources that come monthly are not far. Features are computed for each hour or day up to the cutoff, so that a longer silence is worth a sentence.
FAR = timedelta(days=35)


def newest_row(project: Project) -> datetime | None:
    """Return the latest time at which a row of any source became known; None: there is no row."""
    there = [(source, table) for source in project.sources if (table := tables.open_table(layout.table(project, source.name))) is not None]
    return max((latest for source, table in there for _, _, latest in tables.file_ranges(table, source.known_at)), default=None)


def warning(project: Project, cutoff: str | datetime) -> str | None:
    """What to say if the newest row is far older than a cutoff, with what to do; None: it is not."""
    newest, at = newest_row(project), moment(iso(cutoff))
    if newest is None or at - newest <= FAR:
        return None
    ends = iso(newest)
    # The cutoff that is named lies after the newest row.
    to = iso(newest.replace(microsecond=0) + timedelta(seconds=1)).removesuffix("Z")
    return (
        f"the newest row was known at {ends}, {(at - newest).days} days before the cutoff {iso(cutoff)}: features after it have no values. Is it history? "
        f"Then run each stage at its own time: `airloop run {project.name} ingest --cutoff {to}`. Were features built already? "
        f"`airloop rewind {project.name} --to {to} --reason ...` takes them back. Is it not history? Then ask the upstream for what is missing"
    )


def warn(project: Project, cutoff: str) -> str | None:
    """``warning``, and a notice in the ledger, once for each time at which the data ends."""
    text = warning(project, cutoff)
    if text:
        ledger.note(project.name, f"data ends long before the cutoff, {text.partition(',')[0]}", text)
    return text
