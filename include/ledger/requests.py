"""Retrain requests: asked for by anybody, claimed by one run, settled by the gate and by deploy."""

import hashlib
import json
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from include.ledger.database import transaction
from include.ledger.schema import REQUESTS
from include.times import iso, stamp


class Request(NamedTuple):
    """A wish to have a model trained."""

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


_REQUEST = select(*(REQUESTS.c[name] for name in Request._fields))


def request_retraining(
    project: str, *, cutoff: datetime | str, reason: str, asked_by: str, episode: str | None = None, parameters: dict[str, Any] | None = None
) -> Request:
    """Write a request down. Asking again for the same thing (episode, or reason and cutoff and parameters) returns the first one."""
    wanted = parameters or {}
    subject = episode or f"{reason}|{iso(cutoff)}|{json.dumps(wanted, sort_keys=True)}"
    request_id = hashlib.sha256(f"{project}|{subject}".encode()).hexdigest()[:16]
    try:
        with transaction() as connection:
            connection.execute(
                insert(REQUESTS).values(
                    id=request_id, project=project, cutoff=iso(cutoff), reason=reason, asked_by=asked_by, episode=episode,
                    parameters=wanted, state="open", outcome={}, recorded_at=stamp(),
                )
            )  # fmt: skip
    except IntegrityError:
        pass  # asked before
    return get_request(request_id)


def get_request(request_id: str) -> Request:
    with transaction() as connection:
        row = connection.execute(_REQUEST.where(REQUESTS.c.id == request_id)).one()
    return Request(*row)


def requests(project: str) -> list[Request]:
    """All requests of a project, oldest cutoff first."""
    with transaction() as connection:
        return [Request(*row) for row in connection.execute(_REQUEST.where(REQUESTS.c.project == project).order_by(REQUESTS.c.cutoff, REQUESTS.c.recorded_at))]


def claim_request(project: str, dag_run: str, *, only: str | None = None) -> Request | None:
    """The request that this DAG run works on: the one it claimed before (a retry), else the oldest open one, else None.

    A run claims one request at most, and a request is claimed by one run at most.

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
        return Request(*mine)
    query = select(REQUESTS.c.id).where(REQUESTS.c.project == project, REQUESTS.c.state == "open").order_by(REQUESTS.c.cutoff, REQUESTS.c.recorded_at)
    for request_id in connection.execute(query if only is None else query.where(REQUESTS.c.id == only)).scalars().all():
        taken = connection.execute(update(REQUESTS).where(REQUESTS.c.id == request_id, REQUESTS.c.state == "open").values(state="claimed", dag_run=dag_run))
        if taken.rowcount:
            return Request(*connection.execute(_REQUEST.where(REQUESTS.c.id == request_id)).one())
    return None


def release_request(request_id: str, dag_run: str) -> bool:
    """Give a claimed request back: it is open again, for another run. False if this run does not hold it, or has brought it to an end."""
    mine = (REQUESTS.c.id == request_id, REQUESTS.c.dag_run == dag_run, REQUESTS.c.state == "claimed")
    with transaction() as connection:
        return bool(connection.execute(update(REQUESTS).where(*mine).values(state="open", dag_run=None)).rowcount)


def lost_request(request_id: str, dag_run: str) -> bool:
    """Whether the request is not, or no more, this run's: it was given back, and perhaps claimed by another run. One that is not on record is nobody's."""
    with transaction() as connection:
        found = connection.execute(select(REQUESTS.c.dag_run).where(REQUESTS.c.id == request_id)).first()
    return found is not None and found.dag_run != dag_run


def settle_request(request_id: str, state: str, **outcome: Any) -> None:
    """Write how a request ended; further facts are added to those already there."""
    with transaction() as connection:
        # Locked, on Postgres, until it is written: train and deploy may both add to it.
        known = connection.execute(select(REQUESTS.c.outcome).where(REQUESTS.c.id == request_id).with_for_update()).scalar_one()
        connection.execute(update(REQUESTS).where(REQUESTS.c.id == request_id).values(state=state, outcome={**known, **outcome}))
