"""Run the steps of a rollout as one task, which waits in the triggerer between two looks."""

from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from include import times
from include.projects import get_project
from include.projects.base import Project


class RollOut(BaseOperator):
    """Advance a rollout until its steps are completed, and return the version.

    Between two looks the task is deferred: it holds neither a worker nor a pool slot. A look that
    fails is retried like any task.

    Args:
        version, chosen, cutoff: The results of the tasks ``smoke_test``, ``choose_version`` and
            ``decide_cutoff``.

    Raises:
        AirflowFailException: The steps are not completed within the policy's ``patience``.
            ``rollback`` then rolls the version back.
    """

    template_fields = ("version", "chosen", "cutoff")

    def __init__(self, *, project: Project, version: Any, chosen: Any, cutoff: Any, **options: Any) -> None:
        super().__init__(**options)
        self.project_name, self.version, self.chosen, self.cutoff = project.name, version, chosen, cutoff

    def execute(self, context: Any) -> str | None:
        return self.look(context)

    def look(self, context: Any, event: Any = None) -> str | None:
        """Evaluate the version's answers once. Defer unless the steps are completed."""
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        from include.dag_kit.rollouts import record_rollout_outcome
        from include.rollout.records import hold_request
        from include.rollout.report import advance_and_report

        project, ti = get_project(self.project_name), context["ti"]
        hold_request(self.chosen, dag_run=ti.run_id)
        with record_rollout_outcome(project, self.chosen, cutoff=self.cutoff, dag_run=ti.run_id):
            over = advance_and_report(project, self.version, self.chosen, self.cutoff, ti.dag_id, ti.run_id, ti.task_id)
            if over:
                return str(self.version)
            following = times.utc_now() + project.rollout.look_every
            if following > context["dag_run"].start_date + project.rollout.patience:
                raise AirflowFailException(
                    f"the rollout of version {self.version} is not over after {project.rollout.patience}"
                    " (RolloutPolicy.patience)"
                )
        self.defer(trigger=DateTimeTrigger(moment=following), method_name="look")
        return None  # Never reached: ``defer`` raises.
