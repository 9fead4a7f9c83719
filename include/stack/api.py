"""A small client of Airflow's REST API for the demo, the commands and the tests."""

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


class RunNotStartedError(RuntimeError):
    """Raised when a run could not be started. The message says why."""


class WrongAirflowError(RuntimeError):
    """Raised when the Airflow that answers belongs to another installation."""


class AirflowApi:
    """Call one Airflow as one user. Log in automatically, again after the token has expired.

    Methods raise ``httpx.HTTPStatusError`` with Airflow's own message if it refuses, and
    ``httpx.TransportError`` if it is unavailable.
    """

    def __init__(self, url: str, user: str, password: str, timeout: float = 30.0):
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=False)
        self._credentials = {"username": user, "password": password}
        self._token: str | None = None

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> "AirflowApi":
        """Return a client for the admin of this machine's stack."""
        settings = settings or get_settings()
        return cls(settings.airflow_url, ADMIN, admin_password(settings))

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run and return its id. ``conf`` holds values for the DAG's params.

        Only one run is started, even if Airflow's first answer was an error.
        """
        run_id = run_id or f"manual__{datetime.now(UTC).isoformat()}_{token_hex(4)}"
        body = {"logical_date": None, "conf": conf or {}, "dag_run_id": run_id}
        try:
            self.call("POST", f"dags/{dag_id}/dagRuns", json=body)
        except httpx.HTTPStatusError as error:
            # The earlier call had created the run although it failed.
            if error.response.status_code != httpx.codes.CONFLICT:
                raise
        return run_id

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return one run.

        Its keys include ``state`` (queued, running, success, failed), ``start_date``, ``end_date``,
        ``run_type`` and ``conf``.
        """
        run: dict[str, Any] = self.call("GET", f"dags/{dag_id}/dagRuns/{_quoted(run_id)}")
        return run

    def runs(self, dag_id: str = "~", limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest runs of a DAG (of all DAGs with ``~``), newest first."""
        runs: list[dict[str, Any]] = self.call(
            "GET", f"dags/{dag_id}/dagRuns", params={"order_by": "-run_after", "limit": limit}
        )["dag_runs"]
        return runs

    def wait(self, dag_id: str, run_id: str, timeout: float = 600.0, every: float = 0.3) -> str:
        """Wait until the run has ended and return its state.

        Raises:
            TimeoutError: The run has not ended after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        state: str
        while (state := self.run(dag_id, run_id)["state"]) not in FINAL:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{dag_id} {run_id} is still {state} after {timeout:.0f} s")
            time.sleep(every)
        return state

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the run's task instances.

        Their keys include ``task_id``, ``map_index``, ``state``, ``try_number`` and ``duration``.
        """
        instances: list[dict[str, Any]] = self.call(
            "GET", f"dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances", params={"limit": 1000}
        )["task_instances"]
        return instances

    def clear(self, dag_id: str, run_id: str, task_ids: Iterable[str] | None = None, only_failed: bool = False) -> int:
        """Clear all or the given tasks of a run, so that they run again. Return their number."""
        body: dict[str, Any] = {
            "dry_run": False,
            "dag_run_id": run_id,
            "only_failed": only_failed,
            "reset_dag_runs": True,
        }
        if task_ids is not None:
            body["task_ids"] = list(task_ids)
        cleared: int = self.call("POST", f"dags/{dag_id}/clearTaskInstances", json=body)["total_entries"]
        return cleared

    def unpause(self, dag_id: str) -> None:
        self.call("PATCH", f"dags/{dag_id}", json={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        self.call("PATCH", f"dags/{dag_id}", json={"is_paused": True})

    def dag_ids(self) -> list[str]:
        """Return all DAGs that Airflow has read and that are not stale."""
        return sorted(dag["dag_id"] for dag in self.call("GET", "dags", params={"limit": 1000})["dags"])

    def import_errors(self) -> dict[str, str]:
        """Return the DAG files that cannot be imported, each with its stack trace."""
        return {
            error["filename"]: error["stack_trace"]
            for error in self.call("GET", "importErrors", params={"limit": 100})["import_errors"]
        }

    def wait_for_dags(self, dag_ids: Iterable[str], timeout: float = 60.0) -> None:
        """Wait until Airflow has read all these DAGs.

        Raises:
            TimeoutError: Names the missing DAGs and the files that cannot be imported.
        """
        deadline = time.monotonic() + timeout
        while missing := set(dag_ids) - set(self.dag_ids()):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"Airflow has not read {sorted(missing)} after {timeout:.0f} s; import errors:"
                    f" {self.import_errors() or 'none'}"
                )
            time.sleep(0.3)

    def set_pool(self, name: str, slots: int, description: str, include_deferred: bool = False) -> None:
        """Create the pool, or change its size.

        With ``include_deferred`` a deferred task keeps its slots.
        """
        body = {"name": name, "slots": slots, "description": description, "include_deferred": include_deferred}
        try:
            self.call("POST", "pools", json=body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise
            self.call(
                "PATCH", f"pools/{_quoted(name)}", json={"pool": name, **{k: v for k, v in body.items() if k != "name"}}
            )

    def health(self) -> dict[str, Any]:
        """Return the health of Airflow's components. This works without a login.

        The keys are ``scheduler``, ``dag_processor`` and ``triggerer``, each with ``status`` and
        heartbeat.
        """
        health: dict[str, Any] = self._http.get("/api/v2/monitor/health").raise_for_status().json()
        return health

    def refuse_other(self, ours: str | None) -> None:
        """Refuse an Airflow that works for another installation.

        Args:
            ours: The id of this installation. None: not known.

        Raises:
            WrongAirflowError: Airflow reports another id.
        """
        answer = self._http.get("/airloop/installation", headers={"Authorization": f"Bearer {self.token}"})
        try:
            theirs = answer.json().get("installation") if answer.is_success else None
        except ValueError:
            # An older Airloop does not report its id.
            theirs = None
        if theirs and ours and theirs != ours:
            raise WrongAirflowError(
                f"Airflow at {self._http.base_url} works for installation {theirs}, this one is {ours}: nothing was"
                " started. Two installations on one machine need their own AIRLOOP_HOME and their own ports"
                " (AIRLOOP_AIRFLOW_PORT, AIRLOOP_MLFLOW_PORT, AIRLOOP_SERVING_PORT)"
            )

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Send a request to version 2 of the API, logged in, and return the decoded answer.

        Server errors are retried for some seconds.
        """
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
            # A database that is busy for longer than Airflow waits causes a 500.
            elif not answer.is_server_error or pause is None:
                break
            time.sleep(pause or 0)
        if answer.is_error:
            raise httpx.HTTPStatusError(
                f"{method} {path}: {answer.status_code} {answer.text[:500]}", request=answer.request, response=answer
            )
        return answer.json() if answer.content else None

    @staticmethod
    def quoted(name: str) -> str:
        """Return a run's or pool's name quoted for a path."""
        return _quoted(name)

    @property
    def token(self) -> str:
        """Return a token of this user, as in a browser's cookie ``_token``."""
        if not self._token:
            self._log_in()
        assert self._token
        return self._token

    def _log_in(self) -> None:
        answer = self._http.post("/auth/token", json=self._credentials)
        if answer.is_error:
            raise httpx.HTTPStatusError(
                f"login refused: {answer.status_code} {answer.text[:200]}", request=answer.request, response=answer
            )
        self._token = answer.json()["access_token"]
        self._http.headers["Authorization"] = f"Bearer {self._token}"


def busy_stages(settings: Settings, project: str, seconds: float = 4.0) -> list[str]:
    """Return the DAGs of a project that have a queued or running run.

    Raises:
        httpx.TransportError: Airflow's API server does not answer. Its scheduler may still run
            tasks.
    """
    httpx.get(f"{settings.airflow_url}/api/v2/version", timeout=seconds, trust_env=False).raise_for_status()
    runs = AirflowApi.from_settings(settings).call(
        "GET", "dags/~/dagRuns", params={"state": ["queued", "running"], "limit": 1000}
    )["dag_runs"]
    return sorted({str(run["dag_id"]) for run in runs if str(run["dag_id"]).startswith(f"{project}__")})


def _quoted(text: str) -> str:
    return quote(text, safe="")
