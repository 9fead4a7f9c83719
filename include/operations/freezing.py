"""Freeze and thaw: the ledger keeps the freeze, and whoever would train, promote or roll out asks there. After a thaw what waited is taken up."""

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
from include.stack.api import AirflowApi, NotStarted

Start = Callable[[str, dict[str, str], str], str]  # DAG id, parameters, run id -> run id: starts a run; one that is there already is as good


@dataclass
class Thawed:
    """What a thaw came to.

    Attributes:
        ended: the freeze that was; None: there was none.
        still: freezes that hold all the same: of all, or of the single projects among all.
        started: what was taken up: DAG id and run id.
        trouble: why what waits could not be started.
    """

    ended: Freeze | None
    still: list[Freeze]
    started: list[tuple[str, str]] = field(default_factory=list)
    trouble: str = ""


def who() -> str:
    """Whoever runs this command, by name; in a container, whose user may have none, by number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def freeze(project: str | None, *, by: str, why: str) -> tuple[Freeze, bool]:
    """Freeze a project (None: all of them). Gives the freeze that holds, and whether it is a new one.

    Raises:
        ValueError: there is no such project, or no reason is given.
    """
    if not why.strip():
        raise ValueError("say why: whoever meets the freeze reads it")
    if project is not None:
        get_project(project)
    before = {one.project for one in ledger.freezes()}
    made = ledger.freeze(project or EVERYTHING, by=by, why=why.strip())
    return made, made.project not in before


def thaw(settings: Settings, project: str | None, *, by: str, start: Start | None = None) -> Thawed:
    """End a freeze (None: that of all), and have taken up what waited for it. Doing it again starts again what could not be started.

    Args:
        start: starts a run, or raises NotStarted; None: as the admin, over Airflow's API.

    Raises:
        ValueError: there is no such project.
    """
    if project is not None:
        get_project(project)
    ended = ledger.thaw(project or EVERYTHING, by=by)
    concerned = [project] if project else project_names()
    still = [one for one in ledger.freezes() if project is None or one.project in (project, EVERYTHING)]
    thawed = Thawed(ended, still)
    waiting = [run for name in concerned if ledger.freeze_of(name) is None for run in waiting_runs(name, ended.since if ended else "")]
    try:
        if waiting and start is None:
            start = AirflowApi.of(settings).trigger
        for dag_id, run_id, conf in waiting:
            assert start is not None
            thawed.started.append((dag_id, start(dag_id, conf, run_id)))
    except (httpx.HTTPError, OSError, NotStarted) as error:
        left = ", ".join(dag_id for dag_id, _, _ in waiting[len(thawed.started) :])
        again = "airloop thaw --all" if project is None else f"airloop thaw {project}"
        thawed.trouble = f"Airflow could not be asked to start {left} ({error}). Start it and do `{again}` again; the next monitor wakes train too"
    return thawed


def waiting_runs(project: str, since: str) -> list[tuple[str, str, dict[str, str]]]:
    """The DAG runs that take up what waits: DAG id, run id, parameters. A run a request: they queue, while events would be merged."""
    mark = f"{since}__" if since else ""
    runs: list[tuple[str, str, dict[str, str]]] = [
        (f"{project}__train", f"thawed__{mark}{r.id}", {"request": r.id}) for r in ledger.requests(project) if r.state == "open"
    ]
    if held := held_deployment(get_project(project)):
        runs.append((f"{project}__deploy", f"thawed__{mark}{held.id}", {"cutoff": held.cutoff}))
    return runs
