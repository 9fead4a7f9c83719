"""Build each project's features from its validated tables and load them into the online store.

* **Starts** when rows were added to the project's tables.
* **Updates** the feature tables, Feast's online store and the project's features asset.
* **Safe to rerun**: rows are published once per cutoff. The online store never goes back in time.
  A run for an earlier cutoff than the last one is skipped.
* **On failure**: `docs/runbooks/build_features.md`
"""

from airflow.sdk import dag

from include.assets import features, tables
from include.dag_kit.cutoffs import decide_cutoff
from include.dag_kit.defaults import RUN_TIMEOUT, cutoff_param, default_args, tags
from include.dag_kit.projects import projects_to_parse
from include.dag_kit.tasks import build_features as tasks
from include.projects.base import Project


def create_build_features_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__build_features",
        schedule=tables(project),
        catchup=False,
        # The feature tables and Feast's registry allow one writer at a time.
        max_active_runs=1,
        dagrun_timeout=RUN_TIMEOUT,
        params=cutoff_param(),
        default_args=default_args(project),
        tags=tags("build_features", project),
        doc_md=__doc__,
    )
    def build_features():
        cutoff = decide_cutoff(project)
        published = tasks.publish_features(project.name, cutoff)
        computed = tasks.compute_features(project.name, cutoff)
        computed >> tasks.validate_features(project.name, cutoff) >> published
        tasks.materialize_features.override(outlets=[features(project)])(project.name, cutoff, published)

    return build_features()


for project in projects_to_parse():
    create_build_features_dag(project)
