"""One part of the stack in the foreground: what a container runs.

    python -m include.stack.component scheduler

It becomes that part's process, with the environment that `airloop up` gives it on one machine; what differs, the settings say. Variables
``AIRFLOW__...`` and ``MLFLOW_...`` that the container was given win: a deployment can set any option of theirs.
"""

import os
import re
import sys
from collections.abc import Mapping
from functools import partial

from include.settings import CONTROL, NEEDED, Settings, SettingsError, get_settings
from include.stack.environment import airflow_environment, mlflow_environment, task_environment
from include.stack.migrations import MigrationError, migrate, of_mlflow
from include.stack.processes import Command
from include.stack.services import mlflow_server, serving_command

# Logs of running tasks are asked for over the network, so the parts that run tasks serve them (unlike on one machine, where the disk is shared).
AIRFLOW = {
    "api-server": ["api-server", "--proxy-headers"],  # behind a proxy that ends TLS; FORWARDED_ALLOW_IPS says whom it believes
    "scheduler": ["scheduler"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer"],
    # A worker's server of logs would need the key of Airflow's sessions, which its tasks could then read. Its logs are uploaded when a task ends.
    "celery-worker": ["celery", "worker", "--skip-serve-logs"],
    # No part: it encrypts Airflow's connections and variables anew, with the first of the Fernet keys, and ends.
    "rotate-fernet-key": ["rotate-fernet-key"],
}
# Parts that only run tasks: they get no secret of Airflow itself, and refuse to start with one.
TASKS_ONLY = {"celery-worker"}
PARTS = (*AIRFLOW, "mlflow", "serving")  # the last one for systemd; a container of serving runs `python -m serving`


def command(settings: Settings, part: str, given: Mapping[str, str]) -> Command:
    """Return the command of a part.

    Args:
        given: the container's own environment.

    Raises:
        ValueError: there is no such part.
        SettingsError: the part lacks a secret, or has one that its tasks must not read; the message names it.
    """
    if part == "mlflow":
        settings.require("mlflow")
        return Command(part, mlflow_server(settings), mlflow_environment(settings) | _options(given, "MLFLOW_"))
    if part == "serving":
        return serving_command(settings)
    if part not in AIRFLOW:
        raise ValueError(f"no part '{part}'; there is {', '.join(PARTS)}")
    workers = ["--concurrency", str(settings.parallelism)] if part == "celery-worker" else []
    arguments = [sys.executable, "-m", "airflow", *AIRFLOW[part], *workers]
    options = _options(given, "AIRFLOW__")
    if part in TASKS_ONLY:
        settings.require("tasks")
        _refuse_control_secrets(settings, part, given)
        return Command(part, arguments, task_environment(settings) | options)
    settings.require("tasks", "airflow")
    return Command(part, arguments, airflow_environment(settings) | options)


def control_secrets(settings: Settings, given: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that carry secrets of Airflow itself, in the settings or in the environment, in any form that Airflow reads."""
    fields = [name for name in (*NEEDED["airflow"], *NEEDED["accounts"]) if getattr(settings, name)]
    forms = re.compile(rf"({'|'.join(CONTROL)}|AIRFLOW__CORE__SQL_ALCHEMY_CONN)(_ASYNC)?(_CMD|_SECRET)?|AIRFLOW_CONN_AIRFLOW_DB")
    found = [name for name, value in given.items() if value and forms.fullmatch(name)]
    # Celery's results in Airflow's database: the default where no other place is named.
    results = [name for name, value in given.items() if name.startswith("AIRFLOW__CELERY__RESULT_BACKEND") and "://" in value and value.startswith("db+")]
    return [*(f"AIRLOOP_{name.upper()}" for name in fields), *found, *results]


def _refuse_control_secrets(settings: Settings, part: str, given: Mapping[str, str]) -> None:
    """Raise SettingsError where a part that runs tasks has secrets of Airflow: its tasks run as the same user and could read them."""
    if settings.profile != "embedded" and (found := control_secrets(settings, given)):
        raise SettingsError(f"{', '.join(found)}: set for {part}, which does not need it and whose tasks could read it. Remove it from this container")


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
