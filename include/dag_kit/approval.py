"""Approval of a version by a person, with Airflow's own approval and the evaluation in view."""

from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param

from include.projects import get_project
from include.projects.base import Project
from include.projects.rollout import Approval

REASON = {
    "reason": Param(
        "", type="string", description="Reason of the decision. It is stored with the version.", source="task"
    )
}


class ApproveVersion(ApprovalOperator):
    """Ask a person whether the version that a run of ``deploy`` has chosen may be promoted.

    While it waits, the task occupies neither a worker nor a pool slot.

    A rejection and a missing answer are normal ends: the version is withdrawn, the reason is
    recorded, and the following tasks are skipped. A version that a user chose by hand counts as
    approved.

    Args:
        chosen, version, cutoff: The results of the tasks with these names.
    """

    template_fields = (*ApprovalOperator.template_fields, "chosen", "version", "cutoff")

    def __init__(
        self, *, project: Project, approval: Approval, chosen: Any, version: Any, cutoff: Any, **options: Any
    ) -> None:
        users = [{"id": name, "name": name} for name in approval.by]
        # The approver must not be asked for the DAG's params, and the time limit of its tasks does
        # not apply to people.
        options |= {"params": REASON, "execution_timeout": None}
        super().__init__(
            subject=f"{project.name}: may this version answer everybody?",
            assigned_users=users or None,
            defaults=self.REJECT,
            response_timeout=approval.within,
            **options,
        )
        self.project_name, self.chosen, self.version, self.cutoff = project.name, chosen, version, cutoff

    def execute(self, context: Any) -> Any:
        from include.data import layout
        from include.rollout.report import approval_text, write_report

        ti = context["ti"]
        project = get_project(self.project_name)
        if self.chosen["by_person"]:
            self.log.info("version %s was chosen by the user who started this run", self.version)
            return None
        self.subject = f"{project.name}: may version {self.version} answer everybody?"
        self.body = approval_text(project, self.version, ti.run_id)
        write_report(project, self.version, ti.run_id, layout.report(project, ti.dag_id, ti.run_id, ti.task_id))
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        # Withdraw a rejected version first. This must happen even if the following tasks fail.
        if self.REJECT in (event.get("chosen_options") or []):
            from include.rollout import promotion, records

            project, run = get_project(self.project_name), context["ti"].run_id
            reason = f"not approved by {_who(event)}{_why(event)}"
            promotion.reject(project, self.version, dag_run=run, cutoff=self.cutoff, reason=reason)
            records.record_end(project, self.chosen, "refused", reason, cutoff=self.cutoff, dag_run=run)
        return super().execute_complete(context, event)


def _who(event: dict[str, Any]) -> str:
    user = event.get("responded_by_user")
    return str(user["name"]) if user else "anybody in time"


def _why(event: dict[str, Any]) -> str:
    reason = str((event.get("params_input") or {}).get("reason") or "").strip()
    return f": {reason}" if reason else ""
