"""Retrain requests: made by any user or DAG, claimed by one run, settled by the gate and by deploy.

Their states are in ``include.ledger.lifecycle``. A run that works on a request holds a lease. Each
step renews it. ``include.ledger.overdue`` returns requests that were held for too long.
"""

import hashlib
import json
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from include import times
from include.ledger import lifecycle
from include.ledger.database import transaction
from include.ledger.schema import REQUESTS
from include.times import iso, stamp


class Request(NamedTuple):
    """A request to train a model.

    ``deadline``, ``not_before`` and ``held_since`` are real time (ISO, UTC). ``attempts`` counts
    unsuccessful attempts.
    """

    id: str
    project: str
    cutoff: str
    reason: str
    asked_by: str
    episode: str | None
    parameters: dict[str, Any]
    state: str
    dag_run: str | None
    outcome: dict[str, Any]
    attempts: int
    not_before: str | None
    deadline: str | None
    held_since: str | None
    last_run: str | None
    deploy_run: str | None

    @property
    def live(self) -> bool:
        return not lifecycle.state("request", self.state).final

    def __str__(self) -> str:
        return f"request {self.id} ({self.reason}, cutoff {self.cutoff}) is {self.state}"


_REQUEST = select(*(REQUESTS.c[name] for name in Request._fields))
_OLDEST_FIRST = (REQUESTS.c.cutoff, REQUESTS.c.recorded_at, REQUESTS.c.id)
LIVE = lifecycle.live("request")


def request_retraining(
    project: str, *, cutoff: datetime | str, reason: str, asked_by: str, episode: str | None = None, parameters: dict[str, Any] | None = None,  # noqa: E501
    by_run: bool = False,
) -> Request:  # fmt: skip
    """Record a request, or return the first one for the same thing.

    Two requests are the same if they have the same episode, or the same reason, cutoff and
    parameters.

    Args:
        by_run: a run of ``train`` makes the request for itself. The run (``asked_by``) then is the
            identity, so its retry finds its request at any time. Another run's live request for the
            same thing is returned instead. If that one has ended, a new one is made.
    """
    wanted = parameters or {}
    if by_run:
        same = (
            REQUESTS.c.project == project,
            REQUESTS.c.cutoff == iso(cutoff),
            REQUESTS.c.reason == reason,
            REQUESTS.c.state.in_(LIVE),
        )
        with transaction() as connection:
            mine = connection.execute(
                _REQUEST.where(REQUESTS.c.project == project, REQUESTS.c.asked_by == asked_by)
            ).first()
            others = (
                []
                if mine
                else [Request(*row) for row in connection.execute(_REQUEST.where(*same).order_by(*_OLDEST_FIRST))]
            )
        if mine:
            return Request(*mine)
        if joined := next((one for one in others if one.parameters == wanted), None):
            return joined
    subject = episode or (
        f"run|{asked_by}" if by_run else f"{reason}|{iso(cutoff)}|{json.dumps(wanted, sort_keys=True)}"
    )
    request_id = hashlib.sha256(f"{project}|{subject}".encode()).hexdigest()[:16]
    try:
        with transaction() as connection:
            connection.execute(
                insert(REQUESTS).values(
                    id=request_id,
                    project=project,
                    cutoff=iso(cutoff),
                    reason=reason,
                    asked_by=asked_by,
                    episode=episode,
                    parameters=wanted,
                    state="open",
                    outcome={},
                    recorded_at=stamp(),
                    attempts=0,
                    **_waiting("open"),
                )
            )
    except IntegrityError:
        # The request exists already.
        pass
    return get_request(request_id)


def get_request(request_id: str) -> Request:
    with transaction() as connection:
        row = connection.execute(_REQUEST.where(REQUESTS.c.id == request_id)).one()
    return Request(*row)


