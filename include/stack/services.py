"""The services of the embedded stack: command, address, and how to check that each one answers."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache

import httpx

from include.data import storage
from include.settings import Settings
from include.stack.accounts import mlflow_users
from include.stack.environment import airflow_environment, base_environment, mlflow_environment, serving_environment
from include.stack.processes import Command, Record

KEEPER = "keeper"


@dataclass(frozen=True)
class Service:
    """One long-running part of the stack.

    ``answers`` is called with the record of the running process. It returns whether that process
    works, and it may raise ``httpx.HTTPError``.
    """

    name: str
    command: Command
    answers: Callable[[Record], bool]
    address: str = ""
    port: int | None = None
    port_setting: str = ""
    needs_migration: bool = False


def services(settings: Settings) -> list[Service]:
    """Return all services in display order.

    MLflow and serving are omitted if the settings say that they run elsewhere.
    """
    airflow = airflow_environment(settings)

    def airflow_component(name: str, health_key: str, *options: str) -> Service:
        return Service(
            name,
            Command(name, [sys.executable, "-m", "airflow", name, *options], airflow),
            lambda record: _beats(settings, health_key, record),
            needs_migration=True,
        )

    every = [
        # The first call of the tasks' own API takes seconds, because it builds all API versions. Do
        # this now: otherwise the first task would time out.
        Service(
            "api-server",
            Command("api-server", [sys.executable, "-m", "airflow", "api-server"], airflow),
            lambda record: all(
                _get(f"{settings.airflow_url}/{path}").is_success
                for path in ("api/v2/monitor/health", "execution/health")
            ),
            address=settings.airflow_url,
            port=settings.airflow_port,
            port_setting="AIRLOOP_AIRFLOW_PORT",
            needs_migration=True,
        ),
        # Logs are read from the disk. Log servers are not needed, and their ports would conflict if
        # two stacks run.
        airflow_component("scheduler", "scheduler", "--skip-serve-logs"),
        airflow_component("dag-processor", "dag_processor"),
        airflow_component("triggerer", "triggerer", "--skip-serve-logs"),
    ]
    if settings.mlflow_uri is None:
        every.insert(0, _mlflow(settings))
    if settings.serving_uri is None:
        every.append(_serving(settings))
    if settings.restart:
        command = Command(KEEPER, [sys.executable, "-m", "include.stack.keeper"], base_environment(settings))
        every.append(Service(KEEPER, command, lambda record: record.process() is not None))
    return every


def _mlflow(settings: Settings) -> Service:
    return Service(
        "mlflow",
        Command("mlflow", mlflow_server(settings), mlflow_environment(settings)),
        lambda record: _get(f"{settings.mlflow_url}/health").is_success,
        address=settings.mlflow_url,
        port=settings.mlflow_port,
        port_setting="AIRLOOP_MLFLOW_PORT",
        # MLflow creates a SQLite file without users automatically.
        needs_migration=settings.mlflow_database_url is not None or bool(mlflow_users.users(settings)),
    )


def _serving(settings: Settings) -> Service:
    return Service(
        "serving",
        serving_command(settings),
        lambda record: _get(f"{settings.serving_url}/live").is_success,
        address=settings.serving_url,
        port=settings.serving_port,
        port_setting="AIRLOOP_SERVING_PORT",
    )


def serving_command(settings: Settings) -> Command:
    """Return the command of the embedded stack's serving."""
    arguments = [sys.executable, "-m", "serving", "--host", settings.host, "--port", str(settings.serving_port)]
    return Command("serving", arguments, serving_environment(settings))


def migration(settings: Settings) -> Command:
    """Return the command that creates Airflow's database or migrates it to this version."""
    return Command("migrate", [sys.executable, "-m", "airflow", "db", "migrate"], airflow_environment(settings))


def migrate_all(settings: Settings) -> Command:
    """Return the command that migrates every store: `airloop migrate`."""
    return Command("migrate", [sys.executable, "-m", "include.cli", "migrate"], base_environment(settings))


def artifacts_root(settings: Settings) -> str:
    """Return the root of the artifacts that MLflow's server receives.

    It is on the object store if there is one. The name is unique, because no project's name begins
    with an underscore.
    """
    if settings.mlflow_artifacts:
        return settings.mlflow_artifacts
    return (
        f"{settings.store}/_mlflow"
        if storage.is_object_store(settings.store)
        else str(settings.home / "mlflow" / "artifacts")
    )


def mlflow_server(settings: Settings) -> list[str]:
    """Return the command line of MLflow's server."""
    home = settings.home / "mlflow"
    # mlflow_environment names the database.
    home.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        settings.host,
        "--port",
        str(settings.mlflow_port),
        "--workers",
        "1",
    ]
    asks = ["--app-name", mlflow_users.APP] if mlflow_users.users(settings) else []
    # The server proxies artifacts: a client that logs or loads a model needs no credentials of the
    # store.
    return [*arguments, *asks, "--serve-artifacts", "--artifacts-destination", artifacts_root(settings)]


@cache
def _client() -> httpx.Client:
    """Return one client for all requests.

    Creating one reads the certificates, which costs more than a hundred requests.
    """
    return httpx.Client(timeout=5.0, trust_env=False)


def _get(url: str) -> httpx.Response:
    return _client().get(url)


def _beats(settings: Settings, component: str, record: Record) -> bool:
    """Return whether the component's heartbeat is younger than its process.

    In the database, the previous process may still look alive.
    """
    health = _get(f"{settings.airflow_url}/api/v2/monitor/health").raise_for_status().json()[component]
    beat = health[f"latest_{component}_heartbeat"]
    return (
        health["status"] == "healthy" and beat is not None and datetime.fromisoformat(beat).timestamp() > record.started
    )
