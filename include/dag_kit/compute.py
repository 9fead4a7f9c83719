"""Run a training step as one command line. A setting selects where it runs, not the DAG file.

The command gets references as arguments and the URI of a manifest to write. Its results are read
from that manifest. With ``AIRLOOP_COMPUTE=process`` it is a child process of the task. With
``kubernetes`` it is a pod, see ``include.dag_kit.pods.operator``. The choice is made when the task
runs. Therefore the serialized DAG is the same in both cases, and parsing never imports the
Kubernetes client.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from include.dag_kit.forked_process import ForkedProcess, die_with_parent
from include.dag_kit.requests import refuse_frozen_step
from include.dag_kit.retries import OUTAGES, RETRIES, BackendOutageRetryPolicy
from include.outages import EX_DATAERR, EX_UNAVAILABLE
from include.projects import get_project
from include.projects.base import Project
from include.projects.compute import ComputeClass
from include.settings import REPOSITORY, get_settings, git_sha

if TYPE_CHECKING:
    from include.dag_kit.pods.operator import StepPod

MODULE = "include.training"
BACKSTOP = timedelta(minutes=10)
# Number of output lines of the child in the error of a failed step.
LAST_LINES = 20
# Set by config/airflow_local_settings.py after it has imported the heavy libraries.
WARM = "AIRFLOW_WORKERS_ARE_WARM"


def training_step(
    project: Project,
    command: str,
    *,
    arguments: dict[str, Any] | None = None,
    shared: dict[str, Any] | None = None,
    compute: str = "cpu",
    task_id: str | None = None,
    at_once: int | None = None,
    trigger_rule: str = "all_success",
    module: str = MODULE,
) -> Any:
    """Return a task that runs ``python -m include.training <command>``.

    The task returns the URI of the manifest that the command wrote.

    Args:
        command: trial, fit, evaluate or refit.
        arguments: name -> reference, or list of references. None values are omitted. Without
            arguments the step is mapped: ``.expand(arguments=...)``.
        shared: Arguments that all tasks of a mapped step have in common.
        compute: The step's compute class, one of the project's. It is also the Airflow pool.
        task_id: Default: ``in_class(command, compute)``.
        at_once: Maximum number of tasks of a mapped step that run concurrently. None: limited only
            by the pool.
        trigger_rule: Airflow's trigger rule, for a step after others that may be skipped.
        module: A training module of the project, with the same command line.
    """
    resources = project.compute_class(compute)
    # An evaluation does not fit a model, so one worker is enough.
    workers = 1 if command == "evaluate" else project.workers(compute)
    common: dict[str, Any] = {
        "task_id": task_id or in_class(command, compute),
        "project": project.name,
        "command": command,
        "shared": shared or {},
        "module": module,
        "trigger_rule": trigger_rule,
        "compute": compute,
        "compute_class": resources.model_dump(mode="json"),
        "pool": compute,
        "pool_slots": resources.slots * workers,
        # Enough tries for all memory sizes, for two evictions, and for unavailable stores. A step
        # that itself fails has RETRIES, see _failure.
        "retries": RETRIES + len(resources.memory_sizes) - 1 + RETRIES + OUTAGES,
        "retry_policy": BackendOutageRetryPolicy(
            own=None, retries=RETRIES + len(resources.memory_sizes) - 1 + RETRIES + OUTAGES
        ),
        # The class's own timeout is enforced where the step runs, and its error names it. This
        # longer timeout leaves time to end a step that hangs.
        "execution_timeout": resources.timeout + BACKSTOP,
    }
    if arguments is None:
        return TrainingStep.partial(map_index_template="{{ candidate }}", max_active_tis_per_dagrun=at_once, **common)
    return TrainingStep(arguments=arguments, **common)


def in_class(task: str, compute: str) -> str:
    """Return the id of a task that exists once per compute class.

    The id is ``fit`` for the class ``cpu``, and e.g. ``fit_gpu_a`` for other classes.
    """
    return task if compute == "cpu" else f"{task}_{compute}"


class BackendUnavailableError(AirflowException):
    """Raised when a step fails because MLflow, the object store or a database is unavailable."""


class TrainingStep(BaseOperator):
    """Run one training step where the settings say, and end it when the task ends."""

    template_fields = ("arguments", "shared")
    ui_color = "#e8f0ff"

    def __init__(
        self,
        *,
        project: str,
        command: str,
        arguments: dict[str, Any],
        shared: dict[str, Any] | None = None,
        compute_class: dict[str, Any] | None = None,
        compute: str = "cpu",
        module: str = MODULE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.project, self.command, self.arguments, self.shared = project, command, arguments, shared or {}
        # An empty dict selects the defaults of a compute class.
        self.module, self.compute, self.compute_class = module, compute, compute_class or {}
        self._child: subprocess.Popen[str] | ForkedProcess | None = None
        self._pod: StepPod | None = None

    def execute(self, context: Any) -> str:
        # This names the mapped task in the UI.
        context["candidate"] = self._called
        if request := self._references.get("request"):
            refuse_frozen_step(self.project, request, context["ti"].run_id, context["ti"])
        if get_settings().compute == "kubernetes":
            self._pod = self._pod_of(context)
            return self.pod_ended(context, self._pod.start(context, "pod_ended"))
        try:
            self._run(self.module, self._line(context))
            return self._made()
        except AirflowException as error:
            ti = context["ti"]
            raise self._failure(error, tries=self.retries - ti.max_tries + ti.try_number) from None

    def pod_ended(self, context: Any, event: dict[str, Any]) -> str:
        """Resume after deferral when the step's pod has ended or cannot succeed."""
        context["candidate"] = self._called
        self._pod = self._pod or self._pod_of(context)
        if self._pod.overtaken(event):
            event = self._pod.start(context, "pod_ended")
        try:
            self._pod.settle(event)
            uri = self._made()
        except AirflowFailException:
            raise
        except AirflowException as error:
            self._pod.reject()
            raise self._failure(error, tries=self._pod.own_faults(context)) from None
        self._pod.accept()
        return uri

    def pod_wanted(self, context: Any, event: Any, since: str) -> str:
        """Resume after deferral and retry to create the pod that exceeded the namespace quota."""
        context["candidate"] = self._called
        self._pod = self._pod_of(context)
        return self.pod_ended(context, self._pod.start(context, "pod_ended", since))

    def on_kill(self) -> None:
        if self._child is not None and self._child.poll() is None:
            # A step can be killed at any point and run again.
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        if self._pod is not None:
            self._pod.on_kill()

    @staticmethod
    def _failure(error: AirflowException, tries: int) -> AirflowException:
        """Return the error, or a non-retryable one after too many failures of the step itself.

        The limit is RETRIES. An unavailable store does not count.
        """
        return (
            AirflowFailException(str(error))
            if tries > RETRIES and not isinstance(error, BackendUnavailableError)
            else error
        )

    @property
    def _references(self) -> dict[str, Any]:
        return {**self.shared, **self.arguments}

    @property
    def _which(self) -> list[str]:
        """Return what distinguishes a mapped step's tasks: candidate and trial number."""
        return [str(self._references[name]) for name in ("candidate", "trial") if name in self._references]

    @property
    def _called(self) -> str:
        return " ".join(self._which) or self.command

    @property
    def _name(self) -> str:
        return "-".join([self.command, *self._which])

    @property
    def _manifest(self) -> str:
        from include.data import layout

        return str(layout.training(get_project(self.project), self._references["request"]) / f"{self._name}.json")

    def _line(self, context: Any) -> list[str]:
        from include.data import layout

        project, ti, references = get_project(self.project), context["ti"], self._references
        if self.command == "trial":
            references["parameters"] = propose_trial(project, **references)
        report = layout.report(project, ti.dag_id, ti.run_id, ti.task_id)
        references |= {"project": self.project, "manifest": self._manifest, "dag_run": ti.run_id, "report": str(report)}
        return [self.command, *command_line(references)]

    def _made(self) -> str:
        """Return the URI of the manifest, after checking that it exists and belongs to this step.

        Raises:
            AirflowException: The manifest is missing or belongs to another step or request.
        """
        from include.training import manifest

        uri = self._manifest
        try:
            made = manifest.read(uri)
        except FileNotFoundError:
            raise AirflowException(
                f"{self.command} ended well but wrote no manifest at {uri}: it made nothing that can be used"
            ) from None
        if (made.get("step"), made.get("request")) != (self.command, self._references["request"]):
            raise AirflowException(
                f"{uri} is not the manifest of {self.command} for request {self._references['request']}"
            )
        return uri

    def _pod_of(self, context: Any) -> "StepPod":
        from include.dag_kit.pods.names import PodStep
        from include.dag_kit.pods.operator import StepPod
        from include.dag_kit.requests import episode_of

        request = self._references["request"]
        workers = self._workers()
        step = PodStep(self.project, request, self._name, self._manifest, self.compute, git_sha(), episode_of(request))
        resources = ComputeClass.model_validate(self.compute_class)
        command = ["python", "-u", "-m", self.module, *self._line(context)]
        if workers > 1:
            from include.dag_kit.pods.group import StepPodGroup

            return StepPodGroup(
                workers=workers,
                task_id=self.task_id,
                step=step,
                resources=resources,
                command=command,
                settings=get_settings(),
            )
        return StepPod(task_id=self.task_id, step=step, resources=resources, command=command, settings=get_settings())

    def _workers(self) -> int:
        """Return the number of pods that fit the step's model together.

        A project's own training module uses one pod.
        """
        if self.module != MODULE:
            return 1
        from include.training.candidates import fitted_candidate

        try:
            candidate = fitted_candidate(get_project(self.project), self.command, self._references)
        except ValueError as error:
            raise AirflowFailException(str(error)) from error
        return candidate.workers if candidate else 1

    def _run(self, module: str, arguments: list[str]) -> None:
        self.log.info("Running python -m %s %s", module, " ".join(arguments))
        self._child = start(module, arguments)
        limit = ComputeClass.model_validate(self.compute_class).timeout
        late = threading.Event()

        def end_it(group: int = self._child.pid) -> None:
            late.set()
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

        clock = threading.Timer(limit.total_seconds(), end_it)
        clock.daemon = True
        clock.start()
        last: deque[str] = deque(maxlen=LAST_LINES)
        assert self._child.stdout is not None
        try:
            for line in self._child.stdout:
                last.append(line.rstrip())
                self.log.info("%s", line.rstrip())
            code = self._child.wait()
        finally:
            clock.cancel()
            self.on_kill()
        if late.is_set():
            raise AirflowException(
                f"{self.command} ran for longer than the {limit} of compute class {self.compute}: killed; last lines:\n"
                + "\n".join(last)
            )
        if code == EX_UNAVAILABLE:
            raise BackendUnavailableError(
                f"{self.command} had no answer of a store; its last lines:\n" + "\n".join(last)
            )
        if code == EX_DATAERR:
            raise AirflowFailException(
                f"{self.command} failed, and another try would fail in the same way; its last lines:\n"
                + "\n".join(last)
            )
        if code != 0:
            raise AirflowException(f"{self.command} ended with exit code {code}; its last lines:\n" + "\n".join(last))


