"""Promotion of a version to champion, and the way back. Killed at any point and run again, it comes to the same end.

The rollout document (tag ``rollout`` of the registered model) says what was begun: it is written before an alias moves, so
that whoever takes up a killed rollout knows whether an alias stands where this rollout or a person put it. A person wins.

    promoting -> promoted -> serving | rolling_back -> rolled_back | overtaken
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from include import ledger
from include.projects.base import Project
from include.registry import versions
from include.registry.versions import CHAMPION, PREVIOUS
from include.rollout.served import wait_until_served
from include.settings import get_settings
from include.training.bundle import Bundle, GoldenMismatch

DOCUMENT = "rollout"  # tag of the registered model: the rollout in progress, or the last one
ENDED = "rollout"  # tag of a version: how its rollout ended, and in which run

State = Literal["promoting", "promoted", "serving", "rolling_back", "rolled_back", "overtaken"]


@dataclass(frozen=True)
class Rollout:
    """The rollout document. ``previous`` was champion before, ``before_previous`` had the alias ``previous``."""

    version: str
    previous: str | None
    before_previous: str | None
    state: State
    dag_run: str
    cutoff: str
    reason: str = ""
    traffic: dict[str, Any] | None = None  # arms and shadows beside the champion, which serving follows (serving/rollout.py)
    schema: int = 1


class BadModel(ValueError):
    """The model would not do as champion: it answers its golden requests otherwise, or wants other inputs."""


class Superseded(Exception):
    """There is nothing to promote: the world has moved on since this version was judged, or this was done and ended before."""


class Overtaken(Exception):
    """Somebody moved the champion alias by hand while this rollout was in progress: what they chose stays."""


def rollout_document(project: Project) -> Rollout | None:
    text = versions.model_tag(project, DOCUMENT)
    return Rollout(**json.loads(text)) if text else None


def refuse_frozen(project: Project, version: str, *, dag_run: str) -> None:
    """No rollout begins in a frozen project. One that this run has begun is brought to its end: half of one would be worse.

    Raises:
        ledger.Frozen.
    """
    begun = rollout_document(project)
    if begun is None or (begun.version, begun.dag_run) != (version, dag_run):
        ledger.refuse_frozen(project.name, f"version {version} is not promoted")


def smoke_test(project: Project, version: str) -> float:
    """Load a version as serving would and ask its golden requests; gives the largest difference.

    Raises:
        BadModel: it answers otherwise than when it was made, does not load, has no golden requests, or was made for another feature service.
    """
    loaded = Bundle.load(versions.bundle(project, version))
    if not loaded.golden["instances"]:
        raise BadModel(f"version {version} has no golden requests: no outcome was new when it was judged. Request a training when there are some")
    if loaded.contract["feature_service"] != project.feature_service:
        raise BadModel(f"version {version} wants feature service {loaded.contract['feature_service']}, the project has {project.feature_service}")
    try:
        return loaded.check_golden()
    except GoldenMismatch as error:
        raise BadModel(f"version {version}: {error}") from error
    except RuntimeError as error:  # what onnxruntime raises derives from it
        raise BadModel(f"version {version} does not load: {error}") from error


def promote(project: Project, version: str, *, dag_run: str, cutoff: str, by_person: bool) -> Rollout:
    """Make a version the champion, and the champion before it ``previous``.

    Args:
        dag_run: the run that promotes; the same run again takes its own rollout up.
        by_person: a person chose this version, so it need not be one that was judged against today's champion.

    Raises:
        Superseded, Overtaken, ledger.Frozen: see there; no alias was moved.
    """
    refuse_frozen(project, version, dag_run=dag_run)
    rollout = rollout_document(project)
    current = versions.aliases(project).get(CHAMPION)
    if rollout is None or (rollout.version, rollout.dag_run) != (version, dag_run):
        _refuse_stale(project, version, current, dag_run=dag_run, by_person=by_person)
        if current == version:
            return _keep(project, Rollout(version, versions.aliases(project).get(PREVIOUS), None, "serving", dag_run, cutoff, "it was the champion already"))
        rollout = _keep(project, Rollout(version, current, versions.aliases(project).get(PREVIOUS), "promoting", dag_run, cutoff))
    if rollout.state in ("rolling_back", "rolled_back"):
        raise Superseded(f"version {version} was put back by this run before ({rollout.reason}); a new run with this version tries again")
    if rollout.state == "overtaken":
        raise Overtaken(rollout.reason)
    expected = (version, rollout.previous) if rollout.state == "promoting" else (version,)
    if current not in expected:
        if rollout.state == "serving":
            raise Superseded(f"version {version} was promoted by this run before; since then version {current} became champion")
        raise overtaken(project, rollout, current)
    if rollout.state == "promoting":
        if rollout.previous:
            versions.move_alias(project, PREVIOUS, rollout.previous)
        if current != version:
            versions.move_alias(project, CHAMPION, version)
        rollout = _keep(project, replace(rollout, state="promoted"))
    return rollout


def confirm(project: Project, version: str, dag_run: str) -> Rollout:
    """Serving serves the version: the rollout is over."""
    rollout = rollout_document(project)
    if rollout is not None and (rollout.version, rollout.dag_run) == (version, dag_run) and rollout.state == "promoted":
        _end(project, rollout, "serving")
        rollout = _keep(project, replace(rollout, state="serving"))
    assert rollout is not None
    return rollout


def put_back(project: Project, version: str, *, dag_run: str, reason: str) -> Rollout | None:
    """Undo this run's promotion: the previous champion is champion again. Gives None if there is nothing of ours to undo.

    Raises:
        Overtaken: the champion alias was moved by somebody else; it stays there.
    """
    rollout = rollout_document(project)
    if rollout is None or (rollout.version, rollout.dag_run) != (version, dag_run) or rollout.state == "serving":
        return None
    if rollout.state == "rolled_back":
        return rollout
    if rollout.state == "overtaken":
        raise Overtaken(rollout.reason)
    current = versions.aliases(project).get(CHAMPION)
    if current not in (version, rollout.previous) or (rollout.state == "promoted" and current != version):
        raise overtaken(project, rollout, current)
    rollout = _keep(project, replace(rollout, state="rolling_back", reason=reason))
    now = versions.aliases(project)
    for alias, target in ((CHAMPION, rollout.previous), (PREVIOUS, rollout.before_previous)):
        if now.get(alias) != target:
            versions.move_alias(project, alias, target)
    _end(project, rollout, "rolled_back")
    return _keep(project, replace(rollout, state="rolled_back"))


def wait_for_serving(project: Project, version: str) -> None:
    """Wait until serving serves the version.

    Raises:
        NotServed: it does not, within the settings' ``serving_timeout``.
        Overtaken: somebody moved the champion alias meanwhile.
    """
    settings = get_settings()
    wait_until_served(settings.serving_url, project.name, version, timeout_s=settings.serving_timeout, check=lambda: still_ours(project, version))


def still_ours(project: Project, version: str) -> None:
    """Go on only while the champion alias stands where this rollout put it.

    Raises:
        Overtaken: it does not.
    """
    current = versions.aliases(project).get(CHAMPION)
    if current != version:
        rollout = rollout_document(project)
        assert rollout is not None
        raise overtaken(project, rollout, current)


def overtaken(project: Project, rollout: Rollout, current: str | None) -> Overtaken:
    """Write down that somebody else moved the alias; gives the error to raise."""
    reason = f"the champion alias was moved to version {current} from outside while version {rollout.version} was rolled out; it stays there"
    _end(project, rollout, "overtaken")
    _keep(project, replace(rollout, state="overtaken", reason=reason))
    return Overtaken(reason)


def _refuse_stale(project: Project, version: str, current: str | None, *, dag_run: str, by_person: bool) -> None:
    tags = versions.get_version(project, version).tags
    ended = json.loads(tags.get(ENDED, "{}"))
    if ended and current != version and (not by_person or ended["dag_run"] == dag_run):
        raise Superseded(f"the rollout of version {version} ended before ({ended['state']}); champion is version {current}")
    if by_person or current == version:
        return
    if tags.get("gate") != "passed":
        raise Superseded(f"version {version} did not pass the gate (gate: {tags.get('gate')})")
    if tags.get("judged_against", "") != (current or ""):
        raise Superseded(f"version {version} was judged against {tags.get('judged_against') or 'no champion'}, but champion is version {current} now")


def _end(project: Project, rollout: Rollout, state: State) -> None:
    versions.tag_version(project, rollout.version, ENDED, json.dumps({"state": state, "dag_run": rollout.dag_run, "cutoff": rollout.cutoff}))


def _keep(project: Project, rollout: Rollout) -> Rollout:
    versions.tag_model(project, DOCUMENT, json.dumps(asdict(rollout)))
    return rollout
