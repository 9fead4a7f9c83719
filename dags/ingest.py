"""Take in the new files of each project's landing zone: validated rows into tables, bad ones into quarantine.

* **Starts** daily, and when asked.
* **Updates** the project's tables, the quarantine and the project's tables asset.
* **Safe to rerun**: a file is ingested once, however often it is seen; a killed run is carried to its end by the next one.
  A run for an earlier cutoff than the last one takes in new files too, and refuses rows that were known later.
* **On failure**: `docs/runbooks/ingest.md`
"""

from airflow.sdk import CronTriggerTimetable, dag, task

from include.assets import tables
from include.dag_kit.cutoffs import decide_cutoff
from include.dag_kit.defaults import RUN_TIMEOUT, cutoff_param, default_args, tags
from include.dag_kit.projects import projects_to_parse
from include.projects import get_project
from include.projects.base import Project


def create_ingest_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__ingest",
        schedule=CronTriggerTimetable(project.ingest_schedule, timezone="UTC", run_immediately=False) if project.ingest_schedule else None,
        catchup=False,
        max_active_runs=1,  # one writer per table
        dagrun_timeout=RUN_TIMEOUT,
        params=cutoff_param(),
        default_args=default_args(project),
        tags=tags("ingest", project),
        doc_md=__doc__,
    )
    def ingest():
        cutoff = decide_cutoff(project)

        @task(multiple_outputs=False)  # one reference, not an XCom for each figure
        def ingest_source(project_name: str, source_name: str, cutoff: str, *, ti=None) -> dict:
            from include.data import layout
            from include.data.ingest import ingest_source

            project = get_project(project_name)
            return ingest_source(project, project.source(source_name), cutoff, layout.report(project, ti.dag_id, ti.run_id, ti.task_id))

        @task(outlets=[tables(project)])
        def announce_tables(project_name: str, cutoff: str, done: list[dict], *, outlet_events=None, run_id=None) -> None:
            from airflow.sdk.exceptions import AirflowSkipException

            from include import ledger
            from include.data import age

            if late := age.warn(get_project(project_name), cutoff):
                print(f"Warning: {late}")
            versions = {d["source"]: d["version"] for d in done}
            ledger.record_stage(project_name, "ingest", cutoff, dag_run=run_id, summary={"sources": done})
            if not any(version is not None for version in versions.values()):
                raise AirflowSkipException("nothing was ever ingested: there is nothing to build features from")
            outlet_events[tables(project)].extra = {"cutoff": cutoff, "versions": versions}

        @task(retries=0, trigger_rule="none_failed")
        def fail_on_refused_files(project_name: str, done: list[dict]) -> None:
            """Red when a file was refused whole: somebody must look. What was good went on."""
            from include.data.refused import explain_refused

            explain_refused(get_project(project_name), done)

        ingested = {source.name: ingest_source.override(task_id=f"ingest_{source.name}")(project.name, source.name, cutoff) for source in project.sources}
        for source in project.sources:
            if source.references:
                ingested[source.references.source] >> ingested[source.name]  # what it refers to comes first
        done = list(ingested.values())
        announce_tables(project.name, cutoff, done) >> fail_on_refused_files(project.name, done)

    return ingest()


for project in projects_to_parse():
    create_ingest_dag(project)
