"""Freeze and thaw projects.

The ledger stores the freeze. Training, promotion and rollout check it. After a thaw the waiting
work is started.
"""

import getpass
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from include import ledger
from include.ledger import EVERYTHING, Freeze
from include.projects import get_project, project_names
from include.rollout.records import held_deployment
from include.settings import Settings
from include.stack.api import AirflowApi, RunNotStartedError

# Starts a run with a DAG id, parameters and a run id, and returns the run id. An existing run with
# that id is accepted too.
Start = Callable[[str, dict[str, str], str], str]


@dataclass
class Thawed:
    """The result of a thaw.

    Attributes:
        ended: The freeze that was ended, or None if there was none.
        still: Freezes that still apply: the one of all projects, or those of single projects.
        started: DAG id and run id of the started runs.
        trouble: Why the waiting work could not be started.
    """

    ended: Freeze | None
    still: list[Freeze]
    started: list[tuple[str, str]] = field(default_factory=list)
    trouble: str = ""


def who() -> str:
    """Return the name of the current user, or the number in a container where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def freeze(project: str | None, *, by: str, why: str) -> tuple[Freeze, bool]:
    """Freeze a project, or all projects with None.

    Return the freeze that applies, and whether it is a new one.

    Raises:
        ValueError: The project does not exist, or the reason is missing.
    """
    if not why.strip():
        raise ValueError("state the reason: each frozen task shows it")
    if project is not None:
        get_project(project)
    before = {one.project for one in ledger.freezes()}
    made = ledger.freeze(project or EVERYTHING, by=by, why=why.strip())
    return made, made.project not in before


def thaw(settings: Settings, project: str | None, *, by: str, start: Start | None = None) -> Thawed:
    """End the freeze of a project (None: of all projects) and start the waiting work.

    A second call starts again what could not be started.

    Args:
        start: Starts a run, or raises RunNotStartedError. None: start it as the admin, over
            Airflow's API.

    Raises:
        ValueError: The project does not exist.
    """
    if project is not None:
        get_project(project)
    ended = ledger.thaw(project or EVERYTHING, by=by)
    concerned = [project] if project else project_names()
    still = [one for one in ledger.freezes() if project is None or one.project in (project, EVERYTHING)]
    thawed = Thawed(ended, still)
    waiting = [
        run
        for name in concerned
        if ledger.freeze_of(name) is None
        for run in waiting_runs(name, ended.since if ended else "")
    ]
    try:
        if waiting and start is None:
            start = AirflowApi.from_settings(settings).trigger
        for dag_id, run_id, conf in waiting:
            assert start is not None
            thawed.started.append((dag_id, start(dag_id, conf, run_id)))
    except (httpx.HTTPError, OSError, RunNotStartedError) as error:
        left = ", ".join(dag_id for dag_id, _, _ in waiting[len(thawed.started) :])
        again = "airloop thaw --all" if project is None else f"airloop thaw {project}"
        thawed.trouble = (
            f"Airflow could not be asked to start {left} ({error}). Start it and do `{again}` again; the next monitor"
            " wakes train too"
        )
    return thawed


def waiting_runs(project: str, since: str) -> list[tuple[str, str, dict[str, str]]]:
    """Return the DAG runs for the waiting work: DAG id, run id and parameters.

    Each request gets its own run. Runs queue, while Airflow would merge events.
    """
    mark = f"{since}__" if since else ""
    runs: list[tuple[str, str, dict[str, str]]] = [
        (f"{project}__train", f"thawed__{mark}{r.id}", {"request": r.id})
        for r in ledger.requests(project)
        if r.state == "open"
    ]
    if held := held_deployment(get_project(project)):
        runs.append((f"{project}__deploy", f"thawed__{mark}{held.id}", {"cutoff": held.cutoff}))
    return runs
