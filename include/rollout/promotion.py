"""Promotion of a version to champion, and the way back. After a kill, a rerun has the same result.

The rollout document is written before an alias moves. A process that resumes a killed rollout can
therefore tell whether this rollout or a user moved the alias. A user's choice wins.

    [trying] -> promoting -> promoted -> serving | rolling_back -> rolled_back | overtaken
"""

import json
from dataclasses import replace

from include import ledger
from include.projects.base import Project
from include.registry import versions
from include.registry.versions import CHAMPION, PREVIOUS
from include.rollout.document import (
    IN_PROGRESS,
    OUTCOME_TAG,
    OvertakenError,
    Rollout,
    SupersededError,
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
from include.training.bundle import Bundle, GoldenMismatchError


class UnfitModelError(ValueError):
    """Raised when a model is unfit as champion: it fails golden requests or needs other inputs."""


def refuse_frozen(project: Project, version: str, *, dag_run: str) -> None:
    """Refuse to begin a rollout in a frozen project.

    A rollout that this run has already begun continues to its end, because a half-finished rollout
    would be worse.

    Raises:
        ledger.Frozen: the project is frozen.
    """
    begun = rollout_document(project)
    if begun is None or not begun.is_of(version, dag_run):
        ledger.refuse_frozen(project.name, f"version {version} is not promoted")


def smoke_test(project: Project, version: str) -> float:
    """Load a version as serving does, and check its golden requests.

    Return the largest difference.

    Raises:
        UnfitModelError: the version's answers differ from those recorded, it does not load, it has
            no golden requests, or it was made for another feature service.
    """
    loaded = Bundle.load(versions.bundle(project, version))
    if not loaded.golden["instances"]:
        raise UnfitModelError(
            f"version {version} has no golden requests: no outcome was new when it was judged. Request a training when"
            " there are some"
        )
    if loaded.contract["feature_service"] != project.feature_service:
        raise UnfitModelError(
            f"version {version} wants feature service {loaded.contract['feature_service']}, the project has"
            f" {project.feature_service}"
        )
    try:
        return loaded.check_golden()
    except GoldenMismatchError as error:
        raise UnfitModelError(f"version {version}: {error}") from error
    # onnxruntime's exceptions derive from RuntimeError.
    except RuntimeError as error:
        raise UnfitModelError(f"version {version} does not load: {error}") from error


def promote(project: Project, version: str, *, dag_run: str, cutoff: str, by_person: bool) -> Rollout:
    """Make a version the champion, and the champion before it ``previous``.

    Args:
        dag_run: the run that promotes. The same run resumes its own rollout.
        by_person: a user chose this version, so it need not have been judged against the current
            champion.

    Raises:
        Superseded, Overtaken, ledger.Frozen: see there. No alias was moved.
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
                return keep(
                    project,
                    Rollout(
                        version, now.get(PREVIOUS), None, "serving", dag_run, cutoff, "it was the champion already"
                    ),
                )
            rollout = keep(project, Rollout(version, current, now.get(PREVIOUS), "promoting", dag_run, cutoff))
        if rollout.state in ("rolling_back", "rolled_back"):
            raise taken_back(rollout)
        if rollout.state == "overtaken":
            raise OvertakenError(rollout.reason)
        expected = {
            "trying": (rollout.previous,),
            "paused": (rollout.previous,),
            "promoting": (version, rollout.previous),
        }.get(rollout.state, (version,))
        if current not in expected:
            if rollout.state == "serving":
                raise SupersededError(
                    f"version {version} was promoted by this run before; since then version {current} became champion"
                )
            raise overtaken(project, rollout, current)
        # Entities that the version already answers keep it until it answers all requests.
        if rollout.state in ("trying", "paused"):
            rollout = keep(project, replace(rollout, state="promoting", reason=""))
        if rollout.state == "promoting":
            if rollout.previous:
                versions.move_alias(project, PREVIOUS, rollout.previous)
            if current != version:
                versions.move_alias(project, CHAMPION, version)
            rollout = keep(project, replace(rollout, state="promoted", traffic=None))
        return rollout


def confirm(project: Project, version: str, dag_run: str) -> Rollout:
    """End the rollout, because serving has loaded the version."""
    with changing(project) as rollout:
        if rollout is not None and rollout.is_of(version, dag_run) and rollout.state == "promoted":
            end(project, rollout, "serving")
            rollout = keep(project, replace(rollout, state="serving"))
        assert rollout is not None
        return rollout


def restore_previous(project: Project, version: str, *, dag_run: str, reason: str) -> Rollout | None:
    """Undo this run's rollout: the previous champion answers all requests again.

    Return None if this run has nothing to undo.

    Raises:
        OvertakenError: the champion alias was moved by another process. It is left unchanged.
    """
    with changing(project) as rollout:
        if rollout is None or not rollout.is_of(version, dag_run) or rollout.state == "serving":
            return None
        if rollout.state == "rolled_back":
            return rollout
        if rollout.state == "overtaken":
            raise OvertakenError(rollout.reason)
        return undo(project, rollout, reason)


def reject(project: Project, version: str, *, dag_run: str, cutoff: str, reason: str) -> None:
    """Reject the version on behalf of a user. Serving no longer answers with it.

    A duplicate event does not roll it out again.

    Raises:
        OvertakenError: see ``restore_previous``.
    """
    if (
        restore_previous(project, version, dag_run=dag_run, reason=reason) is None
        and versions.aliases(project).get(CHAMPION) != version
    ):
        end(project, Rollout(version, None, None, "rolled_back", dag_run, cutoff, reason), "rolled_back")


def wait_for_serving(project: Project, version: str) -> None:
    """Wait until serving has loaded the version.

    Raises:
        NotServedError: it has not within the settings' ``serving_timeout``.
        OvertakenError: a user moved the champion alias in the meantime.
        SupersededError: a user rolled the version back in the meantime.
    """
    settings = get_settings()
    wait_until_served(
        settings.serving_url,
        project.name,
        version,
        timeout_s=settings.serving_timeout,
        check=lambda: require_alias_unmoved(project, version),
    )


def require_alias_unmoved(project: Project, version: str) -> None:
    """Return if the champion alias still points to this rollout's version, otherwise raise.

    Raises:
        OvertakenError: the alias was moved.
        SupersededError: a user has rolled the version back, or it is no longer being rolled out.
    """
    if versions.aliases(project).get(CHAMPION) == version:
        return
    with changing(project) as rollout:
        current = versions.aliases(project).get(CHAMPION)
        assert rollout is not None
        if rollout.state == "rolled_back":
            raise taken_back(rollout)
        if rollout.version != version or rollout.state not in IN_PROGRESS:
            raise SupersededError(f"version {version} is rolled out no more: version {current} is champion")
        if current != version:
            raise overtaken(project, rollout, current)


def refuse_stale(project: Project, version: str, current: str | None, *, dag_run: str, by_person: bool) -> None:
    """Raise Superseded if a rollout of the version must not begin.

    That is the case if its rollout has ended before, or if it was judged against another champion.
    """
    tags = versions.get_version(project, version).tags
    ended = json.loads(tags.get(OUTCOME_TAG, "{}"))
    if ended and current != version and (not by_person or ended["dag_run"] == dag_run):
        raise SupersededError(
            f"the rollout of version {version} ended before ({ended['state']}); champion is version {current}"
        )
    if by_person or current == version:
        return
    if tags.get("gate") != "passed":
        raise SupersededError(f"version {version} did not pass the gate (gate: {tags.get('gate')})")
    if tags.get("judged_against", "") != (current or ""):
        raise SupersededError(
            f"version {version} was judged against {tags.get('judged_against') or 'no champion'}, but champion is"
            f" version {current} now"
        )


def was_in_service(project: Project, version: str) -> bool:
    """Return whether the version was champion before and was not taken back."""
    is_served: bool = (
        json.loads(versions.get_version(project, version).tags.get(OUTCOME_TAG, "{}")).get("state") == "serving"
    )
    return is_served
