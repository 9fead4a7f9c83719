"""Control a try from outside the process that runs it.

This prepares the scratch store, starts the process that runs the DAGs and the serving process that
it needs, and reads the events.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Protocol

from include.checks import declaration
from include.checks.check import on_data
from include.checks.finding import Finding
from include.projects.base import STAGES, Project
from include.settings import Settings
from include.stack.environment import serving_environment
from include.trial.plan import FEED, Made, Sample, TrialStep, dag_file, sample_of, steps_to
from include.trial.scratch import Scratch

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1


class Watcher(Protocol):
    """Shows the progress: one call per event of ``include.dag_kit.trial``."""

    def note(self, text: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...


@dataclass
class Outcome:
    """The result of a try.

    Attributes:
        error: None if the stage succeeded.
        seconds: Duration by step, without reused steps.
    """

    sample: Sample
    scratch: Scratch
    steps: list[TrialStep]
    reused: int
    seconds: dict[str, float] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    error: str | None = None


def try_stage(settings: Settings, project: Project, stage: str, rows: int, watcher: Watcher) -> Outcome:
    """Run a stage on a sample in its scratch store.

    Earlier stages run too, unless the results of an earlier try are still valid.

    Raises:
        UnknownStageError, TryRunningError, FaultyProjectError: Nothing was run.
    """
    if stage in STAGES:
        refuse_faulty(declaration.findings(project), stage)
    sample = sample_of(project, rows)
    steps, scratch = steps_to(stage, project, sample), Scratch(settings, project, stage, sample)
    with scratch.alone(), ExitStack() as children:
        reused = scratch.prepare(steps[:-1], watcher.note)
        # The kept rows are the same that the project's sources would provide now.
        if any(step.stage == "ingest" for step in steps[:reused]):
            refuse_faulty(on_data(project, [str(scratch.work / "store" / project.name)]).findings, stage)
        outcome = Outcome(sample, scratch, steps, reused)
        port = free_port(settings.host) if any(step.stage == "deploy" for step in steps[reused:]) else None
        if port:
            children.enter_context(serving(scratch, port))
        began = time.monotonic()
        for event in run_dags(scratch, project, steps, reused, port):
            _take_down(outcome, event)
            watcher.event(event)
        outcome.seconds["all"] = time.monotonic() - began
    return outcome


class FaultyProjectError(ValueError):
    """Raised when a finding of the project's check would make the stage fail."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(map(str, findings)))


def refuse_faulty(findings: list[Finding], stage: str) -> None:
    """Raise FaultyProjectError if a finding would make the stage or an earlier one fail."""
    stages = declaration.stages_until(stage)
    if any(one.stage in stages and not one.warning for one in findings):
        raise FaultyProjectError(findings)


def _take_down(outcome: Outcome, event: dict[str, Any]) -> None:
    if event["event"] == "done":
        outcome.seconds[event["stage"]] = event["seconds"]
    elif event["event"] == "made":
        outcome.made = [Made(**thing) for thing in event["things"]]
    elif event["event"] in ("failed", "error"):
        outcome.error = event["error"]


def run_dags(
    scratch: Scratch, project: Project, steps: list[TrialStep], reused: int, port: int | None
) -> Iterator[dict[str, Any]]:
    """Run all steps that are not ``reused`` in one process, and yield its events.

    Importing Feast, MLflow and Great Expectations takes longer than most stages on a sample.
    """
    plan = []
    for number, step in list(enumerate(steps))[reused:]:
        file = None if step.stage == FEED else str(dag_file(step.stage, scratch.settings.dags_folder))
        # The result of the tried stage is kept too, because the next stage begins with it.
        plan.append(asdict(step) | {"file": file, "keep": str(scratch.keep_folder(number, step))})
    plan_file = scratch.root / "plan.json"
    plan_file.write_text(json.dumps({"project": project.name, "steps": plan}, indent=1))
    readable, writable = os.pipe()
    command = [sys.executable, "-m", "include.dag_kit.trial", str(plan_file), str(writable)]
    with (
        scratch.log.open("wb") as log,
        _child(command, scratch.environment(port), scratch, log, pass_fds=(writable,)) as process,
    ):
        os.close(writable)
        with os.fdopen(readable) as events:
            ended, trace = False, ""
            for line in events:
                event = json.loads(line)
                trace = event.pop("traceback", "") or trace
                ended = ended or event["event"] in ("failed", "error")
                yield event
        code = process.wait()
        # Repeat the traceback after everything that the process prints at its end.
        if trace:
            log.write(f"\n{trace}".encode(errors="replace"))
        if code != 0 and not ended:
            yield {
                "event": "error",
                "error": (
                    f"the process that ran the DAGs ended with exit status {process.returncode}; see {scratch.log}"
                ),
            }


@contextmanager
def serving(scratch: Scratch, port: int) -> Iterator[None]:
    """Run the real service on the scratch store's registry and features.

    ``deploy`` waits for it.
    """
    settings = scratch.settings
    mlflow = scratch.mlflow_environment
    environment = (
        serving_environment(settings)
        | settings.feast_environment
        | mlflow
        | {"SERVING_MLFLOW_URI": mlflow["MLFLOW_TRACKING_URI"]}
    )
    command = [sys.executable, "-m", "serving", "--host", settings.host, "--port", str(port)]
    with (scratch.root / "serving.log").open("wb") as log, _child(command, environment, scratch, log):
        yield


@contextmanager
def _child(
    command: list[str], environment: dict[str, str], scratch: Scratch, log: IO[bytes], pass_fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that ends with this block or with this process, including its children."""
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=scratch.work,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(timeout=5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
