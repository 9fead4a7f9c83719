"""Freezes: while one holds, nothing of the project is trained, promoted or rolled out. Who asked for it and why stands beside it."""

from typing import NamedTuple

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from include.ledger.database import transaction
from include.ledger.records import decide
from include.ledger.schema import FREEZES
from include.times import stamp

EVERYTHING = "*"  # in the place of a project: all of them


class Freeze(NamedTuple):
    """``project`` is one, or ``*`` for all; ``since`` is the wall clock's."""

    project: str
    by: str
    why: str
    since: str

    def __str__(self) -> str:
        whom = "everything is" if self.project == EVERYTHING else f"{self.project} is"
        how = "airloop thaw --all" if self.project == EVERYTHING else f"airloop thaw {self.project}"
        return f"{whom} frozen since {self.since} by {self.by}: {self.why} (`{how}` ends it)"


class Frozen(Exception):
    """What was to begin must not, while the project is frozen; the message says by whom, why and since when."""


_FREEZE = select(*(FREEZES.c[name] for name in Freeze._fields))


def freeze(project: str, *, by: str, why: str) -> Freeze:
    """Freeze a project, or all of them; a freeze that is there already stays as it is. Gives the one that holds."""
    wanted = Freeze(project, by, why, stamp())
    try:
        with transaction() as connection:
            connection.execute(insert(FREEZES).values(**wanted._asdict()))
    except IntegrityError:
        with transaction() as connection:
            row = connection.execute(_FREEZE.where(FREEZES.c.project == project)).first()
        return Freeze(*row) if row else freeze(project, by=by, why=why)  # thawed this very moment
    decide(project, "freeze", f"{wanted.since} by {by}", verdict="frozen", reasons=[why], cutoff=wanted.since)
    return wanted


def thaw(project: str, *, by: str) -> Freeze | None:
    """End a freeze; gives the one that held, None if there was none. The freeze of all and those of single projects are ended each for itself."""
    with transaction() as connection:
        row = connection.execute(_FREEZE.where(FREEZES.c.project == project).with_for_update()).first()
        connection.execute(delete(FREEZES).where(FREEZES.c.project == project))
    if row is None:
        return None
    decide(project, "freeze", f"{stamp()} by {by}", verdict="thawed", reasons=[f"was frozen since {row.since} by {row.by}: {row.why}"], cutoff=stamp())
    return Freeze(*row)


def freeze_of(project: str) -> Freeze | None:
    """The freeze that holds for a project: its own, else that of all."""
    with transaction() as connection:
        found = [Freeze(*row) for row in connection.execute(_FREEZE.where(FREEZES.c.project.in_([project, EVERYTHING])).order_by(FREEZES.c.project.desc()))]
    return found[0] if found else None


def freezes() -> list[Freeze]:
    """All that hold now."""
    with transaction() as connection:
        return [Freeze(*row) for row in connection.execute(_FREEZE.order_by(FREEZES.c.project))]


def refuse_frozen(project: str, what: str) -> None:
    """Raises Frozen if the project is: before anything begins that trains, promotes or rolls out.

    Args:
        what: is not to begin, as a sentence begins: "version 3 is not promoted".
    """
    if held := freeze_of(project):
        raise Frozen(f"{what}: {held}")
