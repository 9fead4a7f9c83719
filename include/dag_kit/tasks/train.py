"""The tasks of ``dags/train.py`` that do not fit a model (see ``include.dag_kit.compute``)."""

from typing import Any

from airflow.sdk import task

from include.assets import challenger_model
from include.dag_kit.compute import in_class
from include.projects import get_project

# A request may leave out all candidates of a compute class, or all candidates with a search. Their
# tasks are then skipped, and the downstream tasks run without them. A failed task still stops them.
ANY_SKIPPED = "none_failed_min_one_success"


@task
def build_training_set(request: dict[str, Any]) -> str:
    """Write the examples that the request asks for, and return their URI."""
    from include.features import training_set

    return training_set.build(get_project(request["project"]), request)


@task
def find_champion(request: dict[str, Any], training_set: str) -> dict[str, Any]:
    """Return the references that all steps of the request share, among them the champion."""
    from include.registry import requests

    return requests.judging_basis(get_project(request["project"]), request, training_set)


@task
def plan_trials(request: dict[str, Any], compute: str) -> list[dict[str, Any]]:
    """Return the arguments of a compute class's search trials."""
    from include.registry import requests

    return requests.trials_of(get_project(request["project"]), request, compute)


@task(trigger_rule=ANY_SKIPPED)
def choose_candidates(request: dict[str, Any], basis: dict[str, Any], compute: str) -> list[dict[str, Any]]:
    """Return the arguments of a compute class's fits, with the parameters that a search found."""
    from include.registry import requests

    return requests.fits_of(get_project(request["project"]), request, basis, compute)


@task
def apply_gate(project_name: str, evaluation: str, *, ti: Any = None) -> str:
    """Judge the best candidate, and return the URI of the verdict."""
    from include.data import layout
    from include.registry import requests

    project = get_project(project_name)
    return requests.apply_gate(project, evaluation, layout.report(project, ti.dag_id, ti.run_id, ti.task_id))


@task.branch
def choose_refit(project_name: str, evaluation: str) -> str:
    """Return the id of the refit of the best candidate's compute class. The others are skipped."""
    from include.registry import requests

    return in_class("refit", requests.class_of_best(get_project(project_name), evaluation))


@task(trigger_rule=ANY_SKIPPED)
def register(project_name: str, models: list[str | None]) -> dict[str, Any]:
    """Register the refitted model, also if the gate refused it. The verdict is a tag of it."""
    from include.registry import versions

    # Only one refit ran.
    (model,) = filter(None, models)
    return versions.register_judged(get_project(project_name), model)


@task
def settle_request(request: dict[str, Any], version: dict[str, Any], *, run_id: Any = None) -> None:
    """Record the verdict in the ledger."""
    from include.registry import requests

    requests.settle(get_project(request["project"]), request, version, dag_run=run_id)


@task.short_circuit
def passed_the_gate(version: dict[str, Any]) -> bool:
    """Return whether the version passed. Otherwise nothing is announced."""
    return bool(version["gate"] == "passed")


@task
def announce_challenger(version: dict[str, Any], *, outlet_events: Any = None, run_id: Any = None) -> None:
    """Record the end of the stage, and announce the challenger, which starts ``deploy``."""
    from include.registry import requests

    project = get_project(version["name"])
    requests.record_training(project, version, dag_run=run_id)
    outlet_events[challenger_model(project)].extra = version
