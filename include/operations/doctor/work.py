"""Check the loop's work: open requests, drift episodes, notices, failed and hanging runs, paused DAGs, age of the last backup."""

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
    """Report requests with an expired deadline, the newest request if it failed, open drift episodes, and undelivered notices."""
    for project in all_projects():
        known = ledger.requests(project.name)
        late = [one for one in known if one.live and one.deadline and times.utc_now() - moment(one.deadline) > OVERDUE]
        for one in late:
            fix = f"let {project.name}__monitor run: its sweep brings requests on. Is it paused, or does it fail before `sweep_overdue`?"
            yield fault("requests", f"{project.name}: {next_step(one)}; that has passed", fix)
        waiting = [one for one in known if one.live and one not in late]
        for one in waiting:
            yield note("requests", f"{project.name}: {next_step(one)}")
        if known and known[-1].state == "failed":
            yield note("requests", f"{project.name}: the newest one failed: {known[-1]}: {known[-1].outcome.get('reason')}")
        if episode := ledger.current_episode(project.name):
            yield note("episodes", f"{project.name}: drift since {episode['opened']}: {'; '.join(episode['evidence'].get('reasons', []))}")
        untold = [one for one in ledger.notices(project.name) if not one["told_at"]]
        if untold:
            what = f"{project.name}: AIRLOOP_NOTIFY did not take {len(untold)} notices; the newest: {untold[-1]['text']}"
            yield fault("notices", what, "mend AIRLOOP_NOTIFY; the log of monitor's `sweep_overdue` says how it failed")
        if not late and not waiting:
            yield ok("requests", f"{project.name}: none waits")


def runs(settings: Settings) -> Iterator[Finding]:
    """Report failed and hanging runs, and paused DAGs."""
    for project in all_projects():
        try:
            httpx.get(f"{settings.airflow_url}/api/v2/version", timeout=SERVER_SECONDS, trust_env=False)  # the client tries for longer
            found = runs_of(AirflowApi.of(settings), project.name)
        except httpx.HTTPError:
            return  # reported by the Airflow check
        for run in found.failed:
            where = f"{settings.airflow_url}/dags/{run.dag_id}/runs/{run.run_id}"
            yield fault("runs", str(run), f"see its log at {where} and docs/runbooks/{run.dag_id.partition('__')[2]}.md; then clear the failed tasks")
        for line in found.long:
            yield fault("runs", line, "see its log; a run that hangs can be marked as failed in Airflow, and every step can be run again")
        for dag_id in found.paused:
            yield note("runs", f"{dag_id} is paused: what would start it waits")
        if not (found.failed or found.long):
            yield ok("runs", f"{project.name}: of no DAG has the newest run failed, and none hangs")


def last_backup(settings: Settings) -> Iterator[Finding]:
    """Report the age of the last backup."""
    made = [one for one in ledger.decisions("*", "backup") if one["verdict"] == "saved"]
    if not made:
        yield note("backup", "none was ever made: `airloop backup FILE` saves what the loop cannot do without")
        return
    newest = max(made, key=lambda one: one["recorded_at"])
    age = times.utc_now() - moment(newest["recorded_at"])
    said = f"the last one is {newest['subject']}, of {newest['recorded_at']} ({age.days} days ago)"
    if age <= BACKUP_AGE:
        yield ok("backup", said)
    elif settings.profile == "embedded":
        yield note("backup", said)
    else:
        yield fault("backup", said, "make one each day: docs/runbooks/operations.md")
