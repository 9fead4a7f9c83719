"""The only entry point to training.

A run works on a request in the ledger, unless the project is frozen.
"""

from typing import Any

from airflow.sdk import Param, task

from include.projects.base import Project


def request_params() -> dict[str, Param]:
    """Return the parameters of a manual run of ``train``.

    They become part of the request, which the training steps read. Each DAG needs its own objects,
    see ``cutoff_param``.
    """
    reason = "Reason of the request. It is stored in the ledger with the result."
    last_days = "Train only on the examples of this many most recent days."
    request = (
        "Work on this open request instead of creating one, as `airloop thaw` does. The request does not have to be"
        " paused."
    )
    candidates = "Names of the only candidates to fit, in addition to the baseline."
    return {
        "reason": Param(None, type=["null", "string"], description=reason),
        "last_days": Param(None, type=["null", "integer"], minimum=1, description=last_days),
        "request": Param(None, type=["null", "string"], description=request),
        "candidates": Param(None, type=["null", "array"], items={"type": "string"}, description=candidates),
    }


def claim_request(project: Project) -> Any:
    """Return the first task of ``train``, which claims the oldest open request.

    The task returns the request as a dict (``id``, ``cutoff``, ``reason``, ...). See ``take_up``.
    """

    @task(task_id="claim_request")
    def claim(
        project_name: str,
        *,
        dag_run: Any = None,
        params: Any = None,
        triggering_asset_events: Any = None,
        ti: Any = None,
    ) -> dict[str, Any]:
        woken_by_event = any(triggering_asset_events.values()) if triggering_asset_events else False
        return take_up(project_name, dag_run, params or {}, woken_by_event=woken_by_event, ti=ti)

    return claim(project.name)


def take_up(project: str, dag_run: Any, params: dict[str, Any], *, woken_by_event: bool, ti: Any) -> dict[str, Any]:
    """Return the request that a run of ``train`` works on, as a dict.

    The request is claimed for the run, so a retry of this task finds the same request.

    A run that a person or the schedule started creates its request here, unless its parameter
    ``request`` names an existing one. A run that finds no open request is skipped: Airflow repeated
    an event, or another run was faster. In a frozen project every run is skipped, and its request
    waits in the ledger.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    from include import ledger
    from include.dag_kit.cutoffs import checked_cutoff, cutoff_of_run, refuse_backfill

    refuse_backfill(dag_run)

    request_id = params.get("request")
    run_type = str(getattr(dag_run.run_type, "value", dag_run.run_type))
    own_request = None
    if not request_id and not woken_by_event and run_type in {"manual", "scheduled"}:
        cutoff = checked_cutoff(project, params["cutoff"]) if params.get("cutoff") else cutoff_of_run(project, dag_run)
        parameters = {k: v for k, v in params.items() if k not in {"cutoff", "reason", "request"} and v is not None}
        reason = "schedule" if run_type == "scheduled" else params.get("reason") or "person"
        own_request = ledger.request_retraining(
            project, cutoff=cutoff, reason=reason, asked_by=dag_run.run_id, parameters=parameters, by_run=True
        )
    if held := ledger.freeze_of(project):
        give_back(project, None, dag_run.run_id)
        raise AirflowSkipException(tell_frozen(project, held, ti))
    request = ledger.claim_request(project, dag_run.run_id, only=request_id)
    if request is None:
        raise AirflowSkipException(_why_nothing(project, request_id, own_request))
    if own_request and own_request.id != request.id:
        print(
            f"{request}, and comes first; request {own_request.id}, which this run asked for or joined, waits for the"
            " next run"
        )
    return request._asdict()


def _why_nothing(project: str, request_id: str | None, own_request: Any) -> str:
    from include import ledger

    if request_id:
        known = next(
            (str(r) + _end(r) for r in ledger.requests(project) if r.id == request_id),
            f"request {request_id} is not on record",
        )
        return f"request {request_id} is not open any more: {known}"
    if own_request:
        now = ledger.get_request(own_request.id)
        return f"this was asked for before: {now}, by run {now.dag_run}{_end(now)}. Nothing to do beside it"
    return f"no open retrain request for {project}: nothing to do"


def _end(request: Any) -> str:
    reason = request.outcome.get("reason") or request.outcome.get("deploy_reason")
    return f" ({reason})" if reason else ""


def refuse_frozen_step(project: str, request: str, dag_run: str, ti: Any) -> None:
    """Renew the run's lease on the request before a training step begins, or skip the step.

    In a frozen project the step is skipped and the request is released, so that another run claims
    it after the thaw. The other steps of this run are then skipped too, even if the thaw happens
    between two steps. Otherwise a model would be judged with only half of its candidates. The steps
    are also skipped if the lease expired and another run got the request.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    from include import ledger

    if held := ledger.freeze_of(project):
        give_back(project, request, dag_run)
        raise AirflowSkipException(tell_frozen(project, held, ti))
    if not ledger.keep_request(request, dag_run):
        now = ledger.get_request(request)
        raise AirflowSkipException(
            f"request {request} was given back while {project} was frozen, or when its lease ran out. Now {now}, by run"
            f" {now.dag_run}"
        )


def give_back(project: str, request: str | None, dag_run: str) -> None:
    """Reopen the request that this run has claimed and not ended.

    With None, reopen any request of the run.
    """
    from include import ledger

    for mine in [r.id for r in ledger.requests(project) if r.dag_run == dag_run and request in (None, r.id)]:
        ledger.release_request(mine, dag_run)


def tell_frozen(project: str, held: Any, ti: Any) -> str:
    """Record that a freeze skipped this run, in the ledger and the task report.

    Return the message.
    """
    from include import ledger
    from include.data import layout
    from include.projects import get_project
    from include.reporting import page

    waiting = [r for r in ledger.requests(project) if r.state == "open"]
    text = (
        f"nothing is trained: {held}. {len(waiting)} retrain request{'' if len(waiting) == 1 else 's'} waiting; the"
        " thaw has them taken up"
    )
    ledger.decide(
        project,
        "train",
        ti.run_id,
        verdict="frozen",
        reasons=[text],
        cutoff=waiting[0].cutoff if waiting else ledger.now(project),
    )
    rows = [(r.id, r.reason, r.cutoff, r.asked_by) for r in waiting]
    content = page.page(
        f"{project}: frozen",
        page.paragraph(text, "no"),
        page.table(["waiting request", "reason", "cutoff", "asked by"], rows),
    )
    page.write_page(layout.report(get_project(project), ti.dag_id, ti.run_id, ti.task_id), content)
    return text


def episode_of(request: str) -> str | None:
    """Return the drift episode of a request, or None if the request has another reason.

    Requests of people and schedules do not have an episode.
    """
    from sqlalchemy.exc import NoResultFound

    from include import ledger

    try:
        return ledger.get_request(request).episode
    except NoResultFound:
        return None
