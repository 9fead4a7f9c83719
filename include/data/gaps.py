"""Pauses in sources that should arrive steadily. They are reported, but do not reject rows.

A project declares such sources in its ``expectations.GAPS``: source -> ``group``, ``time``,
``longest``.
"""

from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from include.data import tables
from include.data.printable import brief
from include.data.rules import END_OF_TIME
from include.projects.base import Project, Source


def expected(project: Project, source: Source) -> Any | None:
    return getattr(project.module("expectations"), "GAPS", {}).get(source.name)


def among(project: Project, source: Source, gap: Any, rows: pd.DataFrame) -> list[tuple[int, str]]:
    """Return gaps before or after a new row: (index of the new row, message).

    Gaps between a new row and the rows in the table are included.
    """
    known = tables.read(project, source.name, known_by=END_OF_TIME, columns=[gap.group, gap.time])
    times = pd.concat([rows[[gap.group, gap.time]].assign(row=rows.index), known.assign(row=-1)]).sort_values(
        [gap.group, gap.time], kind="stable"
    )
    after = times.groupby(gap.group)[[gap.time, "row"]].shift(1)
    long = ((times[gap.time] - after[gap.time]) > gap.longest) & ((times["row"] >= 0) | (after["row"] >= 0))
    return [
        (int(row if row >= 0 else before), _message(gap, group, start, f"to {end:%Y-%m-%d %H:%M}"))
        for group, end, row, start, before in zip(
            *(times.loc[long, c] for c in (gap.group, gap.time, "row")),
            *(after.loc[long, c] for c in (gap.time, "row")),
            strict=True,
        )
    ]


def until_now(project: Project, source: Source, cutoff: datetime) -> list[str]:
    """Return a message for each group whose newest row is too long before the cutoff."""
    gap = expected(project, source)
    if gap is None:
        return []
    newest = (
        tables.read(project, source.name, known_by=cutoff, columns=[gap.group, gap.time])
        .groupby(gap.group)[gap.time]
        .max()
    )
    silent = newest[np.asarray(pd.Timestamp(cutoff) - newest > gap.longest, dtype=bool)] if len(newest) else newest
    return [
        f"{source.name}: {_message(gap, group, start, f'until the cutoff {cutoff:%Y-%m-%d %H:%M}')}"
        for group, start in silent.items()
    ]


def _message(gap: Any, group: str, start: datetime, end: str) -> str:
    return (
        f"gap: nothing for {gap.group}={brief(group)} from {start:%Y-%m-%d %H:%M} {end}, longer than {gap.longest}; ask"
        " the upstream for what is missing"
    )
