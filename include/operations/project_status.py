"""Collect the content of `airloop status <project>`: champion, last cutoff of each stage, open requests with their next step, failed runs."""

from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from mlflow.exceptions import MlflowException

from include import ledger
from include.ledger import iso, lifecycle
from include.outages import away
from include.projects.base import STAGES, Project
from include.registry import versions
from include.registry.lost import lost_champion
from include.rollout.document import IN_PROGRESS, rollout_document
from include.settings import Settings
from include.stack.api import AirflowApi
from include.stack.runs import Runs, runs_of

ENDED_SHOWN = 3
SERVER_SECONDS = 4.0


@dataclass
class ProjectStatus:
    """The status of a project.

    Attributes:
        champion: ``version``, ``cutoff`` and the project's metric, or None without a champion (see ``lost``).
        stages: ``cutoff``, ``recorded_at`` and ``dag_run`` of each stage that has ended at least once.
        waiting: open retrain requests, each with its next step.
        ended: the newest closed retrain requests, each with its reason.
        gaps: servers that could not be reached, one sentence each.
    """

    project: str
    present: str
    replay: bool
    frozen: str | None = None
    champion: dict[str, Any] | None = None
    lost: str | None = None
    rollout: str | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    episode: str | None = None
    untold: list[str] = field(default_factory=list)
    runs: Runs | None = None
    gaps: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        """Whether the project needs no action."""
        return not (self.lost or self.gaps or (self.runs and (self.runs.failed or self.runs.long or self.runs.missing)))

    def document(self) -> dict[str, Any]:
        """Return a JSON-serializable document."""
        return asdict(self) | {"well": self.well}


def project_status(settings: Settings, project: Project) -> ProjectStatus:
    """Query ledger, registry and Airflow. A server that does not answer is reported as a gap and does not hide the others."""
    found = ProjectStatus(project.name, iso(ledger.now(project.name)), ledger.is_replay(project.name))
    held = ledger.freeze_of(project.name)
    found.frozen = str(held) if held else None
    found.stages = {
        stage: {name: record[name] for name in ("cutoff", "recorded_at", "dag_run")}
        for stage, record in ledger.last_cutoffs(project.name).items() if stage in STAGES
    }  # fmt: skip
    requests = ledger.requests(project.name)
    found.waiting = [next_step(one) for one in requests if one.live]
    found.ended = [_end(one) for one in requests if not one.live][-ENDED_SHOWN:]
    if episode := ledger.current_episode(project.name):
        found.episode = f"open since {episode['opened']}: {'; '.join(episode['evidence'].get('reasons', []))}"
    found.untold = [f"{one['recorded_at']}  {one['text']}" for one in ledger.notices(project.name) if not one["told_at"]]
    try:
        _ask_registry(project, found)
    except MlflowException as error:
        found.gaps.append(f"champion and rollout are not known: {_why('MLflow', settings.mlflow_url, error)}")
    try:
        httpx.get(f"{settings.airflow_url}/api/v2/version", timeout=SERVER_SECONDS, trust_env=False)  # the client tries for longer
        found.runs = runs_of(AirflowApi.of(settings), project.name)
    except httpx.HTTPError as error:
        found.gaps.append(f"runs are not known: {_why('Airflow', settings.airflow_url, error)}")
    return found


def next_step(request: ledger.Request) -> str:
    """Describe the next step of an open request: owner, deadline and reason for waiting."""
    state = lifecycle.state("request", request.state)
    said = f"{request}; next step: {state.owner}"
    if request.not_before:
        said += f", not before {request.not_before}"
    if request.deadline:
        said += f", by {request.deadline}"
    if request.attempts:
        said += f" ({request.attempts} of {lifecycle.ATTEMPTS} attempts came to nothing)"
    return said + (f": {request.outcome['waits']}" if request.outcome.get("waits") else "")


def _ask_registry(project: Project, found: ProjectStatus) -> None:
    champion = versions.champion(project)
    if champion is None:
        gone = lost_champion(project)
        found.lost = str(gone) if gone else None
    else:
        metric = f"metric.{project.metric.name}"
        found.champion = {"version": str(champion.version), "cutoff": champion.tags.get("cutoff"), project.metric.name: champion.tags.get(metric)}
    rollout = rollout_document(project)
    if rollout and rollout.state in IN_PROGRESS:
        found.rollout = f"version {rollout.version} is {rollout.state}, by {rollout.deadline or 'no deadline'}{': ' + rollout.reason if rollout.reason else ''}"


def _end(request: ledger.Request) -> str:
    reason = request.outcome.get("reason") or request.outcome.get("deploy_reason") or "; ".join(request.outcome.get("reasons", [])[:1])
    return f"{request}{f': {reason}' if reason else ''}"


def _why(server: str, url: str, error: Exception) -> str:
    if away(error):
        return f"{server} does not answer at {url}"
    return f"{server} at {url} refuses: {' '.join(str(error).split())[:200]}"
