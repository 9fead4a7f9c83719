"""What Airflow's runs of a project's DAGs have come to: which failed, which hang, which DAGs are paused."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from include import times
from include.projects.base import STAGES, Project
from include.stack.api import FINAL, AirflowApi
from include.times import iso

# A queued run waits for the run before it; a training may take a day. Each DAG has a time limit of its own, after which Airflow ends the run.
LONG = {"queued": timedelta(hours=6), "running": timedelta(hours=26)}
# Runs of deploy wait for days by design: for looks at a rollout, and for a person.
PATIENT = ("deploy",)
SHOWN_CHARACTERS = 400


@dataclass(frozen=True)
class FailedRun:
    """The newest run of a DAG, if it failed. ``tasks`` are those that failed themselves."""

    dag_id: str
    run_id: str
    ended: str
    tasks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.dag_id} {self.run_id} failed at {self.ended}" + (f" in {', '.join(self.tasks)}" if self.tasks else "")


@dataclass(frozen=True)
class Runs:
    """The state of a project's DAGs.

    Attributes:
        missing: DAGs that Airflow does not know.
        long: runs that are queued or running for longer than usual, a sentence each.
    """

    missing: tuple[str, ...]
    paused: tuple[str, ...]
    failed: tuple[FailedRun, ...]
    long: tuple[str, ...]
    newest: dict[str, dict[str, Any]]


def runs_of(api: AirflowApi, project: str) -> Runs:
    """Ask Airflow about the DAGs of a project.

    Raises:
        httpx.HTTPError: Airflow does not answer, or refuses.
    """
    wanted = [f"{project}__{stage}" for stage in STAGES]
    dags = {dag["dag_id"]: dag for dag in api.call("GET", "dags", params={"dag_id_pattern": f"{project}__", "limit": 100})["dags"]}
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
            failed.append(FailedRun(dag_id, ended["dag_run_id"], str(ended.get("end_date") or "an unknown time"), tuple(failed_tasks(api, ended))))
        long += [said for run in runs if (said := _too_long(dag_id, run))]
        long += [said for run in runs if run["state"] == "running" for said in _without_pool(api, run, pools)]
    paused = tuple(dag_id for dag_id in wanted if dag_id in dags and dags[dag_id]["is_paused"])
    return Runs(tuple(dag_id for dag_id in wanted if dag_id not in dags), paused, tuple(failed), tuple(long), newest)


def failed_tasks(api: AirflowApi, run: dict[str, Any]) -> list[str]:
    """The tasks of a run that failed themselves, not because of others."""
    return sorted({task["task_id"] for task in api.task_instances(run["dag_id"], run["dag_run_id"]) if task["state"] == "failed"})


def follow(api: AirflowApi, dag_id: str, run_id: str, tell: Callable[[str], None], *, timeout: float, every: float = 1.0) -> str | None:
    """Wait until a run has ended, and tell of each task that changes its state.

    Returns:
        success or failed; None: it goes on after ``timeout`` seconds.
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
    """The last error in the log of each task that failed, a line each."""
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
    """The pools that a project's trainings need and Airflow does not have: their steps would wait for ever, without an error."""
    there = {pool["name"] for pool in api.call("GET", "pools", params={"limit": 1000})["pools"]}
    return sorted({"cpu", *(candidate.compute for candidate in project.candidates)} - there)


def _without_pool(api: AirflowApi, run: dict[str, Any], pools: set[str]) -> Iterator[str]:
    waiting = {str(task["pool"]) for task in api.task_instances(run["dag_id"], run["dag_run_id"]) if task["state"] == "scheduled" and task.get("pool")}
    for name in sorted(waiting - pools):
        yield f"{run['dag_id']} {run['dag_run_id']} waits for pool {name}, which Airflow does not have: `airloop pools` makes it"


def _too_long(dag_id: str, run: dict[str, Any]) -> str | None:
    since = run.get("start_date") or run.get("queued_at") or run.get("run_after")
    limit = LONG.get(run["state"])
    if limit is None or since is None or dag_id.endswith(tuple(f"__{stage}" for stage in PATIENT)):
        return None
    began = datetime.fromisoformat(str(since)).astimezone(UTC)
    if times.utc_now() - began < limit:
        return None
    return f"{dag_id} {run['dag_run_id']} is {run['state']} since {iso(began)}"
