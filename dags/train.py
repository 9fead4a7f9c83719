"""Train candidates on a retrain request, judge them against the champion, and let the best one through the gate.

* **Starts** when a retraining is requested: by drift, the project's schedule, or a person (with parameters).
* **Updates** MLflow: runs, and one model version a request, refused or not; the challenger asset and alias only if the gate let it through.
* **Safe to rerun**: the request carries the cutoff; a run registers one model version.
* **On failure**: `docs/runbooks/train.md`
"""

from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, Param, dag, task

from include.assets import challenger_model, retrain_request
from include.dag_kit.compute import in_class, training_step
from include.dag_kit.defaults import cutoff_param, default_args, tags, training_timeout
from include.dag_kit.projects import projects_to_parse
from include.dag_kit.requests import claim_request
from include.projects import get_project
from include.projects.base import Project

# What a person may wish for; it goes into the request, and with it to the steps.
WISHES = {
    "reason": Param(None, type=["null", "string"], description="Why; stands in the ledger beside the result."),
    "last_days": Param(None, type=["null", "integer"], minimum=1, description="Train on the examples of the last so many days only."),
    "request": Param(
        None, type=["null", "string"], description="Take up this open request instead of making one; `airloop thaw` does. It need not have paused."
    ),
    "candidates": Param(None, type=["null", "array"], items={"type": "string"}, description="Fit only these candidates (and the baseline)."),
}

# A request may leave out all candidates of a compute class, or all that search: what comes after goes on without them, though not if one failed.
ANY_SKIPPED = "none_failed_min_one_success"


def create_train_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__train",
        schedule=when_to_train(project),
        catchup=False,
        max_active_runs=1,  # two challengers must not race for one alias
        dagrun_timeout=training_timeout(project),
        params=cutoff_param() | WISHES,
        default_args=default_args(project),
        tags=tags("train", project),
        doc_md=__doc__,
    )
    def train():
        @task
        def build_training_set(request: dict) -> str:
            from include.features.training_set import build

            return build(get_project(request["project"]), request)

        @task
        def find_champion(request: dict, training_set: str) -> dict:
            from include.registry.requests import judging_basis

            return judging_basis(get_project(request["project"]), request, training_set)

        @task
        def plan_trials(request: dict, compute: str) -> list[dict]:
            from include.registry.requests import trials_of

            return trials_of(get_project(request["project"]), request, compute)

        @task(trigger_rule=ANY_SKIPPED)
        def choose_candidates(request: dict, basis: dict, compute: str) -> list[dict]:
            from include.registry.requests import fits_of

            return fits_of(get_project(request["project"]), request, basis, compute)

        @task
        def apply_gate(project_name: str, evaluation: str, *, ti=None) -> str:
            from include.data.layout import report
            from include.registry.requests import apply_gate

            project = get_project(project_name)
            return apply_gate(project, evaluation, report(project, ti.dag_id, ti.run_id, ti.task_id))

        @task.branch
        def choose_refit(project_name: str, evaluation: str) -> str:
            from include.registry.requests import class_of_best

            return in_class("refit", class_of_best(get_project(project_name), evaluation))

        @task(trigger_rule=ANY_SKIPPED)
        def register(project_name: str, models: list[str | None]) -> dict:
            from include.registry.versions import register_judged  # refused ones too: the verdict is a tag on the version

            (model,) = filter(None, models)
            return register_judged(get_project(project_name), model)

        @task
        def settle_request(request: dict, version: dict, *, run_id=None) -> None:
            from include.registry.requests import settle

            settle(get_project(request["project"]), request, version, dag_run=run_id)

        @task.short_circuit
        def passed_the_gate(version: dict) -> bool:
            return version["gate"] == "passed"

        @task(outlets=[challenger_model(project)])
        def announce_challenger(version: dict, *, outlet_events=None, run_id=None) -> None:
            from include.registry.requests import record_training

            record_training(get_project(version["name"]), version, dag_run=run_id)
            outlet_events[challenger_model(project)].extra = version

        request = claim_request(project)  # what asked for this run; made here when a person or the schedule started it
        basis = find_champion(request, build_training_set(request))
        shared = {"request": basis["request"], "training_set": basis["training_set"]}
        champion = {"champion": basis["champion"], "champion_fitted_until": basis["champion_fitted_until"]}

        fits = []
        for compute in project.fitting:  # each candidate in the pool of its compute class
            chosen = choose_candidates.override(task_id=in_class("choose_candidates", compute))(request, basis, compute)
            if compute in project.searching:  # where a candidate has a search, its trials come first
                planned = plan_trials.override(task_id=in_class("plan_trials", compute))(request, compute)
                until = {"champion_fitted_until": basis["champion_fitted_until"]}
                trials = training_step(project, "trial", shared=shared | until, compute=compute, at_once=project.trials_at_once)
                trials.expand(arguments=planned) >> chosen
            fits.append(training_step(project, "fit", compute=compute).expand(arguments=chosen).output)
        evaluation = training_step(project, "evaluate", arguments={**shared, **champion, "fits": fits}, trigger_rule=ANY_SKIPPED)
        verdict = apply_gate(project.name, evaluation.output)
        last = {**shared, "evaluation": evaluation.output, "verdict": verdict}
        refits = [training_step(project, "refit", compute=compute, arguments=last) for compute in project.refitting]
        if len(refits) > 1:
            choose_refit(project.name, evaluation.output) >> refits  # only that of the best candidate's class runs, the others are skipped
        version = register(project.name, [refit.output for refit in refits])
        settle_request(request, version) >> passed_the_gate(version) >> announce_challenger(version)

    return train()


def when_to_train(project: Project):
    """On a retrain request and, where the project wants it, by the clock."""
    asked = retrain_request(project)
    if not project.retrain.schedule:
        return asked
    # Not at once when the DAG is unpaused: the next full period is the first.
    return AssetOrTimeSchedule(timetable=CronTriggerTimetable(project.retrain.schedule, timezone="UTC", run_immediately=False), assets=asked)


for project in projects_to_parse():
    create_train_dag(project)
