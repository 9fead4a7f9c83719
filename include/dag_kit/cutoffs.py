"""The cutoff of a run: the time that all rules of the run compare with."""

from typing import Any

from airflow.sdk import task

from include.projects.base import Project


def decide_cutoff(project: Project) -> Any:
    """Return the first task of a stage, which decides the run's cutoff as ISO text (UTC).

    The cutoff comes from the producer of the asset event (the latest one, if Airflow merged several
    events). Without an event it is the run's parameter ``cutoff``, or else the time of the run
    itself (``cutoff_of_run``). A cleared run decides on the same cutoff again.
    """

    @task(task_id="decide_cutoff")
    def decide(
        project_name: str, *, triggering_asset_events: Any = None, params: Any = None, dag_run: Any = None
    ) -> str:
        refuse_backfill(dag_run)
        wanted = newest_cutoff(triggering_asset_events) or (params or {}).get("cutoff")
        return checked_cutoff(project_name, wanted) if wanted else cutoff_of_run(project_name, dag_run)

    return decide(project.name)


def checked_cutoff(project: str, cutoff: str) -> str:
    """Return a cutoff that a person or an event gave, as ISO text (UTC).

    Raises:
        AirflowFailException: The cutoff is in the future, or it is not a time with a time zone. A
            retry would not help.
    """
    from airflow.sdk.exceptions import AirflowFailException

    from include import ledger

    try:
        return ledger.check_cutoff(project, cutoff)
    except ValueError as error:
        raise AirflowFailException(str(error)) from None


def refuse_backfill(dag_run: Any) -> None:
    """Refuse a run of a backfill.

    Each stage continues from the state that it left, so a run for a past date would not repeat
    earlier work.

    Raises:
        AirflowFailException: The run is a backfill. The message names the alternatives.
    """
    from airflow.sdk.exceptions import AirflowFailException

    if str(getattr(dag_run.run_type, "value", dag_run.run_type)) == "backfill":
        raise AirflowFailException(
            f"{dag_run.dag_id} does not run for dates of the past: a stage goes on where it ended last. To do a run"
            " again, clear it: it keeps its cutoff. To take stages back to a time and go on from there: `airloop"
            " rewind`. To try another candidate on the past: `airloop try <project> train`"
        )


def skip_superseded(why: str | None) -> None:
    """Skip the task, and with it the rest of its run, if there is a reason.

    A run without work must not look like a run that has done its work.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    if why:
        raise AirflowSkipException(why)


def newest_cutoff(events: Any) -> str | None:
    """Return the latest cutoff in the asset events of a run, or None if no event has one."""
    from include import ledger

    cutoffs = [
        event.extra["cutoff"] for group in (events or {}).values() for event in group if event.extra.get("cutoff")
    ]
    return ledger.iso(max(cutoffs, key=ledger.moment)) if cutoffs else None


def cutoff_of_run(project: str, dag_run: Any) -> str:
    """Return the cutoff of a run that was started without one.

    This is the run's ``run_after``: its time on the schedule, or the moment of its trigger. In a
    replayed project it is the replay's time at the first try. The ledger stores it, because the
    replay's clock has advanced when the run is cleared later.
    """
    from include import ledger

    present = ledger.now(project) if ledger.is_replay(project) else dag_run.run_after
    return ledger.run_cutoff(project, dag_run.dag_id, dag_run.run_id, present)
