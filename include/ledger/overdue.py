"""Overdue requests: returned to the queue with a pause, or failed with a reason and a notice.

Each run of ``monitor`` sweeps them. The ledger does not know whether a run is active or a DAG is
paused, so the sweep queries Airflow. Each change is one transaction that is conditional on the
state that was read. A run that renews its lease at the same moment therefore keeps it.
"""

from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import update

from include import times
from include.ledger import lifecycle
from include.ledger.database import transaction
from include.ledger.freezes import freeze_of
from include.ledger.notices import add_notice
from include.ledger.requests import LIVE, Request, requests
from include.ledger.schema import REQUESTS
from include.times import iso, moment

ACTIVE_RUN_STATES = ("queued", "running")
FINAL_RUN_STATES = ("success", "failed")


class Airflow(Protocol):
    """The queries to Airflow that the sweep needs."""

    def run_state(self, dag_id: str, run_id: str) -> str | None:
        """Return queued, running, success or failed, or None if the run is unknown."""

    def is_paused(self, dag_id: str) -> bool: ...


def sweep_requests(project: str, airflow: Airflow) -> list[Request]:
    """Advance every waiting request. Return those whose event must be sent again.

    These are ``open`` requests for train and ``passed`` ones for deploy. In a frozen project all
    requests wait for the thaw: their deadlines restart, and no event is sent.
    """
    waiting = [one for one in requests(project) if one.state in LIVE]
    if freeze_of(project):
        for one in waiting:
            _change(one, deadline=_deadline(one.state))
        return []
    for one in waiting:
        if one.state in ("claimed", "deploying"):
            _look_at_holder(one, airflow)
    waiting = _supersede_older([one for one in requests(project) if one.state in LIVE])
    busy = {one.state for one in waiting} & {"claimed", "deploying"}
    woken: list[Request] = []
    for one in waiting:
        if one.state in ("open", "passed") and _is_to_be_woken(one, airflow, busy | {other.state for other in woken}):
            woken.append(one)
    return woken


def fail_request(request: Request, reason: str) -> bool:
    """End a request as failed, and notify the operators.

    Return False if the request has changed in the meantime.
    """
    text = f"request {request.id} ({request.reason}, cutoff {request.cutoff}) failed: {reason}"
    failed = {
        "state": "failed",
        "not_before": None,
        "deadline": None,
        "held_since": None,
        "outcome": {**request.outcome, "reason": reason},
    }
    return _change(request, notice=(f"request {request.id} failed", text), **failed)


def _look_at_holder(request: Request, airflow: Airflow) -> None:
    """Renew the lease of an active run. Take the request from a run that ended or is overdue."""
    stage, run = ("train", request.dag_run) if request.state == "claimed" else ("deploy", request.deploy_run)
    dag_id, now = f"{request.project}__{stage}", times.utc_now()
    run_state = airflow.run_state(dag_id, run or "")
    if run_state in ACTIVE_RUN_STATES and now - moment(request.held_since or iso(now)) < lifecycle.LONGEST_HOLD:
        _change(request, deadline=_deadline(request.state), held_since=request.held_since or iso(now))
    elif run_state in ACTIVE_RUN_STATES:
        _give_back(request, f"run {run} of {dag_id} is {run_state} and has had it since {request.held_since}")
    elif run_state in FINAL_RUN_STATES:
        _give_back(request, f"run {run} of {dag_id} ended ({run_state}) without an end for it")
    elif _is_over(request, now):
        _give_back(request, f"run {run} of {dag_id} is not known to Airflow, and its lease ended at {request.deadline}")


