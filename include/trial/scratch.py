"""The scratch store of a try: a separate AIRLOOP_HOME.

It has its own Airflow database, MLflow, Feast, ledger and tables.

<home>/try/<project>/work/        the AIRLOOP_HOME of the run, always at the same path, because
                                  registries contain paths
    kept/<chain>/<n>-<stage>/     a copy of it after each step, for the next try of any stage
    try.log                       output of the DAGs; the traceback of a failed one comes last
<home>/try/.template/             migrated, empty databases of Airflow and MLflow, because
                                  creating them takes ten seconds
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from include.projects.base import Project
from include.settings import Settings, secret_fields
from include.stack.environment import airflow_environment
from include.trial.plan import Sample, TrialStep, chain_of

KEY = "key"
# Runs begin with an empty Airflow.
NOT_KEPT = ("airflow", "logs")
# Settings that refer to places outside a home, in addition to the secrets.
ELSEWHERE = (
    "data_root",
    "remote_logs",
    "secrets_dir",
    "airflow_uri",
    "mlflow_uri",
    "serving_uri",
    "mlflow_username",
    "auth_manager",
)


class TryRunningError(RuntimeError):
    """Raised when another try of this project is running."""


class Scratch:
    """The scratch store of a project, which all its stages share.

    Args:
        settings: Settings of the real home. The scratch store is below that home.
    """

    def __init__(self, settings: Settings, project: Project, stage: str, sample: Sample):
        self.root = settings.home / "try" / project.name
        self._chain = chain_of(stage)
        # No project's name begins with a dot.
        self.template = settings.home / "try" / ".template"
        self.work, self.log = self.root / "work", self.root / "try.log"
        # All settings for data locations and servers are replaced. The rest (host, threads, DAG
        # files) is unchanged.
        own = {
            "home": self.work,
            "profile": "embedded",
            "projects": settings.projects_only(project.name),
            "sample_days": sample.days,
        }
        self.settings = settings.model_copy(update=dict.fromkeys((*ELSEWHERE, *secret_fields())) | own)

    def environment(self, serving_port: int | None = None) -> dict[str, str]:
        """Return the environment of processes in the scratch store.

        Without a port, predictions cannot be requested.
        """
        # Port 9 is the discard service.
        settings = self.settings.model_copy(update={"serving_port": serving_port or 9})
        return airflow_environment(settings) | self.mlflow_environment

    @property
    def mlflow_environment(self) -> dict[str, str]:
        """Return the environment for MLflow with a file store, which does not need a server."""
        # MLflow uses the second variable itself to pass a server's artifact root to its workers.
        # Without it, artifacts are written to the current folder.
        return {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.work / 'mlflow' / 'mlflow.db'}",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": str(self.work / "mlflow" / "artifacts"),
        }

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold a lock that prevents a second try of the same project.

        Raises:
            TryRunningError: Another try is running.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TryRunningError(f"another `airloop try` works in {self.root}; wait for it") from None
            yield

    def kept(self, steps: list[TrialStep]) -> int:
        """Return how many of the steps have valid results of an earlier try."""
        count = 0
        for number, step in enumerate(steps):
            mark = self._folder(number, step) / KEY
            if mark.exists() and mark.read_text() == step.key:
                count = number + 1
        return count

    def prepare(self, steps: list[TrialStep], note: Callable[[str], None]) -> int:
        """Set the working home to the state after the kept steps. Return their number."""
        self._make_template(note)
        count = self.kept(steps)
        shutil.rmtree(self.work, ignore_errors=True)
        if count:
            shutil.copytree(self._folder(count - 1, steps[count - 1]), self.work)
            (self.work / KEY).unlink()
        else:
            (self.work / "mlflow").mkdir(parents=True)
            shutil.copy(self.template / "mlflow.db", self.work / "mlflow" / "mlflow.db")
        (self.work / "airflow").mkdir()
        shutil.copy(self.template / "airflow.db", self.work / "airflow" / "airflow.db")
        return count

    def keep_folder(self, number: int, step: TrialStep) -> Path:
        """Return the folder in which to keep the home after this step, and remove its old content.

        The keys of later steps tell whether those are still valid.
        """
        folder = self._folder(number, step)
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _folder(self, number: int, step: TrialStep) -> Path:
        return self.root / "kept" / self._chain / f"{number}-{step.stage}"

    def _make_template(self, note: Callable[[str], None]) -> None:
        versions = " ".join(f"{package} {version(package)}" for package in ("apache-airflow", "mlflow"))
        self.template.mkdir(parents=True, exist_ok=True)
        mark = self.template / "made-by"
        with (self.template / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if mark.exists() and mark.read_text() == versions:
                return
            note(f"once for {versions}: making empty databases")
            for name in ("airflow.db", "mlflow.db", "made-by"):
                (self.template / name).unlink(missing_ok=True)
            airflow = self.template / "airflow.db"
            environment = airflow_environment(self.settings.model_copy(update={"home": self.template})) | {
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{airflow}",
                "_MLFLOW_SERVER_ARTIFACT_ROOT": str(self.template),
            }
            make_mlflow = (
                "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1],"
                " sys.argv[1]).get_experiment_by_name('-')"
            )
            commands = {
                "Airflow": [sys.executable, "-m", "airflow", "db", "migrate"],
                "MLflow": [sys.executable, "-c", make_mlflow, f"sqlite:///{self.template / 'mlflow.db'}"],
            }
            running = {
                name: subprocess.Popen(
                    command,
                    env=environment,
                    cwd=self.template,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for name, command in commands.items()
            }
            for name, process in running.items():
                output, _ = process.communicate()
                if process.returncode:
                    raise RuntimeError(f"{name}'s empty database could not be made:\n{output[-2000:]}")
            mark.write_text(versions)


def keep(work: Path, folder: Path, key: str) -> None:
    """Copy a home atomically after a step. No process may be writing to it."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.copytree(work, draft, ignore=lambda where, names: NOT_KEPT if Path(where) == work else ())
    (draft / KEY).write_text(key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(folder)
