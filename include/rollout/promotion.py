"""Promotion of a version to champion, and the way back. Killed at any point and run again, it comes to the same end.

The rollout document is written before an alias moves, so that whoever takes up a killed rollout knows whether an alias stands where this rollout or a
person put it. A person wins.

    [trying] -> promoting -> promoted -> serving | rolling_back -> rolled_back | overtaken
"""

import json
from dataclasses import replace

from include import ledger
from include.projects.base import Project
from include.registry import versions
from include.registry.versions import CHAMPION, PREVIOUS
from include.rollout.document import (
    ENDED,
    IN_PROGRESS,
    Overtaken,
    Rollout,
    Superseded,
    adopt,
    changing,
    end,
    give_up,
    keep,
    overtaken,
    rollout_document,
    taken_back,
    undo,
)
from include.rollout.served import wait_until_served
from include.settings import get_settings
from include.training.bundle import Bundle, GoldenMismatch


class BadModel(ValueError):
    """The model would not do as champion: it answers its golden requests otherwise, or wants other inputs."""


def refuse_frozen(project: Project, version: str, *, dag_run: str) -> None:
    """No rollout begins in a frozen project. One that this run has begun is brought to its end: half of one would be worse.

    Raises:
        ledger.Frozen.
    """
    begun = rollout_document(project)
    if begun is None or not begun.is_of(version, dag_run):
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
    with changing(project) as rollout:
        now = versions.aliases(project)
        current = now.get(CHAMPION)
        rollout = adopt(project, rollout, version, dag_run)
        if rollout is None or not rollout.is_of(version, dag_run):
            refuse_stale(project, version, current, dag_run=dag_run, by_person=by_person)
            if rollout is not None:
                give_up(project, rollout, version)
            if current == version:
                return keep(project, Rollout(version, now.get(PREVIOUS), None, "serving", dag_run, cutoff, "it was the champion already"))
            rollout = keep(project, Rollout(version, current, now.get(PREVIOUS), "promoting", dag_run, cutoff))
        if rollout.state in ("rolling_back", "rolled_back"):
            raise taken_back(rollout)
        if rollout.state == "overtaken":
            raise Overtaken(rollout.reason)
        expected = {"trying": (rollout.previous,), "paused": (rollout.previous,), "promoting": (version, rollout.previous)}.get(rollout.state, (version,))
        if current not in expected:
            if rollout.state == "serving":
                raise Superseded(f"version {version} was promoted by this run before; since then version {current} became champion")
            raise overtaken(project, rollout, current)
        if rollout.state in ("trying", "paused"):  # those whom it answers already stay with it until it answers everybody
            rollout = keep(project, replace(rollout, state="promoting", reason=""))
        if rollout.state == "promoting":
            if rollout.previous:
                versions.move_alias(project, PREVIOUS, rollout.previous)
            if current != version:
                versions.move_alias(project, CHAMPION, version)
            rollout = keep(project, replace(rollout, state="promoted", traffic=None))
        return rollout


def confirm(project: Project, version: str, dag_run: str) -> Rollout:
    """Serving serves the version: the rollout is over."""
    with changing(project) as rollout:
        if rollout is not None and rollout.is_of(version, dag_run) and rollout.state == "promoted":
            end(project, rollout, "serving")
            rollout = keep(project, replace(rollout, state="serving"))
        assert rollout is not None
        return rollout


def put_back(project: Project, version: str, *, dag_run: str, reason: str) -> Rollout | None:
    """Undo this run's rollout: the previous champion is champion again, alone. Gives None if there is nothing of ours to undo.

    Raises:
        Overtaken: the champion alias was moved by somebody else; it stays there.
    """
    with changing(project) as rollout:
        if rollout is None or not rollout.is_of(version, dag_run) or rollout.state == "serving":
            return None
        if rollout.state == "rolled_back":
            return rollout
        if rollout.state == "overtaken":
            raise Overtaken(rollout.reason)
        return undo(project, rollout, reason)


def turn_down(project: Project, version: str, *, dag_run: str, cutoff: str, reason: str) -> None:
    """A person does not want the version: nobody is answered by it any more, and it is not rolled out again by an event that comes twice.

    Raises:
        Overtaken: see ``put_back``.
    """
    if put_back(project, version, dag_run=dag_run, reason=reason) is None and versions.aliases(project).get(CHAMPION) != version:
        end(project, Rollout(version, None, None, "rolled_back", dag_run, cutoff, reason), "rolled_back")


def wait_for_serving(project: Project, version: str) -> None:
    """Wait until serving serves the version.

    Raises:
        NotServed: it does not, within the settings' ``serving_timeout``.
        Overtaken: somebody moved the champion alias meanwhile.
        Superseded: somebody rolled the version back by hand meanwhile.
    """
    settings = get_settings()
    wait_until_served(settings.serving_url, project.name, version, timeout_s=settings.serving_timeout, check=lambda: still_ours(project, version))


def still_ours(project: Project, version: str) -> None:
    """Go on only while the champion alias stands where this rollout put it.

    Raises:
        Overtaken: it does not.
        Superseded: a person has rolled the version back.
    """
    if versions.aliases(project).get(CHAMPION) == version:
        return
    with changing(project) as rollout:
        current = versions.aliases(project).get(CHAMPION)
        assert rollout is not None
        if rollout.state == "rolled_back":
            raise taken_back(rollout)
        if rollout.version != version or rollout.state not in IN_PROGRESS:
            raise Superseded(f"version {version} is rolled out no more: version {current} is champion")
        if current != version:
            raise overtaken(project, rollout, current)


def refuse_stale(project: Project, version: str, current: str | None, *, dag_run: str, by_person: bool) -> None:
    """Raises Superseded if a rollout of the version must not begin: it has ended before, or the version was judged against another champion."""
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


def was_in_service(project: Project, version: str) -> bool:
    """Whether the version was champion before, and was not taken back."""
    return json.loads(versions.get_version(project, version).tags.get(ENDED, "{}")).get("state") == "serving"
