"""Watch each project's champion: its performance on outcomes known since, and drift of its inputs; ask for a retraining if need be.

* **Starts** on the project's monitoring schedule, and when new predictions are there.
* **Updates** the reports (one click away from the two report tasks), the ledger's decisions, drift episodes and retrain
  requests, and the project's retrain_request asset, only when there is a request to work on. Its sweep brings on requests and
  rollouts whose deadline has passed ([lifecycle](lifecycle.md)), and sends lost events again.
* **Safe to rerun**: a decision stands; a drift episode asks once; a sweep changes only what is overdue.
  A run for an earlier cutoff than the last one measures that time and puts it on record; it asks for nothing.
* **On failure**: `docs/runbooks/monitor.md`
"""

from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, dag, task

from include.assets import challenger_model, predictions, retrain_request
from include.dag_kit.cutoffs import decide_cutoff
from include.dag_kit.defaults import RUN_TIMEOUT, cutoff_param, default_args, tags
from include.dag_kit.projects import projects_to_parse
from include.projects import get_project
from include.projects.base import Project


def schedule(project: Project):
    if project.monitor_schedule is None:
        return predictions(project)
    clock = CronTriggerTimetable(project.monitor_schedule, timezone="UTC", run_immediately=False)
    return AssetOrTimeSchedule(timetable=clock, assets=predictions(project))


def create_monitor_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__monitor",
        schedule=schedule(project),
        catchup=False,
        max_active_runs=1,  # decisions are made in the order of their cutoffs, and one sweep counts an attempt
        dagrun_timeout=RUN_TIMEOUT,
        params=cutoff_param(),
        default_args=default_args(project),
        tags=tags("monitor", project),
        doc_md=__doc__,
    )
    def monitor():
        # Beside the measuring, and not after it: a report that fails must not keep a lost event lost.
        @task
        def sweep_overdue(project_name: str, *, ti=None) -> dict:
            from include.dag_kit.airflow_states import AirflowStates
            from include.rollout.overdue import sweep

            return sweep(get_project(project_name), AirflowStates(ti))

        @task(outlets=[retrain_request(project)])
        def wake_train(overdue: dict, *, outlet_events=None) -> None:
            outlet_events[retrain_request(project)].extra = skip_unless_waiting(overdue["train"])

        @task(outlets=[challenger_model(project)])
        def wake_deploy(overdue: dict, *, outlet_events=None) -> None:
            outlet_events[challenger_model(project)].extra = skip_unless_waiting(overdue["deploy"])

        cutoff = decide_cutoff(project)

        @task
        def measure_performance(project_name: str, cutoff: str, *, ti=None) -> dict:
            from include.monitoring.reports import publish_performance

            return skip_unless_champion(publish_performance(get_project(project_name), cutoff, ti.dag_id, ti.run_id, ti.task_id))

        @task
        def report_drift(project_name: str, cutoff: str, *, ti=None) -> dict:
            from include.monitoring.reports import publish_drift

            return skip_unless_champion(publish_drift(get_project(project_name), cutoff, ti.dag_id, ti.run_id, ti.task_id))

        @task(trigger_rule="none_failed")  # without a champion nothing is measured, and that is a verdict too
        def decide_retraining(project_name: str, cutoff: str, performance: dict | None, drift: dict | None, *, run_id=None) -> dict:
            from include.monitoring import episodes

            summary = episodes.decide_retraining(get_project(project_name), cutoff, performance, drift, dag_run=run_id)
            return {key: summary[key] for key in ("state", "asked", "request")}

        @task.short_circuit
        def find_request(project_name: str, decision: dict, overdue: dict) -> dict | None:
            from include.monitoring import episodes

            # In the ledger, not in the decision: an event that Airflow lost is sent again by the next run.
            request = episodes.unclaimed_request(get_project(project_name))
            if request is None or overdue["train"]:  # the sweep has woken train already
                return None
            return {"request": request.id, "cutoff": request.cutoff}

        @task(outlets=[retrain_request(project)])
        def request_retraining(request: dict, *, outlet_events=None) -> None:
            outlet_events[retrain_request(project)].extra = request

        performance = measure_performance(project.name, cutoff)
        drift = report_drift(project.name, cutoff)
        decision = decide_retraining(project.name, cutoff, performance, drift)
        overdue = sweep_overdue(project.name)
        wake_train(overdue)
        wake_deploy(overdue)
        request_retraining(find_request(project.name, decision, overdue))

    return monitor()


def skip_unless_champion(found: dict | None) -> dict:
    from airflow.sdk.exceptions import AirflowSkipException

    if found is None:
        raise AirflowSkipException("no version is champion: nothing to measure. decide_retraining says whether one is lost")
    return found


def skip_unless_waiting(event: dict | None) -> dict:
    from airflow.sdk.exceptions import AirflowSkipException

    if event is None:
        raise AirflowSkipException("nothing waits for it")
    return event


for project in projects_to_parse():
    create_monitor_dag(project)
