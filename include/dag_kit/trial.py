"""Run DAGs one after the other in this process, without a scheduler, like ``dag.test()``.

``airloop try`` and the tests use it:

    python -m include.dag_kit.trial plan.json <file descriptor for events>

The plan is ``{"project", "steps": [{"stage", "cutoff", "since", "file", "keep", "key"}]}``. The
last step is the one to try. An event is a line of JSON.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow.listeners import hookimpl
from airflow.sdk import DAG
from airflow.sdk.listener import get_listener_manager

from include.projects import get_project
from include.projects.base import Project
from include.settings import get_settings
from include.trial.error_summary import error_summary, traceback_summary
from include.trial.plan import FEED

Tell = Callable[..., None]


class StageFailedError(RuntimeError):
    """Raised when a DAG run did not succeed. Its tasks have already reported their errors."""


def run(plan: dict[str, Any], tell: Tell) -> None:
    """Run the steps. Report each step, each task, and at the end the results."""
    from include.trial import made
    from include.trial.scratch import keep

    project, listener = get_project(plan["project"]), TaskListener(tell)
    get_listener_manager().add_listener(listener)
    for step in plan["steps"]:
        began, last = time.monotonic(), step is plan["steps"][-1]
        tell(event="step", stage=step["stage"], cutoff=step["cutoff"], tried=last)
        if step["stage"] == FEED:
            from include.data import feed
            from include.ledger import moment, set_clock

            files = feed.drop(project, since=moment(step["since"]), until=moment(step["cutoff"]))
            set_clock(project.name, step["cutoff"])
            tell(event="dropped", files=files)
        else:
            before = made.inventory(project, step["stage"]) if last else {}
            state, run_id = test_dag(
                load(Path(step["file"]), f"{project.name}__{step['stage']}"), configuration(project, step)
            )
            if last:
                tell(
                    event="made",
                    things=[
                        thing._asdict()
                        for thing in made.made_by(project, step["stage"], before, run_id=run_id, cutoff=step["cutoff"])
                    ],
                )
            if state != "success":
                raise StageFailedError(f"{project.name}__{step['stage']} ended as {state}")
        tell(event="done", stage=step["stage"], seconds=time.monotonic() - began)
        if step["keep"]:
            keep(get_settings().home, Path(step["keep"]), step["key"])


def load(file: Path, dag_id: str) -> DAG:
    """Return the DAG of a file.

    Raises:
        ImportError: The file does not parse, or it does not contain this DAG. The message names
            file and line.
    """
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(file))
    if bag.import_errors:
        raise ImportError(f"the DAG file does not parse: {traceback_summary(next(iter(bag.import_errors.values())))}")
    if dag_id not in bag.dags:
        raise ImportError(f"{file} has no DAG '{dag_id}'; it has {', '.join(sorted(bag.dags)) or 'none'}")
    return bag.dags[dag_id]


def test_dag(dag: DAG, conf: dict[str, Any]) -> tuple[str, str]:
    """Run a DAG once and return the run's state and id.

    A task that fails is not retried, because the user wants to see why it fails.
    """
    for task in dag.tasks:
        task.retries = 0
    run = dag.test(run_conf=conf)
    return str(run.state.value), run.run_id


def configuration(project: Project, step: dict[str, Any]) -> dict[str, Any]:
    """Return the run's parameters, as a person would give them."""
    conf = {"cutoff": step["cutoff"]}
    if step["stage"] == "train":
        return {**conf, "reason": "try"}
    if step["stage"] == "deploy":
        from include.registry import versions
        from include.registry.client import registry_client

        # The gate refused the sample's model. A person may deploy it anyway.
        if versions.CHALLENGER not in versions.aliases(project):
            return {
                **conf,
                "version": max(
                    (str(v.version) for v in registry_client().search_model_versions(f"name = '{project.name}'")),
                    key=int,
                ),
            }
    return conf


class TaskListener:
    """Report how each task ends, and why it failed."""

    def __init__(self, tell: Tell):
        self._tell, self._began = tell, 0.0

    @hookimpl
    def on_task_instance_running(self, previous_state: Any, task_instance: Any) -> None:
        self._began = time.monotonic()
        self._tell(event="running", task=_label(task_instance))

    @hookimpl
    def on_task_instance_success(self, previous_state: Any, task_instance: Any) -> None:
        self._ended(task_instance, "success")

    @hookimpl
    def on_task_instance_skipped(self, previous_state: Any, task_instance: Any) -> None:
        self._ended(task_instance, "skipped")

    @hookimpl
    def on_task_instance_failed(self, previous_state: Any, task_instance: Any, error: Any) -> None:
        if isinstance(error, BaseException):
            self._ended(
                task_instance,
                "failed",
                error=error_summary(error),
                traceback="".join(traceback.format_exception(error)),
            )
        else:
            self._ended(task_instance, "failed", error=str(error or ""))

    def _ended(self, task_instance: Any, state: str, **more: Any) -> None:
        self._tell(
            event="task", task=_label(task_instance), state=state, seconds=time.monotonic() - self._began, **more
        )


def _label(task_instance: Any) -> str:
    mapped = task_instance.map_index is not None and task_instance.map_index >= 0
    return f"{task_instance.task_id}[{task_instance.map_index}]" if mapped else task_instance.task_id


def main(plan_file: str, descriptor: str) -> int:
    with os.fdopen(int(descriptor), "w", buffering=1) as events:

        def tell(**event: Any) -> None:
            events.write(json.dumps(event, default=str) + "\n")

        try:
            run(json.loads(Path(plan_file).read_text()), tell)
        except StageFailedError as error:
            tell(event="failed", error=str(error))
            return 1
        except Exception as error:
            tell(
                event="error",
                error=str(error) if isinstance(error, ImportError) else error_summary(error),
                traceback=traceback.format_exc(),
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
