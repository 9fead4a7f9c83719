"""Compute: a training step is one command line; where it runs is a setting, not a matter of the DAG file.

It gets references as arguments and the URI of a manifest to write; what it made is read there. With ``AIRLOOP_COMPUTE=process`` it is a child
process of the task, here; with ``kubernetes`` it is a pod, see ``include.dag_kit.pods``. The choice is made when the task runs: so the DAG, as
Airflow knows it, is the same, and parsing never imports the Kubernetes client.
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

from include.dag_kit.requests import refuse_frozen_step
from include.dag_kit.retries import OUTAGES, RETRIES, PatientWithStores
from include.dag_kit.warm_child import WarmChild, die_with_parent
from include.outages import STORE_AWAY, WILL_FAIL_AGAIN
from include.projects import get_project
from include.projects.base import Project
from include.projects.compute import ComputeClass
from include.settings import REPOSITORY, get_settings, git_sha

if TYPE_CHECKING:
    from include.dag_kit.pods import StepPod

MODULE = "include.training"
BACKSTOP = timedelta(minutes=10)
LAST_LINES = 20  # of the child's output, in the error of a failed step
WARM = "AIRFLOW_WORKERS_ARE_WARM"  # set by config/airflow_local_settings.py, where it has imported the heavy libraries


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
):
    """A task that runs ``python -m include.training <command>`` and returns the URI of the manifest that it wrote.

    Args:
        command: trial, fit, evaluate or refit.
        arguments: name -> reference, or list of references; None is left out. Without it the step is mapped: ``.expand(arguments=...)``.
        shared: arguments that all of a mapped step's tasks have.
        compute: the step's compute class, one of the project's; it is also the Airflow pool.
        task_id: by default ``in_class(command, compute)``.
        at_once: how many of a mapped step's tasks may run at once; None: as many as the pool has slots.
        trigger_rule: Airflow's, for a step after others that may be skipped.
        module: a training module of the project's own, with the same command line.
    """
    resources = project.compute_class(compute)
    workers = 1 if command == "evaluate" else project.workers(compute)  # it fits nothing
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
        # Enough to go through all sizes of memory, and for two evictions beside. A step that fails by its own fault has RETRIES; see _failure.
        # And for stores that are away.
        "retries": RETRIES + len(resources.memory_sizes) - 1 + RETRIES + OUTAGES,
        "retry_policy": PatientWithStores(own=None, retries=RETRIES + len(resources.memory_sizes) - 1 + RETRIES + OUTAGES),
        # The class's own timeout is kept where the step runs, and named in its error; this one is behind it, with time to end a step that hangs.
        "execution_timeout": resources.timeout + BACKSTOP,
    }
    if arguments is None:
        return TrainingStep.partial(map_index_template="{{ candidate }}", max_active_tis_per_dagrun=at_once, **common)
    return TrainingStep(arguments=arguments, **common)


def in_class(task: str, compute: str) -> str:
    """The id of a task that there is once for each compute class: ``fit``, and ``fit_gpu_a`` for other classes than ``cpu``."""
    return task if compute == "cpu" else f"{task}_{compute}"


class StoreAway(AirflowException):
    """A step ended since MLflow, the object store or a database did not answer: no fault of its own."""


class TrainingStep(BaseOperator):
    """Runs one training step where the settings say, and ends it when the task ends."""

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
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.project, self.command, self.arguments, self.shared = project, command, arguments, shared or {}
        self.module, self.compute, self.compute_class = module, compute, compute_class or {}  # {}: the defaults of a compute class
        self._child: subprocess.Popen | WarmChild | None = None
        self._pod: StepPod | None = None

    def execute(self, context) -> str:
        context["candidate"] = self._called  # names the mapped task in the UI
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

    def pod_ended(self, context, event: dict[str, Any]) -> str:
        """Comes back from the triggerer when the step's pod has ended, or will not get anywhere."""
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

    def pod_wanted(self, context, event: Any, since: str) -> str:
        """Comes back after a while when the namespace's quota had no room for the step's pod."""
        context["candidate"] = self._called
        self._pod = self._pod_of(context)
        return self.pod_ended(context, self._pod.start(context, "pod_ended", since))

    def on_kill(self) -> None:
        if self._child is not None and self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)  # a step that is killed at any point is safe to run again
            self._child.wait()
        if self._pod is not None:
            self._pod.on_kill()

    @staticmethod
    def _failure(error: AirflowException, tries: int) -> AirflowException:
        """The error as it is, or, after so many tries that failed by the step's own fault, as one that Airflow tries no more."""
        return AirflowFailException(str(error)) if tries > RETRIES and not isinstance(error, StoreAway) else error

    @property
    def _references(self) -> dict[str, Any]:
        return {**self.shared, **self.arguments}

    @property
    def _which(self) -> list[str]:
        """What tells a mapped step's tasks apart: the candidate, and its trial's place."""
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

    def _line(self, context) -> list[str]:
        from include.data import layout

        project, ti, references = get_project(self.project), context["ti"], self._references
        if self.command == "trial":
            references["parameters"] = propose_trial(project, **references)
        report = layout.report(project, ti.dag_id, ti.run_id, ti.task_id)
        references |= {"project": self.project, "manifest": self._manifest, "dag_run": ti.run_id, "report": str(report)}
        return [self.command, *command_line(references)]

    def _made(self) -> str:
        """The URI of the manifest, if it is there and this step's."""
        from include.training import manifest

        uri = self._manifest
        try:
            made = manifest.read(uri)
        except FileNotFoundError:
            raise AirflowException(f"{self.command} ended well but wrote no manifest at {uri}: it made nothing that can be used") from None
        if (made.get("step"), made.get("request")) != (self.command, self._references["request"]):
            raise AirflowException(f"{uri} is not the manifest of {self.command} for request {self._references['request']}")
        return uri

    def _pod_of(self, context) -> "StepPod":
        from include.dag_kit.pod_names import Step
        from include.dag_kit.pods import StepPod
        from include.dag_kit.requests import episode_of

        request = self._references["request"]
        workers = self._workers()
        step = Step(self.project, request, self._name, self._manifest, self.compute, git_sha(), episode_of(request))
        resources = ComputeClass.model_validate(self.compute_class)
        command = ["python", "-u", "-m", self.module, *self._line(context)]
        if workers > 1:
            from include.dag_kit.pod_group import StepPodGroup

            return StepPodGroup(workers=workers, task_id=self.task_id, step=step, resources=resources, command=command, settings=get_settings())
        return StepPod(task_id=self.task_id, step=step, resources=resources, command=command, settings=get_settings())

    def _workers(self) -> int:
        """How many pods fit the step's model together. A training module of the project's own has one."""
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
            raise AirflowException(f"{self.command} ran for longer than the {limit} of compute class {self.compute}: killed; last lines:\n" + "\n".join(last))
        if code == STORE_AWAY:
            raise StoreAway(f"{self.command} had no answer of a store; its last lines:\n" + "\n".join(last))
        if code == WILL_FAIL_AGAIN:
            raise AirflowFailException(f"{self.command} failed, and another try would fail in the same way; its last lines:\n" + "\n".join(last))
        if code != 0:
            raise AirflowException(f"{self.command} ended with exit code {code}; its last lines:\n" + "\n".join(last))


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


def propose_trial(project: Project, *, request: str, candidate: str, trial: str, **_: Any) -> str:
    """Ask the study for a trial's parameters when its turn has come, so that it learns from those before it; gives their URI.

    Here and not in the step: what runs there, in a pod perhaps, needs no way into the database.
    """
    from include.training import candidates, search

    return search.write_proposal(project, request, candidates.candidate_of(project, candidate), int(trial))


def child_environment() -> dict[str, str]:
    """The task's environment without Airflow's own variables (a step must not know Airflow); this repository is importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


def command_line(references: dict[str, Any]) -> list[str]:
    """``{"training_set": uri, "fits": [[a, b], [c]]}`` as ``--training-set uri --fits a b c``; what has no value is left out."""
    line: list[str] = []
    for name, value in references.items():
        if values := _flat(value):
            line += [f"--{name.replace('_', '-')}", *values]
    return line


def _flat(value: Any) -> list[str]:
    """The references in a value: one, or those of a mapped step (none, if it was skipped), or of several ones."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [one for part in value for one in _flat(part)]