def _give_back(request: Request, reason: str) -> None:
    attempts = request.attempts + 1
    if attempts >= lifecycle.ATTEMPTS:
        fail_request(request, f"{attempts} attempts came to nothing; the last one: {reason}")
        return
    back: dict[str, Any] = {"state": "open", "dag_run": None, "last_run": request.dag_run}
    if request.state == "deploying":
        back = {"state": "passed", "deploy_run": None}
    not_before = times.utc_now() + lifecycle.pause(attempts)
    deadline = lifecycle.deadline("request", back["state"], not_before)
    assert deadline is not None
    back |= {"attempts": attempts, "not_before": iso(not_before), "deadline": iso(deadline), "held_since": None}
    back["outcome"] = {
        **request.outcome,
        "waits": f"attempt {attempts} of {lifecycle.ATTEMPTS} came to nothing: {reason}",
    }
    _change(request, **back)


def _supersede_older(waiting: list[Request]) -> list[Request]:
    """Keep only the newest of several versions that passed. Return the requests that still wait.

    Airflow merges their events, and deploy also takes the newest of those.
    """
    passed = [one for one in waiting if one.state in ("passed", "deploying")]
    newest = max(passed, key=lambda one: int(one.outcome.get("version") or 0), default=None)
    left = [one for one in waiting if one.state != "passed" or one is newest]
    for one in waiting:
        if one not in left and newest is not None:
            reason = f"version {newest.outcome.get('version')} passed after it"
            _change(
                one,
                state="superseded",
                not_before=None,
                deadline=None,
                outcome={**one.outcome, "deploy": "superseded", "deploy_reason": reason},
            )
    return left


def _is_to_be_woken(request: Request, airflow: Airflow, busy: set[str]) -> bool:
    """Return whether the request's event must be sent.

    Args:
        busy: the states of requests that are in progress, and of those whose event is sent before
            this one. A run takes up one request.
    """
    stage, holds = ("train", "claimed") if request.state == "open" else ("deploy", "deploying")
    dag_id, now = f"{request.project}__{stage}", times.utc_now()
    # Airflow would drop the event. A user has paused the DAG and gets a notice. Nothing is counted.
    if airflow.is_paused(dag_id):
        waits = f"{dag_id} is paused"
        text = (
            f"request {request.id} ({request.reason}, cutoff {request.cutoff}) waits: {waits}. Unpause it, and the next"
            " run of monitor has it taken up"
        )
        notice, outcome = (f"request {request.id} waits for {dag_id}", text), {**request.outcome, "waits": waits}
        _change(request, notice=notice, deadline=_deadline(request.state), outcome=outcome)
        return False
    if request.not_before and moment(request.not_before) > now:
        return False
    if _is_over(request, now):
        # The DAG is working on another request, or another one is before it.
        if busy & {holds, request.state}:
            _change(request, deadline=_deadline(request.state))
        elif request.attempts + 1 >= lifecycle.ATTEMPTS:
            fail_request(
                request,
                f"no run of {dag_id} took it up by {request.deadline}, though its event was sent again and again",
            )
            return False
        else:
            waits = f"no run of {dag_id} took it up by {request.deadline}"
            _change(
                request,
                attempts=request.attempts + 1,
                deadline=_deadline(request.state),
                outcome={**request.outcome, "waits": waits},
            )
    return True


def _is_over(request: Request, now: datetime) -> bool:
    return request.deadline is None or moment(request.deadline) <= now


def _deadline(state: str) -> str:
    by = lifecycle.deadline("request", state, times.utc_now())
    assert by is not None
    return iso(by)


def _change(request: Request, *, notice: tuple[str, str] | None = None, **values: Any) -> bool:
    """Update a request if it is unchanged since it was read, and add its notice.

    Both are in one transaction. Return False if another process has changed the request in the
    meantime.
    """
    if "state" in values:
        lifecycle.refuse_jump("request", request.state, values["state"])
    seen = [
        REQUESTS.c[name].is_not_distinct_from(getattr(request, name))
        for name in ("id", "state", "dag_run", "deploy_run", "deadline")
    ]
    with transaction() as connection:
        changed = bool(connection.execute(update(REQUESTS).where(*seen).values(**values)).rowcount)
        if changed and notice:
            add_notice(connection, request.project, *notice)
    return changed
