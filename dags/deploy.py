"""Try a challenger on a part of the traffic, as the project asks, make it the champion, wait until serving serves it; put the old one back if it is worse.

* **Starts** when a challenger passed the gate, or by a person, with a version (also an old one: that is how to go back).
* **Updates** the registry's aliases `champion` and `previous` and its rollout document; the champion asset once serving serves it.
* **Safe to rerun**: a rollout is taken up where it was left, an ended one is not begun again; an alias that a person moved meanwhile stays there.
* **On failure**: `docs/runbooks/deploy.md`
"""

from airflow.sdk import Param, TriggerRule, dag, task

from include.assets import challenger_model, champion_model
from include.dag_kit.approval import ApproveVersion
from include.dag_kit.cutoffs import decide_cutoff
from include.dag_kit.defaults import cutoff_param, default_args, deployment_timeout, tags
from include.dag_kit.projects import projects_to_parse
from include.dag_kit.rollout_steps import RollOut
from include.dag_kit.rollouts import ends_on_record
from include.projects import get_project
from include.projects.base import Project

VERSION = {"version": Param(None, type=["null", "string"], pattern="^[0-9]+$", description="Deploy this version. Empty: the challenger.")}


def create_deploy_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__deploy",
        schedule=challenger_model(project),
        catchup=False,
        max_active_runs=1,  # aliases have no compare-and-set: one promoter at a time
        dagrun_timeout=deployment_timeout(project),
        params=cutoff_param() | VERSION,
        default_args=default_args(project),
        tags=tags("deploy", project),
        doc_md=__doc__,
    )
    def deploy():
        @task
        def choose_version(project_name: str, *, params=None, triggering_asset_events=None) -> dict:
            from include.rollout.records import chosen_version

            events = [event.extra for events in (triggering_asset_events or {}).values() for event in events]
            return chosen_version(get_project(project_name), events, (params or {}).get("version"))

        @task
        def smoke_test(project_name: str, chosen: dict, cutoff: str, *, run_id=None) -> str:
            from include.rollout.promotion import refuse_frozen, smoke_test
            from include.rollout.records import hold_request

            project = get_project(project_name)
            with ends_on_record(project, chosen, cutoff=cutoff, dag_run=run_id):
                refuse_frozen(project, chosen["version"], dag_run=run_id)  # promote asks again
                hold_request(chosen, dag_run=run_id)
                smoke_test(project, chosen["version"])
            return chosen["version"]

        @task
        def promote(project_name: str, version: str, chosen: dict, cutoff: str, *, run_id=None) -> str:
            from include.rollout.promotion import promote
            from include.rollout.steps import last_look

            project = get_project(project_name)
            with ends_on_record(project, chosen, cutoff=cutoff, dag_run=run_id):
                last_look(project, version, dag_run=run_id)
                promote(project, version, dag_run=run_id, cutoff=cutoff, by_person=chosen["by_person"])
            return version

        @task
        def wait_for_serving(project_name: str, version: str, chosen: dict, cutoff: str, *, run_id=None) -> None:
            from include.rollout.promotion import wait_for_serving

            project = get_project(project_name)
            with ends_on_record(project, chosen, cutoff=cutoff, dag_run=run_id):
                wait_for_serving(project, version)

        @task(outlets=[champion_model(project)])
        def announce_champion(project_name: str, chosen: dict, cutoff: str, *, run_id=None, outlet_events=None) -> None:
            from include.rollout import promotion, records

            promotion.confirm(get_project(project_name), chosen["version"], run_id)
            records.record_end(get_project(project_name), chosen, "deployed", "serving serves it", cutoff=cutoff, dag_run=run_id)
            outlet_events[champion_model(project)].extra = {"cutoff": cutoff, "version": chosen["version"]}

        @task(trigger_rule=TriggerRule.ONE_FAILED)
        def put_old_one_back(project_name: str, chosen: dict, cutoff: str, *, run_id=None) -> None:
            from airflow.sdk.exceptions import AirflowSkipException

            from include.rollout import promotion, records

            project = get_project(project_name)
            with ends_on_record(project, chosen, cutoff=cutoff, dag_run=run_id):
                rollout = promotion.put_back(project, chosen["version"], dag_run=run_id, reason="serving did not come to serve it, or it took too long")
            if rollout is None:
                raise AirflowSkipException("no alias was moved by this run: nothing to put back")
            why = f"{rollout.reason}; champion is version {rollout.previous or 'none'} again"
            records.record_end(project, chosen, "rolled_back", why, cutoff=cutoff, dag_run=run_id)

        cutoff = decide_cutoff(project)
        chosen = choose_version(project.name)
        tested = smoke_test(project.name, chosen, cutoff)
        rolled_out = RollOut(task_id="roll_out", project=project, version=tested, chosen=chosen, cutoff=cutoff).output
        promoted = promote(project.name, rolled_out, chosen, cutoff)
        served = wait_for_serving(project.name, promoted, chosen, cutoff)
        served >> announce_champion(project.name, chosen, cutoff)
        old_one = put_old_one_back(project.name, chosen, cutoff)
        [rolled_out, promoted, served] >> old_one

        if approval := project.rollout.approval:
            approved = ApproveVersion(task_id="approve", project=project, approval=approval, chosen=chosen, version=rolled_out, cutoff=cutoff)
            approved >> [promoted, old_one]

    return deploy()


for project in projects_to_parse():
    create_deploy_dag(project)
