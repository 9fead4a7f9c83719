"""Report the state of a project's DAG runs: failed and hanging runs, paused and missing DAGs."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from include import times
from include.projects.base import STAGES, Project
from include.stack.api import FINAL, AirflowApi
from include.times import iso

# A queued run waits for the previous run, and a training can take a day. Each DAG also has a
# ``dagrun_timeout``.
LONG = {"queued": timedelta(hours=6), "running": timedelta(hours=26)}
# A deploy run can wait for days: for the looks of a rollout, and for an approval.
PATIENT = ("deploy",)
SHOWN_CHARACTERS = 400


@dataclass(frozen=True)
class FailedRun:
    """The newest run of a DAG, if it failed.

    Attributes:
        tasks: Excludes tasks that failed because of others.
        note: The run's note in Airflow.
    """

    dag_id: str
    run_id: str
    ended: str
    tasks: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        where = f" in {', '.join(self.tasks)}" if self.tasks else ""
        return f"{self.dag_id} {self.run_id} failed at {self.ended}{where}" + (f": {self.note}" if self.note else "")


@dataclass(frozen=True)
class Runs:
    """The state of a project's DAGs.

    Attributes:
        missing: DAGs that Airflow does not know.
        long: runs that exceed the usual time or wait for a missing pool, one sentence each.
    """

    missing: tuple[str, ...]
    paused: tuple[str, ...]
    failed: tuple[FailedRun, ...]
    long: tuple[str, ...]
    newest: dict[str, dict[str, Any]]


def runs_of(api: AirflowApi, project: str) -> Runs:
    """Return the state of a project's DAGs.

    Raises:
        httpx.HTTPError: Airflow does not answer, or refuses.
    """
    wanted = [f"{project}__{stage}" for stage in STAGES]
    dags = {
        dag["dag_id"]: dag
        for dag in api.call("GET", "dags", params={"dag_id_pattern": f"{project}__", "limit": 100})["dags"]
    }
    newest: dict[str, dict[str, Any]] = {}
    failed: list[FailedRun] = []
    long: list[str] = []
    pools = {pool["name"] for pool in api.call("GET", "pools", params={"limit": 1000})["pools"]}
    for dag_id in (dag_id for dag_id in wanted if dag_id in dags):
        runs = api.runs(dag_id, limit=5)
        if runs:
            newest[dag_id] = runs[0]
        ended = next((run for run in runs if run["state"] in FINAL), None)
        if ended is not None and ended["state"] == "failed":
            note = " ".join((ended.get("note") or "").split())[:SHOWN_CHARACTERS]
            at = str(ended.get("end_date") or "an unknown time")
            failed.append(FailedRun(dag_id, ended["dag_run_id"], at, tuple(failed_tasks(api, ended)), note))
        long += [warning for run in runs if (warning := _too_long(dag_id, run))]
        long += [warning for run in runs if run["state"] == "running" for warning in _without_pool(api, run, pools)]
    paused = tuple(dag_id for dag_id in wanted if dag_id in dags and dags[dag_id]["is_paused"])
    return Runs(tuple(dag_id for dag_id in wanted if dag_id not in dags), paused, tuple(failed), tuple(long), newest)


def failed_tasks(api: AirflowApi, run: dict[str, Any]) -> list[str]:
    """Return the failed tasks of a run, without tasks that failed because of others."""
    return sorted(
        {task["task_id"] for task in api.task_instances(run["dag_id"], run["dag_run_id"]) if task["state"] == "failed"}
    )


def follow(
    api: AirflowApi, dag_id: str, run_id: str, tell: Callable[[str], None], *, timeout: float, every: float = 1.0
) -> str | None:
    """Wait for the end of a run, and report each change of a task's state.

    Returns:
        ``success`` or ``failed``, or None if the run still runs after ``timeout`` seconds.
    """
    known: dict[str, str] = {}
    deadline = time.monotonic() + timeout
    while True:
        state = str(api.run(dag_id, run_id)["state"])
        for task in api.task_instances(dag_id, run_id):
            name = task["task_id"] + (f"[{task['map_index']}]" if task.get("map_index", -1) >= 0 else "")
            now = str(task["state"] or "")
            if now not in ("", "None", "scheduled", "queued") and known.get(name) != now:
                known[name] = now
                tell(f"{iso(times.utc_now())}  {name}: {now}")
        if state in FINAL:
            return state
        if time.monotonic() > deadline:
            return None
        time.sleep(every)


def errors(api: AirflowApi, dag_id: str, run_id: str) -> Iterator[str]:
    """Yield the last error in the log of each failed task, one line each."""
    for task in api.task_instances(dag_id, run_id):
        if task["state"] != "failed":
            continue
        index = task.get("map_index", -1)
        path = f"dags/{dag_id}/dagRuns/{api.quoted(run_id)}/taskInstances/{task['task_id']}/logs/{task['try_number']}"
        content = api.call("GET", path, params={"map_index": index, "full_content": "true"}).get("content", [])
        yield f"{task['task_id']}{f'[{index}]' if index >= 0 else ''}: {_last_error(content)}"


def _last_error(content: Any) -> str:
    lines = content if isinstance(content, list) else []
    for line in reversed(lines):
        for error in reversed(line.get("error_detail") or [] if isinstance(line, dict) else []):
            text = f"{error.get('exc_type', 'error')}: {error.get('exc_value', '')}"
            return " ".join(text.split())[:SHOWN_CHARACTERS]
    return "its log tells more"


def missing_pools(api: AirflowApi, project: Project) -> list[str]:
    """Return the missing pools of a project's training steps.

    Airflow keeps tasks of a missing pool in ``scheduled`` without an error.
    """
    there = {pool["name"] for pool in api.call("GET", "pools", params={"limit": 1000})["pools"]}
    return sorted({"cpu", *(candidate.compute for candidate in project.candidates)} - there)


def _without_pool(api: AirflowApi, run: dict[str, Any], pools: set[str]) -> Iterator[str]:
    waiting = {
        str(task["pool"])
        for task in api.task_instances(run["dag_id"], run["dag_run_id"])
        if task["state"] == "scheduled" and task.get("pool")
    }
    for name in sorted(waiting - pools):
        yield (
            f"{run['dag_id']} {run['dag_run_id']} waits for pool {name}, which Airflow does not have: `airloop"
            " sync-pools` makes it"
        )


def _too_long(dag_id: str, run: dict[str, Any]) -> str | None:
    since = run.get("start_date") or run.get("queued_at") or run.get("run_after")
    limit = LONG.get(run["state"])
    if limit is None or since is None or dag_id.endswith(tuple(f"__{stage}" for stage in PATIENT)):
        return None
    began = datetime.fromisoformat(str(since)).astimezone(UTC)
    if times.utc_now() - began < limit:
        return None
    return f"{dag_id} {run['dag_run_id']} is {run['state']} since {iso(began)}"
