"""Build each project's features from its validated tables, and bring them into the online store.

* **Starts** when rows were added to the project's tables.
* **Updates** the feature tables, Feast's online store and the project's features asset.
* **Safe to rerun**: rows are published once per cutoff; the online store never goes back in time. A run for an earlier cutoff than
  the last one is skipped.
* **On failure**: `docs/runbooks/build_features.md`
"""

from airflow.sdk import dag, task

from include.assets import features, tables
from include.dag_kit.cutoffs import decide_cutoff
from include.dag_kit.defaults import RUN_TIMEOUT, cutoff_param, default_args, tags
from include.dag_kit.projects import projects_to_parse
from include.projects import get_project
from include.projects.base import Project


def create_build_features_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__build_features",
        schedule=tables(project),
        catchup=False,
        max_active_runs=1,  # one writer at a time for the feature tables and Feast's registry
        dagrun_timeout=RUN_TIMEOUT,
        params=cutoff_param(),
        default_args=default_args(project),
        tags=tags("build_features", project),
        doc_md=__doc__,
    )
    def build_features():
        cutoff = decide_cutoff(project)

        @task
        def compute_features(project_name: str, cutoff: str) -> dict[str, int]:
            from include.dag_kit.cutoffs import skip_superseded
            from include.features import build

            skip_superseded(build.superseded(get_project(project_name), cutoff))
            return build.compute(get_project(project_name), cutoff)

        @task
        def validate_features(project_name: str, cutoff: str, *, ti=None) -> dict[str, int]:
            from include.features.validate import validate_staged

            return validate_staged(get_project(project_name), cutoff, dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id)

        @task
        def publish_features(project_name: str, cutoff: str) -> dict[str, int]:
            from include.features import build

            return build.publish(get_project(project_name), cutoff)

        @task(outlets=[features(project)])
        def materialize_features(project_name: str, cutoff: str, versions: dict, *, outlet_events=None, run_id=None) -> None:
            from include import ledger
            from include.features import build

            build.materialize(get_project(project_name), cutoff)
            ledger.record_stage(project_name, "build_features", cutoff, dag_run=run_id, summary={"versions": versions})
            outlet_events[features(project)].extra = {"cutoff": cutoff, "versions": versions}

        published = publish_features(project.name, cutoff)
        compute_features(project.name, cutoff) >> validate_features(project.name, cutoff) >> published
        materialize_features(project.name, cutoff, published)

    return build_features()


for project in projects_to_parse():
    create_build_features_dag(project)
