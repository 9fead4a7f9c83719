"""Retrain requests: asked for by anybody, claimed by one run, settled by the gate and by deploy. Their states: ``include.ledger.lifecycle``.

Whoever works on a request holds a lease. Each step renews it. ``include.ledger.overdue`` gives back what was held for too long.
"""

import hashlib
import json
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from include import times
from include.ledger import lifecycle
from include.ledger.database import transaction
from include.ledger.schema import REQUESTS
from include.times import iso, stamp


class Request(NamedTuple):
    """A wish to have a model trained.

    ``deadline``, ``not_before`` and ``held_since`` are real time (ISO, UTC). ``attempts`` counts those that came to nothing.
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
    project: str, *, cutoff: datetime | str, reason: str, asked_by: str, episode: str | None = None, parameters: dict[str, Any] | None = None,
    by_run: bool = False,
) -> Request:  # fmt: skip
    """Write a request down. Asking again for the same thing (episode, or reason and cutoff and parameters) returns the first one.

    Args:
        by_run: a run of ``train`` asks for itself. The run (``asked_by``) then is the identity: its retry finds its request, whatever the clock says.
            Another run's request for the same thing is returned as long as it is live; where it has ended, this is a new one.
    """
    wanted = parameters or {}
    if by_run:
        same = (REQUESTS.c.project == project, REQUESTS.c.cutoff == iso(cutoff), REQUESTS.c.reason == reason, REQUESTS.c.state.in_(LIVE))
        with transaction() as connection:
            mine = connection.execute(_REQUEST.where(REQUESTS.c.project == project, REQUESTS.c.asked_by == asked_by)).first()
            others = [] if mine else [Request(*row) for row in connection.execute(_REQUEST.where(*same).order_by(*_OLDEST_FIRST))]
        if mine:
            return Request(*mine)
        if joined := next((one for one in others if one.parameters == wanted), None):
            return joined
    subject = episode or (f"run|{asked_by}" if by_run else f"{reason}|{iso(cutoff)}|{json.dumps(wanted, sort_keys=True)}")
    request_id = hashlib.sha256(f"{project}|{subject}".encode()).hexdigest()[:16]
    try:
        with transaction() as connection:
            connection.execute(
                insert(REQUESTS).values(
                    id=request_id, project=project, cutoff=iso(cutoff), reason=reason, asked_by=asked_by, episode=episode,
                    parameters=wanted, state="open", outcome={}, recorded_at=stamp(), attempts=0, **_waiting("open"),
                )
            )  # fmt: skip
    except IntegrityError:
        pass  # asked before
    return get_request(request_id)


def get_request(request_id: str) -> Request:
    with transaction() as connection:
        row = connection.execute(_REQUEST.where(REQUESTS.c.id == request_id)).one()
    return Request(*row)


def asked_before(project: str, *, cutoff: datetime | str, reason: str, parameters: dict[str, Any]) -> Request | None:
    """The newest request for the same thing, whatever became of it."""
    same = [r for r in requests(project) if (r.cutoff, r.reason, r.parameters) == (iso(cutoff), reason, parameters)]
    return next((r for r in same if r.live), same[-1] if same else None)


def requests(project: str) -> list[Request]:
    """All requests of a project, oldest cutoff first."""
    with transaction() as connection:
        return [Request(*row) for row in connection.execute(_REQUEST.where(REQUESTS.c.project == project).order_by(*_OLDEST_FIRST))]


# --- train --------------------------------------------------------------------------------------------------------------------------


def claim_request(project: str, dag_run: str, *, only: str | None = None) -> Request | None:
    """The request that this DAG run works on: the one it claimed before (a retry), else the oldest open one, else None.

    A run claims one request at most, and a request is claimed by one run at most. The lease begins anew. A request that pauses after an attempt that came
    to nothing is taken up by the run that had it, by a run that is told its id, or by any run when the pause is over.

    Args:
        only: claim this request, or none.
    """
    for _ in range(2):
        try:
            with transaction() as connection:
                return _claim(connection, project, dag_run, only)
        except IntegrityError:  # another try of this very run has claimed one since: that is the one
            continue
    raise RuntimeError(f"{dag_run} of {project} can neither find its request nor claim one")


def _claim(connection, project: str, dag_run: str, only: str | None) -> Request | None:
    mine = connection.execute(_REQUEST.where(REQUESTS.c.project == project, REQUESTS.c.dag_run == dag_run)).first()
    if mine:
        connection.execute(update(REQUESTS).where(REQUESTS.c.id == mine.id, REQUESTS.c.state == "claimed").values(deadline=_deadline("claimed")))
        return Request(*connection.execute(_REQUEST.where(REQUESTS.c.id == mine.id)).one())
    mine_before = REQUESTS.c.last_run == dag_run
    rested = or_(REQUESTS.c.not_before.is_(None), REQUESTS.c.not_before <= stamp(), mine_before)
    waiting = (
        select(REQUESTS.c.id).where(REQUESTS.c.project == project, REQUESTS.c.state == "open", rested).order_by(mine_before.is_(True).desc(), *_OLDEST_FIRST)
    )
    # Of one that is named ``_take`` looks at the state.
    named = select(REQUESTS.c.id).where(REQUESTS.c.project == project, REQUESTS.c.id == only)
    for request_id in connection.execute(waiting if only is None else named).scalars().all():
        if _take(connection, request_id, dag_run):
            return Request(*connection.execute(_REQUEST.where(REQUESTS.c.id == request_id)).one())
    return None


def _take(connection, request_id: str, dag_run: str) -> bool:
    free = (REQUESTS.c.id == request_id, REQUESTS.c.state == "open")
    held = {"dag_run": dag_run, "last_run": None, "held_since": stamp()}
    return bool(connection.execute(update(REQUESTS).where(*free).values(state="claimed", **held, **_waiting("claimed"))).rowcount)


def keep_request(request_id: str, dag_run: str) -> bool:
    """Renew this run's lease before a step begins. False: the request is, or was given to, somebody else. One that is not on record is nobody's.

    A run that lost its request to a deadline, and is cleared before another run has claimed it, takes it back.
    """
    with transaction() as connection:
        found = connection.execute(_REQUEST.where(REQUESTS.c.id == request_id)).first()
        if found is None:
            return True
        if found.state == "open" and found.last_run == dag_run:
            return _take(connection, request_id, dag_run)
        if found.state == "claimed" and found.dag_run == dag_run:
            mine = (REQUESTS.c.id == request_id, REQUESTS.c.dag_run == dag_run, REQUESTS.c.state == "claimed")
            connection.execute(update(REQUESTS).where(*mine).values(deadline=_deadline("claimed")))
        return found.dag_run == dag_run


def release_request(request_id: str, dag_run: str) -> bool:
    """Give a claimed request back: it is open again, for another run. False if this run does not hold it, or has brought it to an end."""
    mine = (REQUESTS.c.id == request_id, REQUESTS.c.dag_run == dag_run, REQUESTS.c.state == "claimed")
    with transaction() as connection:
        given = {"state": "open", "dag_run": None, "held_since": None, **_waiting("open")}
        return bool(connection.execute(update(REQUESTS).where(*mine).values(**given)).rowcount)


def conclude_training(request_id: str, dag_run: str, verdict: str, **facts: Any) -> bool:
    """Write the gate's verdict, ``passed`` or ``refused``. False if this run does not hold the request: another one has it, or it has ended.

    A run that concludes again what it has concluded changes nothing but the facts.
    """
    keep_request(request_id, dag_run)
    with transaction() as connection:
        found = Request(*connection.execute(_REQUEST.where(REQUESTS.c.id == request_id).with_for_update()).one())
        if found.dag_run != dag_run or found.state not in ("claimed", verdict):
            return False
        changes = {} if found.state == verdict else {"state": verdict, "attempts": 0, "held_since": None, **_waiting(verdict)}
        if changes and verdict == "passed":
            # Its own event starts deploy. The sweep sends another one only after a while.
            changes["not_before"] = iso(times.utc_now() + lifecycle.FIRST_PAUSE)
        connection.execute(update(REQUESTS).where(REQUESTS.c.id == request_id).values(outcome={**found.outcome, **facts}, **changes))
    return True


# --- deploy -------------------------------------------------------------------------------------------------------------------------


def keep_deployment(request_id: str, deploy_run: str) -> None:
    """A run of ``deploy`` begins to roll the request's version out, or goes on: it holds the request, and the lease is renewed.

    A request that has ended, and one whose training was never concluded, stays as it is: a person may deploy any version.
    """
    with transaction() as connection:
        mine = {"state": "deploying", "deploy_run": deploy_run, **_waiting("deploying")}
        begun = update(REQUESTS).where(REQUESTS.c.id == request_id, REQUESTS.c.state == "passed").values(held_since=stamp(), **mine)
        if not connection.execute(begun).rowcount:  # taken over, if the run before it is gone: deploy has one run at a time
            taken = update(REQUESTS).where(REQUESTS.c.id == request_id, REQUESTS.c.state == "deploying")
            connection.execute(taken.where(REQUESTS.c.deploy_run == deploy_run).values(**mine))
            connection.execute(taken.where(REQUESTS.c.deploy_run != deploy_run).values(held_since=stamp(), **mine))


def settle_request(request_id: str, state: str, **outcome: Any) -> None:
    """Write how a request ended, or that it waits; further facts are added to those already there.

    Raises:
        ValueError: the request's state does not lead to that one (``include.ledger.lifecycle``).
    """
    with transaction() as connection:
        # Locked, on Postgres, until it is written: train and deploy may both add to it.
        found = connection.execute(select(REQUESTS.c.state, REQUESTS.c.outcome).where(REQUESTS.c.id == request_id).with_for_update()).one()
        lifecycle.refuse_jump("request", found.state, state)
        changes = {} if found.state == state else {"state": state, "held_since": None, **_waiting(state)}
        connection.execute(update(REQUESTS).where(REQUESTS.c.id == request_id).values(outcome={**found.outcome, **outcome}, **changes))


def _waiting(state: str) -> dict[str, str | None]:
    """The columns of a state that begins now and needs no pause."""
    return {"not_before": None, "deadline": _deadline(state)}


def _deadline(state: str) -> str | None:
    by = lifecycle.deadline("request", state, times.utc_now())
    return iso(by) if by else None
