"""What the embedded stack is made of: each service's command, address, and how it is told that it answers."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache

import httpx

from include.data import storage
from include.settings import Settings
from include.stack import mlflow_users
from include.stack.environment import airflow_environment, base_environment, mlflow_environment, serving_environment
from include.stack.processes import Command, Record

KEEPER = "keeper"


@dataclass(frozen=True)
class Service:
    """One long-running part of the stack.

    ``answers`` is asked with the record of the running process and says whether that very process does its work; it may raise ``httpx.HTTPError``.
    """

    name: str
    command: Command
    answers: Callable[[Record], bool]
    address: str = ""
    port: int | None = None
    port_setting: str = ""
    needs_migration: bool = False


def services(settings: Settings) -> list[Service]:
    """All of them, in the order in which they are shown; without MLflow or serving where the settings say that it runs elsewhere."""
    airflow = airflow_environment(settings)

    def airflow_component(name: str, health_key: str, *options: str) -> Service:
        return Service(
            name,
            Command(name, [sys.executable, "-m", "airflow", name, *options], airflow),
            lambda record: _beats(settings, health_key, record),
            needs_migration=True,
        )

    every = [
        # The first call of the tasks' own API takes seconds (it makes all its versions): better now than in the first task, which would time out.
        Service(
            "api-server",
            Command("api-server", [sys.executable, "-m", "airflow", "api-server"], airflow),
            lambda record: all(_get(f"{settings.airflow_url}/{path}").is_success for path in ("api/v2/monitor/health", "execution/health")),
            address=settings.airflow_url,
            port=settings.airflow_port,
            port_setting="AIRLOOP_AIRFLOW_PORT",
            needs_migration=True,
        ),
        # Logs are read from the disk, so nobody needs to serve them, on ports that two stacks would quarrel about.
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
        needs_migration=settings.mlflow_database_url is not None or bool(mlflow_users.users(settings)),  # a SQLite file without users it makes by itself
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
    """Makes Airflow's database, or brings it up to this version of Airflow."""
    return Command("migrate", [sys.executable, "-m", "airflow", "db", "migrate"], airflow_environment(settings))


def whole_migration(settings: Settings) -> Command:
    """The same for every store: `airloop migrate`."""
    return Command("migrate", [sys.executable, "-m", "include.cli", "migrate"], base_environment(settings))


def artifacts_root(settings: Settings) -> str:
    """Where MLflow's server keeps the artifacts that it is handed: on the object store where there is one. No project's name begins with a _."""
    if settings.mlflow_artifacts:
        return settings.mlflow_artifacts
    return f"{settings.store}/_mlflow" if storage.is_object_store(settings.store) else str(settings.home / "mlflow" / "artifacts")


def mlflow_server(settings: Settings) -> list[str]:
    """Its command line."""
    home = settings.home / "mlflow"
    home.mkdir(parents=True, exist_ok=True)  # mlflow_environment names the database
    arguments = [sys.executable, "-m", "mlflow", "server", "--host", settings.host, "--port", str(settings.mlflow_port), "--workers", "1"]
    asks = ["--app-name", mlflow_users.APP] if mlflow_users.users(settings) else []
    # The server passes artifacts through: who logs or loads a model needs no credentials of the store.
    return [*arguments, *asks, "--serve-artifacts", "--artifacts-destination", artifacts_root(settings)]


@cache
def _client() -> httpx.Client:
    """One for all questions: making one costs more (it reads the certificates) than asking a hundred."""
    return httpx.Client(timeout=5.0, trust_env=False)


def _get(url: str) -> httpx.Response:
    return _client().get(url)


def _beats(settings: Settings, component: str, record: Record) -> bool:
    """Whether the component's heartbeat is younger than its process: the one before it may still look alive in the database."""
    health = _get(f"{settings.airflow_url}/api/v2/monitor/health").raise_for_status().json()[component]
    beat = health[f"latest_{component}_heartbeat"]
    return health["status"] == "healthy" and beat is not None and datetime.fromisoformat(beat).timestamp() > record.started
