"""Rewind: remove the ledger's state for cutoffs after a time, to correct a wrong cutoff."""

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from include.ledger.database import transaction
from include.ledger.episodes import episodes
from include.ledger.overdue import fail_request
from include.ledger.records import decide
from include.ledger.requests import LIVE, Request, requests
from include.ledger.schema import CLOCKS, DECISIONS, EPISODES, RUN_CUTOFFS, STAGES
from include.times import iso, stamp

# The ledger's decisions of this kind record the user and the reason.
REWIND = "rewind"
# Decisions that block later ones. Those about gates and deployments are history and block nothing.
BLOCKING = "monitor"


class Later(NamedTuple):
    """The ledger's state for cutoffs after a time.

    Attributes:
        stages: stage -> the newest cutoff.
        decisions: number of ``monitor``'s decisions.
        runs: number of DAG runs that keep such a cutoff.
        episodes: number of drift episodes that were opened or closed after it.
        requests: live requests for such a cutoff.
        clock: the replay's time if it is later, otherwise None.
    """

    stages: dict[str, str]
    decisions: int
    runs: int
    episodes: int
    requests: list[Request]
    clock: str | None

    def __bool__(self) -> bool:
        return any(self)


def later_than(project: str, until: datetime | str) -> Later:
    """Return the ledger's state for cutoffs after ``until``. It changes nothing."""
    end = iso(until)
    newest = (
        select(STAGES.c.stage, func.max(STAGES.c.cutoff))
        .where(STAGES.c.project == project, STAGES.c.cutoff > end)
        .group_by(STAGES.c.stage)
    )
    with transaction() as connection:
        stages = {str(stage): str(cutoff) for stage, cutoff in connection.execute(newest)}
        judged = _count(
            connection,
            DECISIONS,
            DECISIONS.c.project == project,
            DECISIONS.c.what == BLOCKING,
            DECISIONS.c.cutoff > end,
        )
        runs = _count(connection, RUN_CUTOFFS, RUN_CUTOFFS.c.project == project, RUN_CUTOFFS.c.cutoff > end)
        clock = connection.execute(select(CLOCKS.c.now).where(CLOCKS.c.project == project, CLOCKS.c.now > end)).scalar()
    changed = [
        one
        for one in episodes(project)
        if one["opened"] > end and one["closed"] != one["opened"] or (one["closed"] or "") > end >= one["opened"]
    ]
    live = [one for one in requests(project) if one.cutoff > end and one.state in LIVE]
    return Later(stages, judged, runs, len(changed), live, clock)


def rewind(
    project: str, until: datetime | str, *, features_until: str | None, by: str, why: str, also: list[str]
) -> None:
    """Remove what ``later_than`` returns, and record that. Repeating it only adds a record.

    Requests for such cutoffs fail. A request that is being deployed is left unchanged, because its
    rollout can be rolled back separately. Episodes that were opened after ``until`` end
    immediately. The newest episode that was closed after it is opened again.

    Args:
        features_until: the time up to which features are published now. Records of
            ``build_features`` for later cutoffs are removed, because nothing of them is left. None:
            no features are left.
        also: what else was removed, for the record.
    """
    end, features = iso(until), features_until or ""
    seen = later_than(project, end)
    for one in seen.requests:
        if one.state != "deploying":
            fail_request(one, f"cutoff {one.cutoff} was taken back by {by}: {why}")
    with transaction() as connection:
        connection.execute(delete(STAGES).where(STAGES.c.project == project, STAGES.c.cutoff > end))
        connection.execute(
            delete(STAGES).where(
                STAGES.c.project == project, STAGES.c.stage == "build_features", STAGES.c.cutoff > features
            )
        )
        connection.execute(
            delete(DECISIONS).where(
                DECISIONS.c.project == project, DECISIONS.c.what == BLOCKING, DECISIONS.c.cutoff > end
            )
        )
        connection.execute(delete(RUN_CUTOFFS).where(RUN_CUTOFFS.c.project == project, RUN_CUTOFFS.c.cutoff > end))
        connection.execute(update(CLOCKS).where(CLOCKS.c.project == project, CLOCKS.c.now > end).values(now=end))
        _rewind_episodes(connection, project, end)
    taken = [f"stage {stage} up to {cutoff}" for stage, cutoff in seen.stages.items()]
    decide(project, REWIND, f"{stamp()} by {by}", verdict="rewound", reasons=[why, *taken, *also], cutoff=end)


def _rewind_episodes(connection: Connection, project: str, end: str) -> None:
    mine = EPISODES.c.project == project
    connection.execute(update(EPISODES).where(mine, EPISODES.c.opened > end).values(closed=EPISODES.c.opened))
    ended = (
        connection.execute(
            select(EPISODES.c.id)
            .where(mine, EPISODES.c.opened <= end, EPISODES.c.closed > end)
            .order_by(EPISODES.c.opened)
        )
        .scalars()
        .all()
    )
    is_open = connection.execute(select(EPISODES.c.id).where(mine, EPISODES.c.closed.is_(None))).first()
    for one in ended:
        again = None if one == ended[-1] and not is_open else end
        connection.execute(update(EPISODES).where(EPISODES.c.id == one).values(closed=again))


def _count(connection: Connection, table: Any, *where: Any) -> int:
    return int(connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one())
