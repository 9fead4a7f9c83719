"""One part of the stack in the foreground: what a container runs.

    python -m include.stack.component scheduler

It becomes that part's process, with the environment that `airloop up` gives it on one machine; what differs, the settings say. Variables
``AIRFLOW__...`` and ``MLFLOW_...`` that the container was given win: a deployment can set any option of theirs.
"""

import os
import sys
from collections.abc import Mapping
from functools import partial

from include.settings import Settings, SettingsError, get_settings
from include.stack.environment import airflow_environment, mlflow_environment
from include.stack.migrations import MigrationError, migrate, of_mlflow
from include.stack.processes import Command
from include.stack.services import mlflow_server

# Logs of running tasks are asked for over the network, so the parts that run tasks serve them (unlike on one machine, where the disk is shared).
AIRFLOW = {
    "api-server": ["api-server", "--proxy-headers"],  # behind a proxy that ends TLS; FORWARDED_ALLOW_IPS says whom it believes
    "scheduler": ["scheduler"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer"],
    "celery-worker": ["celery", "worker"],
}
PARTS = (*AIRFLOW, "mlflow")


def command(settings: Settings, part: str, given: Mapping[str, str]) -> Command:
    """What the part is started with; ``given`` is the container's own environment.

    Raises:
        ValueError: there is no such part.
        SettingsError: it lacks a secret; the message names it.
    """
    if part == "mlflow":
        settings.require("mlflow")
        return Command(part, mlflow_server(settings), mlflow_environment(settings) | _options(given, "MLFLOW_"))
    if part not in AIRFLOW:
        raise ValueError(f"no part '{part}'; there is {', '.join(PARTS)}")
    settings.require("airflow")
    workers = ["--concurrency", str(settings.parallelism)] if part == "celery-worker" else []
    arguments = [sys.executable, "-m", "airflow", *AIRFLOW[part], *workers]
    return Command(part, arguments, airflow_environment(settings) | _options(given, "AIRFLOW__"))


def prepare(settings: Settings, part: str) -> None:
    """What a part does before it starts: MLflow's its own migration, since nobody else has its database's password, and those of its users.

    Raises:
        MigrationError: the database cannot be brought up.
    """
    if part == "mlflow":
        migrate(settings, partial(print, flush=True), of_mlflow)


def _options(given: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name: value for name, value in given.items() if name.startswith(prefix) and value}


def main(arguments: list[str]) -> None:
    """Never comes back."""
    if len(arguments) != 1:
        raise SystemExit(f"usage: python -m include.stack.component {{{','.join(PARTS)}}}")
    try:
        found = command(get_settings(), arguments[0], os.environ)
        prepare(get_settings(), arguments[0])
    except (ValueError, SettingsError, MigrationError) as error:
        raise SystemExit(f"{arguments[0]}: {error}") from None
    os.execve(found.arguments[0], found.arguments, found.environment)


if __name__ == "__main__":
    main(sys.argv[1:])