def asked_before(project: str, *, cutoff: datetime | str, reason: str, parameters: dict[str, Any]) -> Request | None:
    """Return a live request for the same thing, else the newest one in any state.

    Return None if there is none.
    """
    same = [r for r in requests(project) if (r.cutoff, r.reason, r.parameters) == (iso(cutoff), reason, parameters)]
    return next((r for r in same if r.live), same[-1] if same else None)


def requests(project: str) -> list[Request]:
    """All requests of a project, oldest cutoff first."""
    with transaction() as connection:
        return [
            Request(*row)
            for row in connection.execute(_REQUEST.where(REQUESTS.c.project == project).order_by(*_OLDEST_FIRST))
        ]


# --- train ------------------------------------------------------------------------------------


def claim_request(project: str, dag_run: str, *, only: str | None = None) -> Request | None:
    """Return the request that this DAG run works on, or None if there is none.

    It is the one that the run claimed before (a retry), else the oldest open one. A run claims at
    most one request, and a request is claimed by at most one run. The lease restarts.

    A request that pauses after a failed attempt can be claimed by the run that had it, or by a run
    that is given its id. Any run can claim it when the pause is over.

    Args:
        only: claim this request, or none.
    """
    for _ in range(2):
        try:
            with transaction() as connection:
                return _claim(connection, project, dag_run, only)
        # Another try of this run has claimed one in the meantime. The next pass finds it.
        except IntegrityError:
            continue
    raise RuntimeError(f"{dag_run} of {project} cannot find its request, and cannot claim one")


def _claim(connection: Connection, project: str, dag_run: str, only: str | None) -> Request | None:
    mine = connection.execute(_REQUEST.where(REQUESTS.c.project == project, REQUESTS.c.dag_run == dag_run)).first()
    if mine:
        connection.execute(
            update(REQUESTS)
            .where(REQUESTS.c.id == mine.id, REQUESTS.c.state == "claimed")
            .values(deadline=_deadline("claimed"))
        )
        return Request(*connection.execute(_REQUEST.where(REQUESTS.c.id == mine.id)).one())
    mine_before = REQUESTS.c.last_run == dag_run
    rested = or_(REQUESTS.c.not_before.is_(None), REQUESTS.c.not_before <= stamp(), mine_before)
    waiting = (
        select(REQUESTS.c.id)
        .where(REQUESTS.c.project == project, REQUESTS.c.state == "open", rested)
        .order_by(mine_before.is_(True).desc(), *_OLDEST_FIRST)
    )
    # For a named request, ``_take`` checks the state.
    named = select(REQUESTS.c.id).where(REQUESTS.c.project == project, REQUESTS.c.id == only)
    for request_id in connection.execute(waiting if only is None else named).scalars().all():
        if _take(connection, request_id, dag_run):
            return Request(*connection.execute(_REQUEST.where(REQUESTS.c.id == request_id)).one())
    return None


def _take(connection: Connection, request_id: str, dag_run: str) -> bool:
    free = (REQUESTS.c.id == request_id, REQUESTS.c.state == "open")
    held = {"dag_run": dag_run, "last_run": None, "held_since": stamp()}
    return bool(
        connection.execute(
            update(REQUESTS).where(*free).values(state="claimed", **held, **_waiting("claimed"))
        ).rowcount
    )


def keep_request(request_id: str, dag_run: str) -> bool:
    """Renew this run's lease before a step begins. Return False if another run has the request.

    A request that is not on record does not have a lease, so the result is True. A run that lost
    its request to a deadline, and is cleared before another run claims it, takes it back.
    """
    with transaction() as connection:
        row = connection.execute(_REQUEST.where(REQUESTS.c.id == request_id)).first()
        if row is None:
            return True
        if row.state == "open" and row.last_run == dag_run:
            return _take(connection, request_id, dag_run)
        if row.state == "claimed" and row.dag_run == dag_run:
            claim = (REQUESTS.c.id == request_id, REQUESTS.c.dag_run == dag_run, REQUESTS.c.state == "claimed")
            connection.execute(update(REQUESTS).where(*claim).values(deadline=_deadline("claimed")))
        holds: bool = row.dag_run == dag_run
        return holds


