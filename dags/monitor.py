"""Monitor each project's champion, and request a retraining if needed.

It measures the champion's performance on outcomes that became known since, and the drift of its
inputs.

* **Starts** on the project's monitoring schedule, and when new predictions exist.
* **Updates** the reports (linked from the two report tasks), and in the ledger the decisions, drift
  episodes and retrain requests. Updates the project's retrain_request asset only if a request is
  open. The sweep advances requests and rollouts whose deadline has passed
  ([lifecycle](lifecycle.md)), and sends lost events again.
* **Safe to rerun**: a decision is not changed. A drift episode makes one request. A sweep changes
  only overdue entries. A run for an earlier cutoff than the last one measures that time and records
  the result, but does not request a retraining.
* **On failure**: `docs/runbooks/monitor.md`
"""

from airflow.sdk import dag

from include.assets import challenger_model, retrain_request
from include.dag_kit import schedules
from include.dag_kit.cutoffs import decide_cutoff
from include.dag_kit.defaults import RUN_TIMEOUT, cutoff_param, default_args, tags
from include.dag_kit.projects import projects_to_parse
from include.dag_kit.tasks import monitor as tasks
from include.projects.base import Project


def create_monitor_dag(project: Project):
    @dag(
        dag_id=f"{project.name}__monitor",
        schedule=schedules.monitor_schedule(project),
        catchup=False,
        # Decisions are made in the order of their cutoffs, and only one sweep counts an attempt.
        max_active_runs=1,
        dagrun_timeout=RUN_TIMEOUT,
        params=cutoff_param(),
        default_args=default_args(project),
        tags=tags("monitor", project),
        doc_md=__doc__,
    )
    def monitor():
        cutoff = decide_cutoff(project)
        performance = tasks.measure_performance(project.name, cutoff)
        drift = tasks.report_drift(project.name, cutoff)
        decision = tasks.decide_retraining(project.name, cutoff, performance, drift)

        # The sweep does not depend on the measuring tasks: it must send lost events again even if a
        # report fails.
        overdue = tasks.sweep_overdue(project.name)
        tasks.wake_train.override(outlets=[retrain_request(project)])(project.name, overdue)
        tasks.wake_deploy.override(outlets=[challenger_model(project)])(project.name, overdue)

        request = tasks.find_request(project.name, decision, overdue)
        tasks.request_retraining.override(outlets=[retrain_request(project)])(project.name, request)

    return monitor()


for project in projects_to_parse():
    create_monitor_dag(project)
