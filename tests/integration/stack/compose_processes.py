"""Run the Airflow services of docker-compose.yaml as plain processes.

Each gets exactly the environment that the file gives it. The worker runs in its own PID namespace
without capabilities, as in its container: it sees only its own processes.
"""

import os
import re
import socket
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_bytes, token_hex

import yaml

from include.settings import REPOSITORY, Settings
from tests.ports import free_port
from tests.stores import Redis

COMPOSE = REPOSITORY / "docker-compose.yaml"
IN_A_CONTAINER = [
    "unshare",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "setpriv",
    "--bounding-set=-all",
    "--inh-caps=-all",
]
# Variables with addresses on the networks of the file. The processes share this machine.
ELSEWHERE = (
    "AIRLOOP_DATA_ROOT",
    "AIRLOOP_STORAGE_CONNECTION",
    "AIRLOOP_REMOTE_LOGS",
    "AWS_ENDPOINT_URL",
    "AIRFLOW__METRICS__STATSD_ON",
)


def chosen_secrets(settings: Settings, redis: Redis) -> dict[str, str]:
    """Return the variables of a settings file for the profile compose, with the test's stores."""
    named = re.findall(r"\$\{([A-Z0-9_]+):\?run make secrets\}", COMPOSE.read_text())
    made = {name: f"{name.lower()}-{token_hex(16)}" for name in named}
    urls = {name: value for name, value in settings.environment().items() if name in made and "://" in value}
    fernet = urlsafe_b64encode(token_bytes(32)).decode()
    return made | urls | {"AIRLOOP_AIRFLOW_FERNET_KEY": fernet, "CELERY_BROKER_PASSWORD": redis.password}


def environment_of(service: str, secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that docker-compose.yaml gives a service.

    The variables of the settings file are filled in.
    """
    variables = yaml.safe_load(COMPOSE.read_text())["services"][service]["environment"]

    def fill(match: re.Match[str]) -> str:
        return secrets.get(match[1], "") or (match[3] if match[2] == ":-" else "")

    return {
        name: re.sub(r"\$\{([A-Z0-9_]+)(?:(:-|:\?)([^}]*))?\}", fill, str(value)) for name, value in variables.items()
    }


class Processes:
    """The started services, with their logs in ``folder``."""

    def __init__(self, folder: Path, secrets: Mapping[str, str], given: Mapping[str, str]):
        self.folder, self.secrets, self.given = folder, secrets, dict(given)
        self.started: list[subprocess.Popen] = []
        self.port = free_port()

    def environment(self, service: str) -> dict[str, str]:
        """Return the service's variables, with addresses and folders of this machine."""
        there = {
            "AIRLOOP_HOME": str(self.folder / service),
            "AIRLOOP_HOST": "127.0.0.1",
            "AIRLOOP_AIRFLOW_PORT": str(self.port),
            "AIRLOOP_AIRFLOW_URI": f"http://127.0.0.1:{self.port}",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRLOOP_PRELOAD_LIBRARIES": "false",
        }
        variables = {
            name: value for name, value in environment_of(service, self.secrets).items() if name not in ELSEWHERE
        }
        broker = {
            name: value.replace("broker:6379", self.given["broker"])
            for name, value in variables.items()
            if name.startswith("AIRFLOW__CELERY__")
        }
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        more = {name: value for name, value in self.given.items() if name != "broker"}
        return {**inherited, "PYTHONPATH": str(REPOSITORY), **variables, **broker, **there, **more}

    def run(self, service: str, *command: str) -> None:
        """Run a command to its end with the service's environment."""
        arguments = [sys.executable, "-m", *command]
        environment = self.environment(service)
        done = subprocess.run(
            arguments, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def start(self, service: str, part: str | None = None, *, contained: bool = False) -> None:
        command = [
            *(IN_A_CONTAINER if contained else []),
            sys.executable,
            "-m",
            "include.stack.component",
            part or service,
        ]
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=self.environment(service),
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)

    def health(self, service: str) -> subprocess.CompletedProcess:
        """Run the service's health check from the file."""
        kind, *command = yaml.safe_load(COMPOSE.read_text())["services"][service]["healthcheck"]["test"]
        command = ["sh", "-c", command[0].replace("$$", "$")] if kind == "CMD-SHELL" else command
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = self.environment(service) | {"HOSTNAME": socket.gethostname(), "PATH": path}
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )

    def logs(self) -> str:
        return "\n".join(
            f"--- {file.name}\n{file.read_text(errors='replace')[-2500:]}" for file in sorted(self.folder.glob("*.log"))
        )


@contextmanager
def processes(folder: Path, secrets: Mapping[str, str], given: Mapping[str, str]) -> Iterator[Processes]:
    """Stop the started processes at the end."""
    services = Processes(folder, secrets, given)
    try:
        yield services
    finally:
        for process in reversed(services.started):
            process.terminate()
        for process in reversed(services.started):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait(20)
