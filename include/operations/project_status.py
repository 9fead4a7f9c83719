"""Collect the content of `airloop status <project>`.

This is the champion, the last cutoff of each stage, open requests with their next step, and failed
runs.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from mlflow.exceptions import MlflowException

from include import ledger
from include.ledger import iso, lifecycle
from include.outages import outage_of
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
        champion: ``version``, ``cutoff`` and the project's metric, or None without a champion (see
            ``lost``).
        stages: ``cutoff``, ``recorded_at`` and ``dag_run`` of each stage that has ended at least
            once.
        waiting: Open retrain requests, each with its next step.
        ended: The newest closed retrain requests, each with its reason.
        gaps: Servers that could not be reached, one sentence each.
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
        """Return whether no action is needed for the project."""
        return not (self.lost or self.gaps or (self.runs and (self.runs.failed or self.runs.long or self.runs.missing)))

    def document(self) -> dict[str, Any]:
        """Return a JSON-serializable document."""
        return asdict(self) | {"well": self.well}


def project_status(settings: Settings, project: Project) -> ProjectStatus:
    """Query ledger, registry and Airflow.

    A server that does not answer is reported as a gap and does not hide the others.
    """
    status = ProjectStatus(project.name, iso(ledger.now(project.name)), ledger.is_replay(project.name))
    held = ledger.freeze_of(project.name)
    status.frozen = str(held) if held else None
    status.stages = {
        stage: {name: record[name] for name in ("cutoff", "recorded_at", "dag_run")}
        for stage, record in ledger.last_cutoffs(project.name).items() if stage in STAGES
    }  # fmt: skip
    requests = ledger.requests(project.name)
    status.waiting = [next_step(one) for one in requests if one.live]
    status.ended = [_end(one) for one in requests if not one.live][-ENDED_SHOWN:]
    if episode := ledger.current_episode(project.name):
        status.episode = f"open since {episode['opened']}: {'; '.join(episode['evidence'].get('reasons', []))}"
    status.untold = [
        f"{one['recorded_at']}  {one['text']}" for one in ledger.notices(project.name) if not one["told_at"]
    ]
    try:
        _ask_registry(project, status)
    except MlflowException as error:
        status.gaps.append(f"champion and rollout are not known: {_why('MLflow', settings.mlflow_url, error)}")
    try:
        # Check first, because the client itself retries for longer.
        httpx.get(f"{settings.airflow_url}/api/v2/version", timeout=SERVER_SECONDS, trust_env=False)
        status.runs = runs_of(AirflowApi.from_settings(settings), project.name)
    except httpx.HTTPError as error:
        status.gaps.append(f"runs are not known: {_why('Airflow', settings.airflow_url, error)}")
    return status


def next_step(request: ledger.Request) -> str:
    """Describe the next step of an open request: owner, deadline and reason for waiting."""
    state = lifecycle.state("request", request.state)
    description = f"{request}; next step: {state.owner}"
    if request.not_before:
        description += f", not before {request.not_before}"
    if request.deadline:
        description += f", by {request.deadline}"
    if request.attempts:
        description += f" ({request.attempts} of {lifecycle.ATTEMPTS} attempts came to nothing)"
    return description + (f": {request.outcome['waits']}" if request.outcome.get("waits") else "")


def _ask_registry(project: Project, status: ProjectStatus) -> None:
    champion = versions.champion(project)
    if champion is None:
        gone = lost_champion(project)
        status.lost = str(gone) if gone else None
    else:
        metric = f"metric.{project.metric.name}"
        status.champion = {
            "version": str(champion.version),
            "cutoff": champion.tags.get("cutoff"),
            project.metric.name: champion.tags.get(metric),
        }
    rollout = rollout_document(project)
    if rollout and rollout.state in IN_PROGRESS:
        reason = f": {rollout.reason}" if rollout.reason else ""
        status.rollout = f"version {rollout.version} is {rollout.state}, by {rollout.deadline or 'no deadline'}{reason}"


def _end(request: ledger.Request) -> str:
    reason = (
        request.outcome.get("reason")
        or request.outcome.get("deploy_reason")
        or "; ".join(request.outcome.get("reasons", [])[:1])
    )
    return f"{request}{f': {reason}' if reason else ''}"


def _why(server: str, url: str, error: Exception) -> str:
    if outage_of(error):
        return f"{server} does not answer at {url}"
    return f"{server} at {url} refuses: {' '.join(str(error).split())[:200]}"
