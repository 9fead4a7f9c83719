"""The cutoff of a run: the one time that all its rules compare with."""

from typing import Any

from airflow.sdk import task

from include.projects.base import Project


def decide_cutoff(project: Project):
    """First task of a stage: gives the run's cutoff as ISO text (UTC).

    It is what the producer of the asset event wrote (the latest, if Airflow merged several events), else the run's
    parameter ``cutoff``, else the time of the run itself (``cutoff_of_run``). Cleared, a run decides the same again.
    """

    @task(task_id="decide_cutoff")
    def decide(project_name: str, *, triggering_asset_events=None, params=None, dag_run=None) -> str:
        refuse_backfill(dag_run)
        wanted = newest_cutoff(triggering_asset_events) or (params or {}).get("cutoff")
        return checked_cutoff(project_name, wanted) if wanted else cutoff_of_run(project_name, dag_run)

    return decide(project.name)


def checked_cutoff(project: str, cutoff: str) -> str:
    """Return a cutoff that a person or an event gave, as ISO text (UTC).

    Raises:
        AirflowFailException: it lies in the future, or is no time with a zone. A retry would not help.
    """
    from airflow.sdk.exceptions import AirflowFailException

    from include import ledger

    try:
        return ledger.check_cutoff(project, cutoff)
    except ValueError as error:
        raise AirflowFailException(str(error)) from None


def refuse_backfill(dag_run: Any) -> None:
    """Refuse a run of a backfill. The stages go on from the state that they left, so a run for a past date repeats nothing of it.

    Raises:
        AirflowFailException: what to do instead.
    """
    from airflow.sdk.exceptions import AirflowFailException

    if str(getattr(dag_run.run_type, "value", dag_run.run_type)) == "backfill":
        raise AirflowFailException(
            f"{dag_run.dag_id} does not run for dates of the past: a stage goes on where it ended last. To do a run again, clear it: it keeps its cutoff. "
            "To take stages back to a time and go on from there: `airloop rewind`. To try another candidate on the past: `airloop try <project> train`"
        )


def skip_superseded(why: str | None) -> None:
    """Skip the task, and with it the rest of its run, if there is a reason to: a run that has nothing to do is not to look like one that has done its work."""
    from airflow.sdk.exceptions import AirflowSkipException

    if why:
        raise AirflowSkipException(why)


def newest_cutoff(events: Any) -> str | None:
    """The latest cutoff that the producers of a run's asset events wrote; None: no event has one."""
    from include import ledger

    told = [event.extra["cutoff"] for group in (events or {}).values() for event in group if event.extra.get("cutoff")]
    return ledger.iso(max(told, key=ledger.moment)) if told else None


def cutoff_of_run(project: str, dag_run: Any) -> str:
    """The cutoff of a run that nobody told one: its ``run_after``, so its own minute on the schedule, or the moment of its trigger.

    In a replayed project it is the replay's time at the first try. The ledger keeps it: that clock has moved on when the run is cleared.
    """
    from include import ledger

    present = ledger.now(project) if ledger.is_replay(project) else dag_run.run_after
    return ledger.run_cutoff(project, dag_run.dag_id, dag_run.run_id, present)
