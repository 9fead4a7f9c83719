"""Check requests, drift episodes, notices, runs, and the age of the last backup."""

from collections.abc import Iterator
from datetime import timedelta

import httpx

from include import ledger, times
from include.ledger import moment
from include.operations.doctor.finding import Finding, fault, note, ok
from include.operations.project_status import SERVER_SECONDS, next_step
from include.projects import all_projects
from include.settings import Settings
from include.stack.api import AirflowApi
from include.stack.runs import runs_of

BACKUP_AGE = timedelta(days=7)
# Each run of monitor handles overdue requests. It runs at least daily.
OVERDUE = timedelta(days=2)


def requests(_: Settings) -> Iterator[Finding]:
    """Report requests, drift episodes and notices that need attention.

    These are requests with an expired deadline, the newest request if it failed, open drift
    episodes, and undelivered notices.
    """
    for project in all_projects():
        known = ledger.requests(project.name)
        late = [one for one in known if one.live and one.deadline and times.utc_now() - moment(one.deadline) > OVERDUE]
        for one in late:
            fix = (
                f"let {project.name}__monitor run: its sweep brings requests on. Is it paused, or does it fail before"
                " `sweep_overdue`?"
            )
            yield fault("requests", f"{project.name}: {next_step(one)}; that has passed", fix)
        waiting = [one for one in known if one.live and one not in late]
        for one in waiting:
            yield note("requests", f"{project.name}: {next_step(one)}")
        if known and known[-1].state == "failed":
            yield note(
                "requests", f"{project.name}: the newest one failed: {known[-1]}: {known[-1].outcome.get('reason')}"
            )
        if episode := ledger.current_episode(project.name):
            yield note(
                "episodes",
                f"{project.name}: drift since {episode['opened']}: {'; '.join(episode['evidence'].get('reasons', []))}",
            )
        untold = [one for one in ledger.notices(project.name) if not one["told_at"]]
        if untold:
            what = (
                f"{project.name}: AIRLOOP_NOTIFY did not take {len(untold)} notices; the newest: {untold[-1]['text']}"
            )
            yield fault("notices", what, "mend AIRLOOP_NOTIFY; the log of monitor's `sweep_overdue` says how it failed")
        if not late and not waiting:
            yield ok("requests", f"{project.name}: none waits")


def runs(settings: Settings) -> Iterator[Finding]:
    """Report failed and hanging runs, and paused DAGs."""
    for project in all_projects():
        try:
            # Check first, because the client itself retries for longer.
            httpx.get(f"{settings.airflow_url}/api/v2/version", timeout=SERVER_SECONDS, trust_env=False)
            dag_runs = runs_of(AirflowApi.from_settings(settings), project.name)
        except httpx.HTTPError:
            # The Airflow check reports it.
            return
        for run in dag_runs.failed:
            where = f"{settings.airflow_url}/dags/{run.dag_id}/runs/{run.run_id}"
            yield fault(
                "runs",
                str(run),
                f"see its log at {where} and docs/runbooks/{run.dag_id.partition('__')[2]}.md; then clear the failed"
                " tasks",
            )
        for line in dag_runs.long:
            yield fault(
                "runs",
                line,
                "see its log; a run that hangs can be marked as failed in Airflow, and every step can be run again",
            )
        for dag_id in dag_runs.paused:
            yield note("runs", f"{dag_id} is paused: what would start it waits")
        if not (dag_runs.failed or dag_runs.long):
            yield ok("runs", f"{project.name}: of no DAG has the newest run failed, and none hangs")


def last_backup(settings: Settings) -> Iterator[Finding]:
    """Report the age of the last backup."""
    backups = [one for one in ledger.decisions("*", "backup") if one["verdict"] == "saved"]
    if not backups:
        yield note("backup", "none was ever made: `airloop backup FILE` saves what the loop cannot do without")
        return
    newest = max(backups, key=lambda one: one["recorded_at"])
    age = times.utc_now() - moment(newest["recorded_at"])
    description = f"the last one is {newest['subject']}, of {newest['recorded_at']} ({age.days} days ago)"
    if age <= BACKUP_AGE:
        yield ok("backup", description)
    elif settings.profile == "embedded":
        yield note("backup", description)
    else:
        yield fault("backup", description, "make one each day: docs/runbooks/operations.md")
