"""Compute: a training step is one command line; where it runs is a setting, not a matter of the DAG file.

Here it is a child process of the task. It gets references as arguments and the URI of a manifest to write; what it made is read there.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

from include.dag_kit.warm_child import WarmChild, die_with_parent
from include.projects import get_project
from include.projects.base import Project
from include.settings import REPOSITORY

MODULE = "include.training"
LAST_LINES = 20  # of the child's output, in the error of a failed step
WARM = "AIRFLOW_WORKERS_ARE_WARM"  # set by config/airflow_local_settings.py, where it has imported the heavy libraries


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
        self._child: subprocess.Popen | WarmChild | None = None

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
        self._run(MODULE, [self.command, *command_line(references)])
        try:
            made = manifest.read(uri)
        except FileNotFoundError:
            raise AirflowException(f"{self.command} ended well but wrote no manifest at {uri}: it made nothing that can be used") from None
        if (made.get("step"), made.get("request")) != (self.command, self.arguments["request"]):
            raise AirflowException(f"{uri} is not the manifest of {self.command} for request {self.arguments['request']}")
        return uri

    def _run(self, module: str, arguments: list[str]) -> None:
        self.log.info("Running python -m %s %s", module, " ".join(arguments))
        self._child = start(module, arguments)
        last: deque[str] = deque(maxlen=LAST_LINES)
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


def start(module: str, arguments: list[str]) -> subprocess.Popen | WarmChild:
    """Start ``python -m <module> <arguments>`` as a child that dies with this process; in a warm worker without a new interpreter.

    It leads a process group of its own, so that what it starts can be killed with it.
    """
    if os.environ.get(WARM):
        return WarmChild(module, arguments, env=child_environment(), cwd=str(REPOSITORY))
    parent = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-u", "-m", module, *arguments], cwd=REPOSITORY, env=child_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True, preexec_fn=lambda: die_with_parent(parent),
    )  # fmt: skip


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
