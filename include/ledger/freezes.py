"""Freezes: while one is active, nothing of the project is trained, promoted or rolled out.

The user and the reason are stored with it.
"""

from typing import NamedTuple

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from include.ledger.database import transaction
from include.ledger.records import decide
from include.ledger.schema import FREEZES
from include.times import stamp

# Used instead of a project name: all projects.
EVERYTHING = "*"


class Freeze(NamedTuple):
    """A freeze.

    ``project`` is a project name, or ``*`` for all. ``since`` is wall-clock time.
    """

    project: str
    by: str
    why: str
    since: str

    def __str__(self) -> str:
        whom = "everything is" if self.project == EVERYTHING else f"{self.project} is"
        how = "airloop thaw --all" if self.project == EVERYTHING else f"airloop thaw {self.project}"
        return f"{whom} frozen since {self.since} by {self.by}: {self.why} (`{how}` ends it)"


class FrozenError(Exception):
    """Raised when an action must not begin while the project is frozen.

    The message names the user, the reason and the start of the freeze.
    """


_FREEZE = select(*(FREEZES.c[name] for name in Freeze._fields))


def freeze(project: str, *, by: str, why: str) -> Freeze:
    """Freeze a project, or all of them. Return the active freeze.

    An existing freeze is left unchanged.
    """
    wanted = Freeze(project, by, why, stamp())
    try:
        with transaction() as connection:
            connection.execute(insert(FREEZES).values(**wanted._asdict()))
    except IntegrityError:
        with transaction() as connection:
            row = connection.execute(_FREEZE.where(FREEZES.c.project == project)).first()
        # The project was thawed between the two transactions.
        return Freeze(*row) if row else freeze(project, by=by, why=why)
    decide(project, "freeze", f"{wanted.since} by {by}", verdict="frozen", reasons=[why], cutoff=wanted.since)
    return wanted


def thaw(project: str, *, by: str) -> Freeze | None:
    """End a freeze and return it, or return None if there was none.

    The freeze of all projects and those of single projects are separate.
    """
    with transaction() as connection:
        row = connection.execute(_FREEZE.where(FREEZES.c.project == project).with_for_update()).first()
        connection.execute(delete(FREEZES).where(FREEZES.c.project == project))
    if row is None:
        return None
    decide(
        project,
        "freeze",
        f"{stamp()} by {by}",
        verdict="thawed",
        reasons=[f"was frozen since {row.since} by {row.by}: {row.why}"],
        cutoff=stamp(),
    )
    return Freeze(*row)


def freeze_of(project: str) -> Freeze | None:
    """Return the freeze that applies to a project: its own, else that of all projects.

    Return None if there is none.
    """
    with transaction() as connection:
        freezes = [
            Freeze(*row)
            for row in connection.execute(
                _FREEZE.where(FREEZES.c.project.in_([project, EVERYTHING])).order_by(FREEZES.c.project.desc())
            )
        ]
    return freezes[0] if freezes else None


def freezes() -> list[Freeze]:
    """Return all active freezes."""
    with transaction() as connection:
        return [Freeze(*row) for row in connection.execute(_FREEZE.order_by(FREEZES.c.project))]


def refuse_frozen(project: str, what: str) -> None:
    """Raise Frozen if the project is frozen. Call it before training, promotion and rollout.

    Args:
        what: the refused action, as the beginning of a sentence: "version 3 is not promoted".
    """
    if held := freeze_of(project):
        raise FrozenError(f"{what}: {held}")
