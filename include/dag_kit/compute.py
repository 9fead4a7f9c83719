"""Compute: a training step is one command line; where it runs is a setting, not a matter of the DAG file.

Here it is a child process of the task. It gets references as arguments and the URI of a manifest to write; what it made is read there.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections import deque
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

from include.projects import get_project
from include.projects.base import Project
from include.settings import REPOSITORY

LAST_LINES = 20  # of the child's output, in the error of a failed step
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def training_step(project: Project, command: str, *, arguments: dict[str, Any] | None = None, compute: str = "cpu", task_id: str | None = None):
    """A task that runs ``python -m include.training <command>`` and returns the URI of the manifest that it wrote.

    Args:
        command: fit, evaluate or refit.
        arguments: name -> reference, or list of references; None is left out. Without it the step is mapped: ``.expand(arguments=...)``.
        compute: the step's compute class; it is also the Airflow pool.
        task_id: by default the command.
    """
    shared = {"task_id": task_id or command, "project": project.name, "command": command, "pool": compute}
    if arguments is None:
        return TrainingStep.partial(map_index_template="{{ candidate }}", **shared)
    return TrainingStep(arguments=arguments, **shared)


class TrainingStep(BaseOperator):
    """Runs one training step as a child process of this task, and dies with it."""

    template_fields = ("arguments",)
    ui_color = "#e8f0ff"

    def __init__(self, *, project: str, command: str, arguments: dict[str, Any], **kwargs) -> None:
        super().__init__(**kwargs)
        self.project, self.command, self.arguments = project, command, arguments
        self._child: subprocess.Popen | None = None

    def execute(self, context) -> str:
        from include.data import layout
        from include.training import manifest

        project, ti = get_project(self.project), context["ti"]
        candidate = self.arguments.get("candidate")
        context["candidate"] = candidate or self.command  # names the mapped task in the UI
        folder = layout.training(project, self.arguments["request"])
        uri = str(folder / f"{self.command}{f'-{candidate}' if candidate else ''}.json")
        references = {
            **self.arguments, "project": self.project, "manifest": uri, "dag_run": ti.run_id,
            "report": str(layout.report(project, ti.dag_id, ti.run_id, ti.task_id)),
        }  # fmt: skip
        self._run([sys.executable, "-u", "-m", "include.training", self.command, *command_line(references)])
        try:
            made = manifest.read(uri)
        except FileNotFoundError:
            raise AirflowException(f"{self.command} ended well but wrote no manifest at {uri}: it made nothing that can be used") from None
        if (made.get("step"), made.get("request")) != (self.command, self.arguments["request"]):
            raise AirflowException(f"{uri} is not the manifest of {self.command} for request {self.arguments['request']}")
        return uri

    def _run(self, command: list[str]) -> None:
        self.log.info("Running %s", " ".join(command))
        libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

        def die_with_the_task() -> None:
            # Also when the task is killed with -9: else its retry would work beside the orphan.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)  # the task died before the line above

        last: deque[str] = deque(maxlen=LAST_LINES)
        # A group of its own, so that on_kill also reaches what the step starts.
        self._child = subprocess.Popen(
            command, cwd=REPOSITORY, env=child_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True, preexec_fn=die_with_the_task,
        )  # fmt: skip
        assert self._child.stdout is not None
        try:
            for line in self._child.stdout:
                last.append(line.rstrip())
                self.log.info("%s", line.rstrip())
            code = self._child.wait()
        finally:
            self.on_kill()
        if code != 0:
            raise AirflowException(f"{self.command} ended with exit code {code}; its last lines:\n" + "\n".join(last))

    def on_kill(self) -> None:
        if self._child is not None and self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)  # a step that is killed at any point is safe to run again
            self._child.wait()


def child_environment() -> dict[str, str]:
    """The task's environment without Airflow's own variables (a step must not know Airflow); this repository is importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


def command_line(references: dict[str, Any]) -> list[str]:
    """``{"training_set": uri, "fits": [a, b]}`` as ``--training-set uri --fits a b``."""
    line: list[str] = []
    for name, value in references.items():
        if value is None:
            continue
        values = [value] if isinstance(value, str) else [str(v) for v in value]
        line += [f"--{name.replace('_', '-')}", *values]
    return line
