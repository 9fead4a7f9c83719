"""The steps of a rollout as one task, which waits in the triggerer from one look at the version's answers to the next."""

from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from include import times
from include.projects import get_project
from include.projects.base import Project


class RollOut(BaseOperator):
    """Advances a rollout until its steps are over, and returns the version.

    Between two looks the task is deferred: it holds no worker and no slot of a pool. A look that fails is tried again as any task is.

    Args:
        version, chosen, cutoff: what the tasks ``smoke_test``, ``choose_version`` and ``decide_cutoff`` return.

    Raises:
        AirflowFailException: the steps are not over when the run has lasted for the policy's ``patience``. ``put_old_one_back`` then takes the version back.
    """

    template_fields = ("version", "chosen", "cutoff")

    def __init__(self, *, project: Project, version: Any, chosen: Any, cutoff: Any, **options: Any) -> None:
        super().__init__(**options)
        self.project_name, self.version, self.chosen, self.cutoff = project.name, version, chosen, cutoff

    def execute(self, context: Any) -> str | None:
        return self.look(context)

    def look(self, context: Any, event: Any = None) -> str | None:
        """Look at the version's answers once; wait for the next look unless the steps are over."""
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        from include.dag_kit.rollouts import ends_on_record
        from include.rollout.records import hold_request
        from include.rollout.report import advance_and_report

        project, ti = get_project(self.project_name), context["ti"]
        hold_request(self.chosen, dag_run=ti.run_id)
        with ends_on_record(project, self.chosen, cutoff=self.cutoff, dag_run=ti.run_id):
            over = advance_and_report(project, self.version, self.chosen, self.cutoff, ti.dag_id, ti.run_id, ti.task_id)
            if over:
                return str(self.version)
            following = times.utc_now() + project.rollout.look_every
            if following > context["dag_run"].start_date + project.rollout.patience:
                raise AirflowFailException(f"the rollout of version {self.version} is not over after {project.rollout.patience} (RolloutPolicy.patience)")
        self.defer(trigger=DateTimeTrigger(moment=following), method_name="look")
        return None  # never: ``defer`` raises
