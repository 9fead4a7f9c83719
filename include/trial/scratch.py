"""The scratch store of a try: an AIRLOOP_HOME of its own, with its own Airflow database, MLflow, Feast, ledger and tables.

<home>/try/<project>/work/                  the AIRLOOP_HOME of the run; always the same path, since registries hold paths
                     kept/<chain>/<n>-<stage>/   a copy of it after each step, for the next try, of whatever stage
                     try.log                what the DAGs said; of one that failed, the traceback comes last
<home>/try/.template/                       migrated, empty databases of Airflow and MLflow: making them takes ten seconds
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
from include.trial.plan import Sample, Step, chain_of

KEY = "key"
NOT_KEPT = ("airflow", "logs")  # runs begin with an empty Airflow
# What leads away from the files of a home, beside the secrets.
ELSEWHERE = ("data_root", "remote_logs", "secrets_dir", "airflow_uri", "mlflow_uri", "serving_uri", "mlflow_username", "auth_manager")


class Busy(RuntimeError):
    """Another try of this project is running."""


class Scratch:
    """The scratch store of a project, which all its stages share.

    Args:
        settings: of the real home, below which it lies.
    """

    def __init__(self, settings: Settings, project: Project, stage: str, sample: Sample):
        self.root = settings.home / "try" / project.name
        self._chain = chain_of(stage)
        self.template = settings.home / "try" / ".template"  # no project's name begins with a dot
        self.work, self.log = self.root / "work", self.root / "try.log"
        # Everything that says where data lies or whom to talk to is its own; the rest (host, threads, DAG files) is as it is there.
        own = {"home": self.work, "profile": "embedded", "projects": project.name, "sample_days": sample.days}
        self.settings = settings.model_copy(update=dict.fromkeys((*ELSEWHERE, *secret_fields())) | own)

    def environment(self, serving_port: int | None = None) -> dict[str, str]:
        """For whatever runs in it. Without a port, nobody can be asked for predictions."""
        settings = self.settings.model_copy(update={"serving_port": serving_port or 9})  # 9: discard
        return airflow_environment(settings) | self.mlflow_environment

    @property
    def mlflow_environment(self) -> dict[str, str]:
        """MLflow as a file: no server that has to start."""
        # The second one is MLflow's own way to hand a server's artifact root to its workers; without it, artifacts go to the current folder.
        return {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.work / 'mlflow' / 'mlflow.db'}",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": str(self.work / "mlflow" / "artifacts"),
        }

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second try of the same project away.

        Raises:
            Busy.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"another `airloop try` works in {self.root}; wait for it") from None
            yield

    def kept(self, steps: list[Step]) -> int:
        """How many of the steps were done by an earlier try and are still what they would be now."""
        count = 0
        for number, step in enumerate(steps):
            mark = self._folder(number, step) / KEY
            if mark.exists() and mark.read_text() == step.key:
                count = number + 1
        return count

    def prepare(self, steps: list[Step], said: Callable[[str], None]) -> int:
        """Make the working home as it is after the steps that were kept; gives how many these are."""
        self._make_template(said)
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

    def keep_folder(self, number: int, step: Step) -> Path:
        """Return where the home after this step is to be kept, and remove what was kept there. Of later steps the key says whether they still hold."""
        folder = self._folder(number, step)
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _folder(self, number: int, step: Step) -> Path:
        return self.root / "kept" / self._chain / f"{number}-{step.stage}"

    def _make_template(self, said: Callable[[str], None]) -> None:
        versions = " ".join(f"{package} {version(package)}" for package in ("apache-airflow", "mlflow"))
        self.template.mkdir(parents=True, exist_ok=True)
        mark = self.template / "made-by"
        with (self.template / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if mark.exists() and mark.read_text() == versions:
                return
            said(f"once for {versions}: making empty databases")
            for name in ("airflow.db", "mlflow.db", "made-by"):
                (self.template / name).unlink(missing_ok=True)
            airflow = self.template / "airflow.db"
            environment = airflow_environment(self.settings.model_copy(update={"home": self.template})) | {
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{airflow}",
                "_MLFLOW_SERVER_ARTIFACT_ROOT": str(self.template),
            }
            make_mlflow = "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1], sys.argv[1]).get_experiment_by_name('-')"
            commands = {
                "Airflow": [sys.executable, "-m", "airflow", "db", "migrate"],
                "MLflow": [sys.executable, "-c", make_mlflow, f"sqlite:///{self.template / 'mlflow.db'}"],
            }
            running = {
                name: subprocess.Popen(
                    command, env=environment, cwd=self.template, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
                for name, command in commands.items()
            }
            for name, process in running.items():
                output, _ = process.communicate()
                if process.returncode:
                    raise RuntimeError(f"{name}'s empty database could not be made:\n{output[-2000:]}")
            mark.write_text(versions)


def keep(work: Path, folder: Path, key: str) -> None:
    """Copy a home as it is after a step, whole or not at all. Nothing may be writing to it."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.copytree(work, draft, ignore=lambda where, names: NOT_KEPT if Path(where) == work else ())
    (draft / KEY).write_text(key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(folder)
