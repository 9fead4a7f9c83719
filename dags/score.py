"""Score, with the champion, everything whose prediction time has come, with the features known at that time.

* **Starts** when features up to a new cutoff are published.
* **Updates** the table of predictions and the project's predictions asset.
* **Safe to rerun**: a thing is predicted once; what has a prediction is left alone, and a killed run goes on after its last partition.
  A run for an earlier cutoff than the last one predicts what came late, and is skipped if there is nothing.
* **On failure**: `docs/runbooks/score.md`
"""

from airflow.sdk import dag, task

from include.assets import features, predictions
from include.dag_kit.cutoffs import decide_cutoff
from include.dag_kit.defaults import RUN_TIMEOUT, cutoff_param, default_args, tags
from include.dag_kit.projects import projects_to_parse
from include.projects import get_project
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

        @task
        def predict_due(project_name: str, cutoff: str) -> dict:
            from include.dag_kit.cutoffs import skip_superseded
            from include.scoring import batch

            scored = batch.predict_due(get_project(project_name), cutoff)
            skip_superseded(batch.superseded(get_project(project_name), cutoff, scored))
            return scored

        @task(outlets=[predictions(project)])
        def announce_predictions(project_name: str, cutoff: str, scored: dict, *, outlet_events=None, run_id=None) -> None:
            from include import ledger

            ledger.record_stage(project_name, "score", cutoff, dag_run=run_id, summary=scored)
            outlet_events[predictions(project)].extra = {"cutoff": cutoff, **scored}

        scored = predict_due(project.name, cutoff)
        announce_predictions(project.name, cutoff, scored)

    return score()


for project in projects_to_parse():
    create_score_dag(project)
