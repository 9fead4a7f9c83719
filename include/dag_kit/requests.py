"""The one door to training: a run works on a request that stands in the ledger."""

from airflow.sdk import task

from include.projects.base import Project


def claim_request(project: Project):
    """First task of ``train``: claims the oldest open request and gives it as a dict (``id``, ``cutoff``, ``reason``, ...).

    A run that a person or the schedule started makes its request here. A run that was woken by an event and finds no
    open request (Airflow repeated the event, or another run was faster) is skipped: there is nothing to do.
    """

    @task(task_id="claim_request")
    def claim(project_name: str, *, dag_run=None, params=None, triggering_asset_events=None) -> dict:
        from airflow.sdk.exceptions import AirflowSkipException

        from include import ledger

        run_type = str(getattr(dag_run.run_type, "value", dag_run.run_type))
        woken_by_event = any(triggering_asset_events.values()) if triggering_asset_events else False
        if not woken_by_event and run_type in {"manual", "scheduled"}:
            cutoff = (params or {}).get("cutoff") or ledger.now(project_name)
            wanted = {k: v for k, v in (params or {}).items() if k not in {"cutoff", "reason"} and v is not None}
            reason = "schedule" if run_type == "scheduled" else (params or {}).get("reason") or "person"
            ledger.request_retraining(project_name, cutoff=cutoff, reason=reason, asked_by=dag_run.run_id, parameters=wanted)
        request = ledger.claim_request(project_name, dag_run.run_id)
        if request is None:
            raise AirflowSkipException(f"no open retrain request for {project_name}: nothing to do")
        return request._asdict()

    return claim(project.name)


def episode_of(request: str) -> str | None:
    """The drift episode that a request is about; None for the requests of people, schedules and other reasons."""
    from sqlalchemy.exc import NoResultFound

    from include import ledger

    try:
        return ledger.get_request(request).episode
    except NoResultFound:
        return None
