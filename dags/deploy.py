"""Roll out a challenger, and roll back if it performs worse than the champion.

The rollout follows the project's policy: send the challenger a share of the traffic, promote it to
champion, and wait until serving has loaded it.

* **Starts** when a challenger passed the gate, or when a person triggers it with a version. An
  older version is allowed: this is how to go back to it.
* **Updates** the registry's aliases `champion` and `previous` and its rollout document. Updates the
  champion asset once serving has loaded the version.
* **Safe to rerun**: a rollout continues where it stopped. A finished rollout does not start again.
  If a person moved an alias in the meantime, the alias stays where it is.
* **On failure**: `docs/runbooks/deploy.md`
"""

from airflow.sdk import dag

from include.assets import challenger_model, champion_model
from include.dag_kit.approval import ApproveVersion
from include.dag_kit.cutoffs import decide_cutoff
from include.dag_kit.defaults import cutoff_param, default_args, deployment_timeout, tags
from include.dag_kit.projects import projects_to_parse
from include.dag_kit.rollout_steps import RollOut
from include.dag_kit.tasks import deploy as tasks
from include.projects.base import Project


def create_deploy_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__deploy",
        schedule=challenger_model(project),
        catchup=False,
        # MLflow's aliases do not support compare-and-set, so only one run may promote at a time.
        max_active_runs=1,
        dagrun_timeout=deployment_timeout(project),
        params=cutoff_param() | tasks.version_param(),
        default_args=default_args(project),
        tags=tags("deploy", project),
        doc_md=__doc__,
    )
    def deploy():
        cutoff = decide_cutoff(project)
        chosen = tasks.choose_version(project.name)
        tested = tasks.smoke_test(project.name, chosen, cutoff)
        rolled_out = RollOut(task_id="roll_out", project=project, version=tested, chosen=chosen, cutoff=cutoff).output
        promoted = tasks.promote(project.name, rolled_out, chosen, cutoff)
        served = tasks.wait_for_serving(project.name, promoted, chosen, cutoff)
        served >> tasks.announce_champion.override(outlets=[champion_model(project)])(project.name, chosen, cutoff)

        rollback = tasks.rollback(project.name, chosen, cutoff)
        [rolled_out, promoted, served] >> rollback

        if approval := project.rollout.approval:
            given = {"version": rolled_out, "chosen": chosen, "cutoff": cutoff}
            approved = ApproveVersion(task_id="approve", project=project, approval=approval, **given)
            approved >> [promoted, rollback]

    return deploy()


for project in projects_to_parse():
    create_deploy_dag(project)