def start(module: str, arguments: list[str]) -> subprocess.Popen[str] | ForkedProcess:
    """Start ``python -m <module> <arguments>`` as a child that dies with this process.

    In a warm worker the child is a fork, without a new interpreter. The child leads its own process
    group, so that its own child processes can be killed with it.
    """
    if os.environ.get(WARM):
        return ForkedProcess(module, arguments, env=child_environment(), cwd=str(REPOSITORY))
    parent = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-u", "-m", module, *arguments],
        cwd=REPOSITORY,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(parent),
    )


def propose_trial(project: Project, *, request: str, candidate: str, trial: str, **_: Any) -> str:
    """Ask the study for a trial's parameters and return their URI.

    This is done just before the trial starts, so that the study learns from earlier trials. It is
    done in the task because the step, which may be a pod, needs no access to the database.
    """
    from include.training import candidates, search

    return search.write_proposal(project, request, candidates.candidate_of(project, candidate), int(trial))


def child_environment() -> dict[str, str]:
    """Return the task's environment without Airflow's own variables.

    A training step must not depend on Airflow. This repository stays importable.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


def command_line(references: dict[str, Any]) -> list[str]:
    """Return references as command-line arguments. Empty values are omitted.

    For example, ``{"training_set": uri, "fits": [[a, b], [c]]}`` becomes
    ``--training-set uri --fits a b c``.
    """
    line: list[str] = []
    for name, value in references.items():
        if values := _flat(value):
            line += [f"--{name.replace('_', '-')}", *values]
    return line


def _flat(value: Any) -> list[str]:
    """Return the references in a value as a flat list.

    The value is one reference, the references of a mapped step (empty if it was skipped), or those
    of several steps.
    """
    if value is None:
        return []
    return [value] if isinstance(value, str) else [one for part in value for one in _flat(part)]
