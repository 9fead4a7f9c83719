"""The cutoff of a run: the one time that all its rules compare with."""

from airflow.sdk import task

from include.projects.base import Project


def decide_cutoff(project: Project):
    """First task of a stage: gives the run's cutoff as ISO text (UTC).

    It is what the producer of the asset event wrote (the latest, if Airflow merged several events), else the run's
    parameter ``cutoff``, else the project's present.
    """

    @task(task_id="decide_cutoff")
    def decide(project_name: str, *, triggering_asset_events=None, params=None) -> str:
        from include import ledger

        told = [event.extra["cutoff"] for events in (triggering_asset_events or {}).values() for event in events if event.extra.get("cutoff")]
        if told:
            return ledger.iso(max(told, key=ledger.moment))
        return ledger.iso((params or {}).get("cutoff") or ledger.now(project_name))

    return decide(project.name)