def release_request(request_id: str, dag_run: str) -> bool:
    """Return a claimed request to the queue, for another run.

    Return False if this run does not hold it, or has concluded it.
    """
    mine = (REQUESTS.c.id == request_id, REQUESTS.c.dag_run == dag_run, REQUESTS.c.state == "claimed")
    with transaction() as connection:
        given = {"state": "open", "dag_run": None, "held_since": None, **_waiting("open")}
        return bool(connection.execute(update(REQUESTS).where(*mine).values(**given)).rowcount)


def conclude_training(request_id: str, dag_run: str, verdict: str, **facts: Any) -> bool:
    """Record the gate's verdict, ``passed`` or ``refused``.

    Return False if this run does not hold the request: another run has it, or it has ended.
    Repeating it changes only the facts.
    """
    keep_request(request_id, dag_run)
    with transaction() as connection:
        request = Request(*connection.execute(_REQUEST.where(REQUESTS.c.id == request_id).with_for_update()).one())
        if request.dag_run != dag_run or request.state not in ("claimed", verdict):
            return False
        changes = (
            {}
            if request.state == verdict
            else {"state": verdict, "attempts": 0, "held_since": None, **_waiting(verdict)}
        )
        if changes and verdict == "passed":
            # The request's own event starts deploy. The sweep sends another one only after a pause.
            changes["not_before"] = iso(times.utc_now() + lifecycle.FIRST_PAUSE)
        connection.execute(
            update(REQUESTS).where(REQUESTS.c.id == request_id).values(outcome={**request.outcome, **facts}, **changes)
        )
    return True


# --- deploy -----------------------------------------------------------------------------------


def keep_deployment(request_id: str, deploy_run: str) -> None:
    """Hold the request for a run of ``deploy`` that rolls out its version, and renew the lease.

    A request that has ended, or whose training was never concluded, is left unchanged: a user may
    deploy any version.
    """
    with transaction() as connection:
        mine = {"state": "deploying", "deploy_run": deploy_run, **_waiting("deploying")}
        begun = (
            update(REQUESTS)
            .where(REQUESTS.c.id == request_id, REQUESTS.c.state == "passed")
            .values(held_since=stamp(), **mine)
        )
        # Take it over if the previous run is gone, because deploy has one run at a time.
        if not connection.execute(begun).rowcount:
            taken = update(REQUESTS).where(REQUESTS.c.id == request_id, REQUESTS.c.state == "deploying")
            connection.execute(taken.where(REQUESTS.c.deploy_run == deploy_run).values(**mine))
            connection.execute(taken.where(REQUESTS.c.deploy_run != deploy_run).values(held_since=stamp(), **mine))


def settle_request(request_id: str, state: str, **outcome: Any) -> None:
    """Record how a request ended, or that it waits. The facts are added to the existing ones.

    Raises:
        ValueError: ``include.ledger.lifecycle`` does not allow the transition.
    """
    with transaction() as connection:
        # The row is locked on Postgres until it is written, because train and deploy may both
        # change it.
        row = connection.execute(
            select(REQUESTS.c.state, REQUESTS.c.outcome).where(REQUESTS.c.id == request_id).with_for_update()
        ).one()
        lifecycle.refuse_jump("request", row.state, state)
        changes = {} if row.state == state else {"state": state, "held_since": None, **_waiting(state)}
        connection.execute(
            update(REQUESTS).where(REQUESTS.c.id == request_id).values(outcome={**row.outcome, **outcome}, **changes)
        )


def _waiting(state: str) -> dict[str, str | None]:
    """Return the columns of a state that begins now without a pause."""
    return {"not_before": None, "deadline": _deadline(state)}


def _deadline(state: str) -> str | None:
    by = lifecycle.deadline("request", state, times.utc_now())
    return iso(by) if by else None
