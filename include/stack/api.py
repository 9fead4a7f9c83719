"""A small client of Airflow's REST API: what the demo, the commands and the tests ask of it."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import httpx

from include.settings import Settings, get_settings
from include.stack.environment import ADMIN, admin_password

FINAL = ("success", "failed")


class NotStarted(RuntimeError):
    """A run could not be started; the message says why."""


class WrongAirflow(RuntimeError):
    """The Airflow that answers belongs to another installation."""


class AirflowApi:
    """Talks to one Airflow as one user; logs in by itself, again when the token has run out.

    Methods raise ``httpx.HTTPStatusError`` with Airflow's own words for what it refuses, and ``httpx.TransportError`` when it is away.
    """

    def __init__(self, url: str, user: str, password: str, timeout: float = 30.0):
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=False)
        self._credentials = {"username": user, "password": password}
        self._token: str | None = None

    @classmethod
    def of(cls, settings: Settings | None = None) -> "AirflowApi":
        """As the admin of this machine's stack."""
        settings = settings or get_settings()
        return cls(settings.airflow_url, ADMIN, admin_password(settings))

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> str:
        """Starts a run and gives its id; one run, also if Airflow's first answer was an error. ``conf`` holds values for the DAG's params."""
        run_id = run_id or f"manual__{datetime.now(UTC).isoformat()}_{token_hex(4)}"
        body = {"logical_date": None, "conf": conf or {}, "dag_run_id": run_id}
        try:
            self.call("POST", f"dags/{dag_id}/dagRuns", json=body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:  # the call that failed before had made it all the same
                raise
        return run_id

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run: ``state`` (queued, running, success, failed), ``start_date``, ``end_date``, ``run_type``, ``conf``, ..."""
        return self.call("GET", f"dags/{dag_id}/dagRuns/{_quoted(run_id)}")

    def runs(self, dag_id: str = "~", limit: int = 100) -> list[dict[str, Any]]:
        """The newest runs of a DAG (of all, with ``~``), newest first."""
        return self.call("GET", f"dags/{dag_id}/dagRuns", params={"order_by": "-run_after", "limit": limit})["dag_runs"]

    def wait(self, dag_id: str, run_id: str, timeout: float = 600.0, every: float = 0.3) -> str:
        """Waits until the run has ended and gives its state.

        Raises:
            TimeoutError: it has not ended after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while (state := self.run(dag_id, run_id)["state"]) not in FINAL:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{dag_id} {run_id} is still {state} after {timeout:.0f} s")
            time.sleep(every)
        return state

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances: ``task_id``, ``map_index``, ``state``, ``try_number``, ``duration``, ..."""
        return self.call("GET", f"dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances", params={"limit": 1000})["task_instances"]

    def clear(self, dag_id: str, run_id: str, task_ids: Iterable[str] | None = None, only_failed: bool = False) -> int:
        """Has tasks of a run (all, or these) run again; gives how many."""
        body: dict[str, Any] = {"dry_run": False, "dag_run_id": run_id, "only_failed": only_failed, "reset_dag_runs": True}
        if task_ids is not None:
            body["task_ids"] = list(task_ids)
        return self.call("POST", f"dags/{dag_id}/clearTaskInstances", json=body)["total_entries"]

    def unpause(self, dag_id: str) -> None:
        self.call("PATCH", f"dags/{dag_id}", json={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        self.call("PATCH", f"dags/{dag_id}", json={"is_paused": True})

    def dag_ids(self) -> list[str]:
        """All DAGs that Airflow has read and that are not stale."""
        return sorted(dag["dag_id"] for dag in self.call("GET", "dags", params={"limit": 1000})["dags"])

    def import_errors(self) -> dict[str, str]:
        """DAG files that do not import, each with its stack trace."""
        return {error["filename"]: error["stack_trace"] for error in self.call("GET", "importErrors", params={"limit": 100})["import_errors"]}

    def wait_for_dags(self, dag_ids: Iterable[str], timeout: float = 60.0) -> None:
        """Waits until Airflow has read all of these.

        Raises:
            TimeoutError: names the ones that are missing and the files that do not import.
        """
        deadline = time.monotonic() + timeout
        while missing := set(dag_ids) - set(self.dag_ids()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Airflow has not read {sorted(missing)} after {timeout:.0f} s; import errors: {self.import_errors() or 'none'}")
            time.sleep(0.3)

    def set_pool(self, name: str, slots: int, description: str, include_deferred: bool = False) -> None:
        """Makes the pool, or changes its size. With ``include_deferred`` a deferred task keeps its slots."""
        body = {"name": name, "slots": slots, "description": description, "include_deferred": include_deferred}
        try:
            self.call("POST", "pools", json=body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise
            self.call("PATCH", f"pools/{_quoted(name)}", json={"pool": name, **{k: v for k, v in body.items() if k != "name"}})

    def health(self) -> dict[str, Any]:
        """Airflow's word on its components: ``scheduler``, ``dag_processor``, ``triggerer``, each with ``status`` and heartbeat. Needs no login."""
        return self._http.get("/api/v2/monitor/health").raise_for_status().json()

    def refuse_other(self, ours: str | None) -> None:
        """Refuse an Airflow that works for another installation.

        Args:
            ours: the id of this one; None: not known.

        Raises:
            WrongAirflow.
        """
        answer = self._http.get("/airloop/installation", headers={"Authorization": f"Bearer {self.token}"})
        try:
            theirs = answer.json().get("installation") if answer.is_success else None
        except ValueError:
            theirs = None  # an older Airloop does not say
        if theirs and ours and theirs != ours:
            raise WrongAirflow(
                f"Airflow at {self._http.base_url} works for installation {theirs}, this one is {ours}: nothing was started. Two installations on one machine "
                "need their own AIRLOOP_HOME and their own ports (AIRLOOP_AIRFLOW_PORT, AIRLOOP_MLFLOW_PORT, AIRLOOP_SERVING_PORT)"
            )

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Any call of the API version 2, logged in; gives the decoded answer. Server errors are tried again for some seconds."""
        if not self._token:
            self._log_in()
        for pause in (0.5, 1, 2, 4, None):
            try:
                answer = self._http.request(method, f"/api/v2/{path}", **arguments)
            except httpx.TransportError:
                if pause is None:
                    raise
                time.sleep(pause)
                continue
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                self._log_in()
            elif not answer.is_server_error or pause is None:  # a database that is busy for longer than it waits answers 500
                break
            time.sleep(pause or 0)
        if answer.is_error:
            raise httpx.HTTPStatusError(f"{method} {path}: {answer.status_code} {answer.text[:500]}", request=answer.request, response=answer)
        return answer.json() if answer.content else None

    @staticmethod
    def quoted(name: str) -> str:
        """A run's or pool's name as part of a path."""
        return _quoted(name)

    @property
    def token(self) -> str:
        """A token of this user, as a browser carries it in its cookie ``_token``."""
        if not self._token:
            self._log_in()
        assert self._token
        return self._token

    def _log_in(self) -> None:
        answer = self._http.post("/auth/token", json=self._credentials)
        if answer.is_error:
            raise httpx.HTTPStatusError(f"login refused: {answer.status_code} {answer.text[:200]}", request=answer.request, response=answer)
        self._token = answer.json()["access_token"]
        self._http.headers["Authorization"] = f"Bearer {self._token}"


def busy_stages(settings: Settings, project: str, seconds: float = 4.0) -> list[str]:
    """The DAGs of a project that have a run that is queued or running; none if Airflow does not answer, since then nothing runs."""
    try:
        httpx.get(f"{settings.airflow_url}/api/v2/version", timeout=seconds, trust_env=False).raise_for_status()
        runs = AirflowApi.of(settings).call("GET", "dags/~/dagRuns", params={"state": ["queued", "running"], "limit": 1000})["dag_runs"]
    except httpx.TransportError:
        return []
    return sorted({str(run["dag_id"]) for run in runs if str(run["dag_id"]).startswith(f"{project}__")})


def _quoted(text: str) -> str:
    return quote(text, safe="")
