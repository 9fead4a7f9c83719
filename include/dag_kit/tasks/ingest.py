"""The tasks of ``dags/ingest.py``."""

from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowSkipException

from include.assets import tables
from include.projects import get_project


# The result is one XCom, not one XCom per key.
@task(multiple_outputs=False)
def ingest_source(project_name: str, source_name: str, cutoff: str, *, ti: Any = None) -> dict[str, Any]:
    """Ingest the new files of one source into its table and the quarantine."""
    from include.data import ingest, layout

    project = get_project(project_name)
    report = layout.report(project, ti.dag_id, ti.run_id, ti.task_id)
    return ingest.ingest_source(project, project.source(source_name), cutoff, report)


@task
def announce_tables(
    project_name: str, cutoff: str, done: list[dict[str, Any]], *, outlet_events: Any = None, run_id: Any = None
) -> None:
    """Announce the tables' versions. Skip if nothing was ever ingested."""
    from include import ledger
    from include.data import age

    project = get_project(project_name)
    if late := age.warn(project, cutoff):
        print(f"Warning: {late}")
    versions = {d["source"]: d["version"] for d in done}
    ledger.record_stage(project_name, "ingest", cutoff, dag_run=run_id, summary={"sources": done})
    if not any(version is not None for version in versions.values()):
        raise AirflowSkipException("nothing was ever ingested: there is nothing to build features from")
    outlet_events[tables(project)].extra = {"cutoff": cutoff, "versions": versions}


@task(retries=0, trigger_rule="none_failed")
def fail_on_refused_files(project_name: str, done: list[dict[str, Any]]) -> None:
    """Fail if any file was refused, so that an operator is alerted.

    Valid files have already been ingested.
    """
    from include.data.refused import explain_refused

    explain_refused(get_project(project_name), done)
