"""The sweep of ``monitor``: resume or end whatever is overdue, and notify the operators.

See ``include.ledger.lifecycle``. Each step is idempotent, so after a kill the next sweep continues.
"""

from dataclasses import replace
from typing import Any

from include import ledger, times
from include.ledger import lifecycle, moment
from include.ledger.overdue import ACTIVE_RUN_STATES
from include.projects.base import Project
from include.registry import versions
from include.rollout import records
from include.rollout.document import IN_PROGRESS, OvertakenError, Rollout, changing, keep, rollout_document, undo


def sweep(project: Project, airflow: ledger.Airflow) -> dict[str, dict[str, Any] | None]:
    """Resume or end overdue requests and rollouts, and send pending notices.

    Returns:
        ``train`` and ``deploy``: the payload of the event that triggers each DAG, or None if it
            need not be triggered.
    """
    woken = ledger.sweep_requests(project.name, airflow)
    opened = next((one for one in woken if one.state == "open"), None)
    rollout = _sweep_rollout(project, airflow)
    # The rollout may have been taken back just now.
    passed = next(
        (one for one in woken if one.state == "passed" and ledger.get_request(one.id).state == "passed"), None
    )
    ledger.tell(project.name)
    return {
        "train": {"request": opened.id, "cutoff": opened.cutoff} if opened else None,
        "deploy": rollout or (_event(project, str(passed.outcome["version"]), passed.cutoff) if passed else None),
    }


def _sweep_rollout(project: Project, airflow: ledger.Airflow) -> dict[str, Any] | None:
    """Return the event for ``deploy`` if it must resume a rollout that has no waiting request.

    A rollout whose deadline has passed is taken back here.
    """
    rollout = rollout_document(project)
    if rollout is None or rollout.state not in IN_PROGRESS:
        return None
    now, dag_id = times.utc_now(), f"{project.name}__deploy"
    going_on = airflow.run_state(dag_id, rollout.dag_run) in ACTIVE_RUN_STATES
    if rollout.state == "rolling_back":
        if not going_on:
            _take_back(project, rollout, rollout.reason)
        return None
    over = not rollout.deadline or moment(rollout.deadline) <= now
    if going_on and not (over and rollout.deadline and now - moment(rollout.deadline) > lifecycle.LONGEST_HOLD):
        # The run's own tasks have time limits.
        return None
    if ledger.freeze_of(project.name):
        return None
    request = _request_of(project, rollout)
    if over:
        _take_back(project, rollout, f"no run of {dag_id} brought it on by {rollout.deadline}")
        return None
    if request is not None and request.state == "failed":
        _take_back(project, rollout, f"its request failed: {request.outcome.get('reason')}")
        return None
    if request is not None and request.state in records.WAITING:
        # The request has deadlines of its own and triggers deploy.
        return None
    if airflow.is_paused(dag_id):
        ledger.note(
            project.name,
            f"rollout {rollout.version}, {rollout.dag_run} waits",
            f"the rollout of version {rollout.version} waits: {dag_id} is paused",
        )
        return None
    if rollout.attempts >= lifecycle.ATTEMPTS:
        _take_back(project, rollout, f"its run was gone, and {rollout.attempts} attempts to take it up came to nothing")
        return None
    with changing(project) as seen:
        if seen != rollout:
            return None
        keep(project, replace(rollout, attempts=rollout.attempts + 1))
    return _event(project, rollout.version, rollout.cutoff)


def _take_back(project: Project, rollout: Rollout, why: str) -> None:
    """Make the previous version champion for all traffic, record it, and notify the operators."""
    request = versions.get_version(project, rollout.version).tags.get("request")
    chosen = {"version": rollout.version, "request": request, "cutoff": rollout.cutoff}
    try:
        with changing(project) as seen:
            if seen is None or (seen.version, seen.dag_run, seen.state) != (
                rollout.version,
                rollout.dag_run,
                rollout.state,
            ):
                # Another process has advanced it in the meantime.
                return
            undo(project, seen, why)
    except OvertakenError as error:
        records.record_end(project, chosen, "overtaken", str(error), cutoff=rollout.cutoff, dag_run=rollout.dag_run)
        return
    text = (
        f"version {rollout.version} was taken back by monitor: {why}; champion is version {rollout.previous or 'none'}"
        " again"
    )
    failed = request and ledger.get_request(request).state == "failed"
    records.record_end(
        project,
        chosen | ({"request": None} if failed else {}),
        "rolled_back",
        text,
        cutoff=rollout.cutoff,
        dag_run=rollout.dag_run,
    )
    ledger.note(project.name, f"rollout {rollout.version}, {rollout.dag_run} taken back", text)


def _request_of(project: Project, rollout: Rollout) -> ledger.Request | None:
    wanted = versions.get_version(project, rollout.version).tags.get("request")
    return next((one for one in ledger.requests(project.name) if one.id == wanted), None)


def _event(project: Project, version: str, cutoff: str) -> dict[str, Any]:
    """Return the part of ``announce_challenger``'s payload that ``deploy`` reads."""
    return {"name": project.name, "version": version, "cutoff": cutoff}
