"""The tasks of ``dags/deploy.py`` before and after the rollout's steps."""

from typing import Any

from airflow.sdk import Param, TriggerRule, task
from airflow.sdk.exceptions import AirflowSkipException

from include.assets import champion_model
from include.dag_kit.rollouts import record_rollout_outcome
from include.projects import get_project


def version_param() -> dict[str, Param]:
    """Return the parameter of a manual run, which ``choose_version`` reads.

    Each DAG needs its own object, see ``cutoff_param``.
    """
    about = "Version to deploy. If empty, the challenger is deployed."
    return {"version": Param(None, type=["null", "string"], pattern="^[0-9]+$", description=about)}


@task
def choose_version(project_name: str, *, params: Any = None, triggering_asset_events: Any = None) -> dict[str, Any]:
    """Return the version to deploy: the one that a person named, else the newest challenger."""
    from include.rollout import records

    events = [event.extra for events in (triggering_asset_events or {}).values() for event in events]
    return records.chosen_version(get_project(project_name), events, (params or {}).get("version"))


@task
def smoke_test(project_name: str, chosen: dict[str, Any], cutoff: str, *, run_id: Any = None) -> str:
    """Load the version as serving does, and check its golden requests. Return the version."""
    from include.rollout import promotion, records

    project = get_project(project_name)
    with record_rollout_outcome(project, chosen, cutoff=cutoff, dag_run=run_id):
        # `promote` checks again, because the project may be frozen after this task.
        promotion.refuse_frozen(project, chosen["version"], dag_run=run_id)
        records.hold_request(chosen, dag_run=run_id)
        promotion.smoke_test(project, chosen["version"])
    return str(chosen["version"])


@task
def promote(project_name: str, version: str, chosen: dict[str, Any], cutoff: str, *, run_id: Any = None) -> str:
    """Make the version the champion, after a last look at its answers. Return the version."""
    from include.rollout import promotion, steps

    project = get_project(project_name)
    with record_rollout_outcome(project, chosen, cutoff=cutoff, dag_run=run_id):
        steps.last_look(project, version, dag_run=run_id)
        promotion.promote(project, version, dag_run=run_id, cutoff=cutoff, by_person=chosen["by_person"])
    return version


@task
def wait_for_serving(
    project_name: str, version: str, chosen: dict[str, Any], cutoff: str, *, run_id: Any = None
) -> None:
    """Wait until serving has loaded the version."""
    from include.rollout import promotion

    project = get_project(project_name)
    with record_rollout_outcome(project, chosen, cutoff=cutoff, dag_run=run_id):
        promotion.wait_for_serving(project, version)


@task
def announce_champion(
    project_name: str, chosen: dict[str, Any], cutoff: str, *, run_id: Any = None, outlet_events: Any = None
) -> None:
    """End the rollout, record it, and announce the champion."""
    from include.rollout import promotion, records

    project, version = get_project(project_name), chosen["version"]
    promotion.confirm(project, version, run_id)
    records.record_end(project, chosen, "deployed", "serving serves it", cutoff=cutoff, dag_run=run_id)
    outlet_events[champion_model(project)].extra = {"cutoff": cutoff, "version": version}


@task(trigger_rule=TriggerRule.ONE_FAILED)
def rollback(project_name: str, chosen: dict[str, Any], cutoff: str, *, run_id: Any = None) -> None:
    """Make the previous version the champion again. Skip if this run moved no alias."""
    from include.rollout import promotion, records

    project = get_project(project_name)
    reason = "serving did not come to serve it, or it took too long"
    with record_rollout_outcome(project, chosen, cutoff=cutoff, dag_run=run_id):
        rollout = promotion.restore_previous(project, chosen["version"], dag_run=run_id, reason=reason)
    if rollout is None:
        raise AirflowSkipException("no alias was moved by this run: nothing to put back")
    why = f"{rollout.reason}; champion is version {rollout.previous or 'none'} again"
    records.record_end(project, chosen, "rolled_back", why, cutoff=cutoff, dag_run=run_id)
