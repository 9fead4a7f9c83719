"""The tasks of ``dags/monitor.py``."""

from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowSkipException

from include.assets import challenger_model, retrain_request
from include.projects import get_project


@task
def sweep_overdue(project_name: str, *, ti: Any = None) -> dict[str, Any]:
    """Resume or end the requests and rollouts whose deadline has passed."""
    from include.dag_kit.airflow_states import AirflowStates
    from include.rollout.overdue import sweep

    return sweep(get_project(project_name), AirflowStates(ti))


@task
def wake_train(project_name: str, overdue: dict[str, Any], *, outlet_events: Any = None) -> None:
    """Send the event of an overdue retrain request again. Skip if there is none."""
    outlet_events[retrain_request(get_project(project_name))].extra = _unless_nothing_waits(overdue["train"])


@task
def wake_deploy(project_name: str, overdue: dict[str, Any], *, outlet_events: Any = None) -> None:
    """Send the event of an overdue rollout again. Skip if there is none."""
    outlet_events[challenger_model(get_project(project_name))].extra = _unless_nothing_waits(overdue["deploy"])


@task
def measure_performance(project_name: str, cutoff: str, *, ti: Any = None) -> dict[str, Any]:
    """Measure the champion on outcomes that became known. Skip if there is no champion."""
    from include.monitoring.reports import publish_performance

    evidence = publish_performance(get_project(project_name), cutoff, ti.dag_id, ti.run_id, ti.task_id)
    return _unless_no_champion(evidence)


@task
def report_drift(project_name: str, cutoff: str, *, ti: Any = None) -> dict[str, Any]:
    """Measure the drift of the champion's inputs. Skip if there is no champion."""
    from include.monitoring.reports import publish_drift

    evidence = publish_drift(get_project(project_name), cutoff, ti.dag_id, ti.run_id, ti.task_id)
    return _unless_no_champion(evidence)


# Without a champion the measuring tasks are skipped. The decision records that state too.
@task(trigger_rule="none_failed")
def decide_retraining(
    project_name: str,
    cutoff: str,
    performance: dict[str, Any] | None,
    drift: dict[str, Any] | None,
    *,
    run_id: Any = None,
) -> dict[str, Any]:
    """Decide whether a retraining is needed, and write the decision and request to the ledger."""
    from include.monitoring import episodes

    summary = episodes.decide_retraining(get_project(project_name), cutoff, performance, drift, dag_run=run_id)
    return {key: summary[key] for key in ("state", "asked", "request")}


@task.short_circuit
def find_request(project_name: str, decision: dict[str, Any], overdue: dict[str, Any]) -> dict[str, Any] | None:
    """Return the open retrain request, or None if no event has to be sent.

    The request is read from the ledger, not from the decision. So the next run sends an event again
    if Airflow lost it.
    """
    from include.monitoring import episodes

    request = episodes.unclaimed_request(get_project(project_name))
    # If train is overdue, `wake_train` sends the event.
    if request is None or overdue["train"]:
        return None
    return {"request": request.id, "cutoff": request.cutoff}


@task
def request_retraining(project_name: str, request: dict[str, Any], *, outlet_events: Any = None) -> None:
    """Announce the request, which starts ``train``."""
    outlet_events[retrain_request(get_project(project_name))].extra = request


def _unless_no_champion(evidence: dict[str, Any] | None) -> dict[str, Any]:
    if evidence is None:
        raise AirflowSkipException(
            "no version is champion: nothing to measure. decide_retraining says whether one is lost"
        )
    return evidence


def _unless_nothing_waits(event: dict[str, Any] | None) -> dict[str, Any]:
    if event is None:
        raise AirflowSkipException("nothing waits for it")
    return event
