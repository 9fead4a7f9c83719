"""The one door to training: a run works on a request that stands in the ledger, unless the project is frozen."""

from typing import Any

from airflow.sdk import task

from include.projects.base import Project


def claim_request(project: Project):
    """First task of ``train``: claims the oldest open request and gives it as a dict (``id``, ``cutoff``, ``reason``, ...). See ``take_up``."""

    @task(task_id="claim_request")
    def claim(project_name: str, *, dag_run=None, params=None, triggering_asset_events=None, ti=None) -> dict:
        woken_by_event = any(triggering_asset_events.values()) if triggering_asset_events else False
        return take_up(project_name, dag_run, params or {}, woken_by_event=woken_by_event, ti=ti)

    return claim(project.name)


def take_up(project: str, dag_run: Any, wishes: dict[str, Any], *, woken_by_event: bool, ti: Any) -> dict[str, Any]:
    """The request that a run of ``train`` works on, as a dict. The run is its identity: a retry of this task finds the same one.

    A run that a person or the schedule started makes its request here, except one that was told by its parameter ``request`` which one to take up.
    A run that finds no open request (Airflow repeated an event, or another run was faster) is skipped: there is nothing to do. So is, in a frozen
    project, every run; what it was to work on waits in the ledger.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    from include import ledger
    from include.dag_kit.cutoffs import checked_cutoff, cutoff_of_run, refuse_backfill

    refuse_backfill(dag_run)

    told = wishes.get("request")
    run_type = str(getattr(dag_run.run_type, "value", dag_run.run_type))
    asked = None
    if not told and not woken_by_event and run_type in {"manual", "scheduled"}:
        cutoff = checked_cutoff(project, wishes["cutoff"]) if wishes.get("cutoff") else cutoff_of_run(project, dag_run)
        wanted = {k: v for k, v in wishes.items() if k not in {"cutoff", "reason", "request"} and v is not None}
        reason = "schedule" if run_type == "scheduled" else wishes.get("reason") or "person"
        asked = ledger.request_retraining(project, cutoff=cutoff, reason=reason, asked_by=dag_run.run_id, parameters=wanted, by_run=True)
    if held := ledger.freeze_of(project):
        give_back(project, None, dag_run.run_id)
        raise AirflowSkipException(tell_frozen(project, held, ti))
    request = ledger.claim_request(project, dag_run.run_id, only=told)
    if request is None:
        raise AirflowSkipException(_why_nothing(project, told, asked))
    if asked and asked.id != request.id:
        print(f"{request}, and comes first; request {asked.id}, which this run asked for or joined, waits for the next run")
    return request._asdict()


def _why_nothing(project: str, told: str | None, asked: Any) -> str:
    from include import ledger

    if told:
        known = next((str(r) + _end(r) for r in ledger.requests(project) if r.id == told), f"request {told} is not on record")
        return f"request {told} is not open any more: {known}"
    if asked:
        now = ledger.get_request(asked.id)
        return f"this was asked for before: {now}, by run {now.dag_run}{_end(now)}. Nothing to do beside it"
    return f"no open retrain request for {project}: nothing to do"


def _end(request: Any) -> str:
    reason = request.outcome.get("reason") or request.outcome.get("deploy_reason")
    return f" ({reason})" if reason else ""


def refuse_frozen_step(project: str, request: str, dag_run: str, ti: Any) -> None:
    """Before a training step begins: the run's lease on the request is renewed. In a frozen project the step is skipped, and the request given back, so
    that another run takes it up after the thaw.

    The other steps of this run are then skipped too, also if the thaw comes between two of them: a model of half its candidates would be judged else.
    So are those of a run whose request was given to another one, because its lease had run out.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    from include import ledger

    if held := ledger.freeze_of(project):
        give_back(project, request, dag_run)
        raise AirflowSkipException(tell_frozen(project, held, ti))
    if not ledger.keep_request(request, dag_run):
        now = ledger.get_request(request)
        raise AirflowSkipException(f"request {request} was given back while {project} was frozen, or when its lease ran out. Now {now}, by run {now.dag_run}")


def give_back(project: str, request: str | None, dag_run: str) -> None:
    """Open the request again that this run has claimed and not ended (None: whichever it is)."""
    from include import ledger

    for mine in [r.id for r in ledger.requests(project) if r.dag_run == dag_run and request in (None, r.id)]:
        ledger.release_request(mine, dag_run)


def tell_frozen(project: str, held: Any, ti: Any) -> str:
    """Put it on record that a run of ``train`` met a freeze: in the ledger, as the task's report, and in the words that this gives."""
    from include import ledger
    from include.data import layout
    from include.projects import get_project
    from include.training import page

    waiting = [r for r in ledger.requests(project) if r.state == "open"]
    text = f"nothing is trained: {held}. {len(waiting)} retrain request{'' if len(waiting) == 1 else 's'} waiting; the thaw has them taken up"
    ledger.decide(project, "train", ti.run_id, verdict="frozen", reasons=[text], cutoff=waiting[0].cutoff if waiting else ledger.now(project))
    rows = [(r.id, r.reason, r.cutoff, r.asked_by) for r in waiting]
    content = page.page(f"{project}: frozen", page.paragraph(text, "no"), page.table(["waiting request", "reason", "cutoff", "asked by"], rows))
    page.write_page(layout.report(get_project(project), ti.dag_id, ti.run_id, ti.task_id), content)
    return text


def episode_of(request: str) -> str | None:
    """The drift episode that a request is about; None for the requests of people, schedules and other reasons."""
    from sqlalchemy.exc import NoResultFound

    from include import ledger

    try:
        return ledger.get_request(request).episode
    except NoResultFound:
        return None
