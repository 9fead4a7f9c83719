"""Train candidates for a retrain request, evaluate them, and apply the gate to the best one.

The candidates are compared with the champion.

* **Starts** when a retraining is requested by drift, by the project's schedule, or by a person
  (with parameters).
* **Updates** MLflow: runs, and one model version per request, also if the gate refuses it. Updates
  the challenger asset and alias only if the version passes the gate.
* **Safe to rerun**: the request contains the cutoff, and a run registers one model version.
* **On failure**: `docs/runbooks/train.md`
"""

from airflow.sdk import dag

from include.assets import challenger_model
from include.dag_kit import schedules
from include.dag_kit.compute import in_class, training_step
from include.dag_kit.defaults import cutoff_param, default_args, tags, training_timeout
from include.dag_kit.projects import projects_to_parse
from include.dag_kit.requests import claim_request, request_params
from include.dag_kit.tasks import train as tasks
from include.projects.base import Project


def create_train_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__train",
        schedule=schedules.train_schedule(project),
        catchup=False,
        # Two challengers must not compete for one alias.
        max_active_runs=1,
        dagrun_timeout=training_timeout(project),
        params=cutoff_param() | request_params(),
        default_args=default_args(project),
        tags=tags("train", project),
        doc_md=__doc__,
    )
    def train():
        request = claim_request(project)
        basis = tasks.find_champion(request, tasks.build_training_set(request))
        shared = {"request": basis["request"], "training_set": basis["training_set"]}
        until = {"champion_fitted_until": basis["champion_fitted_until"]}

        fits = []
        # Each candidate runs in the pool of its compute class, after the trials of its search.
        for compute in project.fitting:
            choose = tasks.choose_candidates.override(task_id=in_class("choose_candidates", compute))
            chosen = choose(request, basis, compute)
            if compute in project.searching:
                plan = tasks.plan_trials.override(task_id=in_class("plan_trials", compute))
                one_of = {"shared": shared | until, "compute": compute, "at_once": project.trials_at_once}
                training_step(project, "trial", **one_of).expand(arguments=plan(request, compute)) >> chosen
            fits.append(training_step(project, "fit", compute=compute).expand(arguments=chosen).output)

        judged = {**shared, "champion": basis["champion"], **until, "fits": fits}
        evaluation = training_step(project, "evaluate", arguments=judged, trigger_rule=tasks.ANY_SKIPPED).output
        verdict = tasks.apply_gate(project.name, evaluation)

        last = {**shared, "evaluation": evaluation, "verdict": verdict}
        refits = [training_step(project, "refit", compute=compute, arguments=last) for compute in project.refitting]
        if len(refits) > 1:
            # Only the refit of the best candidate's compute class runs. The others are skipped.
            tasks.choose_refit(project.name, evaluation) >> refits

        version = tasks.register(project.name, [refit.output for refit in refits])
        announce = tasks.announce_challenger.override(outlets=[challenger_model(project)])
        tasks.settle_request(request, version) >> tasks.passed_the_gate(version) >> announce(version)

    return train()


for project in projects_to_parse():
    create_train_dag(project)
