"""Score all entities whose prediction time has come, with the champion.

Each prediction uses the features that were known at its prediction time.

* **Starts** when features up to a new cutoff are published.
* **Updates** the table of predictions and the project's predictions asset.
* **Safe to rerun**: each entity is predicted once. Existing predictions are not changed, and a run
  that was killed continues after its last partition. A run for an earlier cutoff than the last one
  predicts late arrivals, and is skipped if there are none.
* **On failure**: `docs/runbooks/score.md`
"""

from airflow.sdk import dag

from include.assets import features, predictions
from include.dag_kit.cutoffs import decide_cutoff
from include.dag_kit.defaults import RUN_TIMEOUT, cutoff_param, default_args, tags
from include.dag_kit.projects import projects_to_parse
from include.dag_kit.tasks import score as tasks
from include.projects.base import Project


def create_score_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__score",
        schedule=features(project),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=RUN_TIMEOUT,
        params=cutoff_param(),
        default_args=default_args(project),
        tags=tags("score", project),
        doc_md=__doc__,
    )
    def score():
        cutoff = decide_cutoff(project)
        scored = tasks.predict_due(project.name, cutoff)
        tasks.announce_predictions.override(outlets=[predictions(project)])(project.name, cutoff, scored)

    return score()


for project in projects_to_parse():
    create_score_dag(project)
