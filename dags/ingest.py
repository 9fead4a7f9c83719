"""Ingest new files from each project's landing zone into validated tables and a quarantine.

Valid rows are written to the tables, and invalid rows to the quarantine.

* **Starts** daily, and on request.
* **Updates** the project's tables, the quarantine and the project's tables asset.
* **Safe to rerun**: each file is ingested once. The next run completes a run that was killed.
  A run for an earlier cutoff than the last one also ingests new files, and rejects rows that became
  known after its cutoff.
* **On failure**: `docs/runbooks/ingest.md`
"""

from airflow.sdk import dag

from include.assets import tables
from include.dag_kit import schedules
from include.dag_kit.cutoffs import decide_cutoff
from include.dag_kit.defaults import RUN_TIMEOUT, cutoff_param, default_args, tags
from include.dag_kit.projects import projects_to_parse
from include.dag_kit.tasks import ingest as tasks
from include.projects.base import Project


def create_ingest_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__ingest",
        schedule=schedules.ingest_schedule(project),
        catchup=False,
        # Each table allows one writer at a time.
        max_active_runs=1,
        dagrun_timeout=RUN_TIMEOUT,
        params=cutoff_param(),
        default_args=default_args(project),
        tags=tags("ingest", project),
        doc_md=__doc__,
    )
    def ingest():
        cutoff = decide_cutoff(project)

        ingested = {}
        for source in project.sources:
            ingest_source = tasks.ingest_source.override(task_id=f"ingest_{source.name}")
            ingested[source.name] = ingest_source(project.name, source.name, cutoff)
        for source in project.sources:
            if source.references:
                # The referenced source is ingested first.
                ingested[source.references.source] >> ingested[source.name]

        done = list(ingested.values())
        announce = tasks.announce_tables.override(outlets=[tables(project)])
        announce(project.name, cutoff, done) >> tasks.fail_on_refused_files(project.name, done)

    return ingest()


for project in projects_to_parse():
    create_ingest_dag(project)
