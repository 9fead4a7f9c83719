"""A person says whether a version may answer everybody: Airflow's own approval, with the evaluation before his eyes."""

from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param

from include.projects import get_project
from include.projects.base import Project
from include.projects.rollout import Approval

REASON = {"reason": Param("", type="string", description="Why; it stands with the version.", source="task")}


class ApproveVersion(ApprovalOperator):
    """Asks whether the version that a run of ``deploy`` has chosen may be promoted; it waits without holding a worker, or a slot of a pool.

    No, and no answer in time, is a normal end: the version is taken back, that is on record, and what comes after is skipped. Whoever chose the version
    by hand has said yes by that.

    Args:
        chosen, version, cutoff: what the tasks of these names give.
    """

    template_fields = (*ApprovalOperator.template_fields, "chosen", "version", "cutoff")

    def __init__(self, *, project: Project, approval: Approval, chosen: Any, version: Any, cutoff: Any, **options: Any) -> None:
        users = [{"id": name, "name": name} for name in approval.by]
        # The DAG's params are no questions to the approver, and the time limit of its tasks is none for people.
        options |= {"params": REASON, "execution_timeout": None}
        super().__init__(
            subject=f"{project.name}: may this version answer everybody?", assigned_users=users or None, defaults=self.REJECT,
            response_timeout=approval.within, **options,
        )  # fmt: skip
        self.project_name, self.chosen, self.version, self.cutoff = project.name, chosen, version, cutoff

    def execute(self, context: Any) -> Any:
        from include.data import layout
        from include.rollout.report import approval_text, write_report

        ti = context["ti"]
        project = get_project(self.project_name)
        if self.chosen["by_person"]:
            self.log.info("version %s was chosen by whoever started this run", self.version)
            return None
        self.subject = f"{project.name}: may version {self.version} answer everybody?"
        self.body = approval_text(project, self.version, ti.run_id)
        write_report(project, self.version, ti.run_id, layout.report(project, ti.dag_id, ti.run_id, ti.task_id))
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        # The answer first: what it undoes must be undone, whatever becomes of the tasks after it.
        if self.REJECT in (event.get("chosen_options") or []):
            from include.rollout import promotion, records

            project, run = get_project(self.project_name), context["ti"].run_id
            reason = f"not approved by {_who(event)}{_why(event)}"
            promotion.turn_down(project, self.version, dag_run=run, cutoff=self.cutoff, reason=reason)
            records.record_end(project, self.chosen, "refused", reason, cutoff=self.cutoff, dag_run=run)
        return super().execute_complete(context, event)


def _who(event: dict[str, Any]) -> str:
    user = event.get("responded_by_user")
    return str(user["name"]) if user else "anybody in time"


def _why(event: dict[str, Any]) -> str:
    said = str((event.get("params_input") or {}).get("reason") or "").strip()
    return f": {said}" if said else ""
