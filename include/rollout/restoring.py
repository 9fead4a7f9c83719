"""Restore a lost champion: set the alias, or register a deleted version under a new number.

Repeating it changes nothing.
"""

from dataclasses import dataclass

from include import ledger
from include.data import layout
from include.projects.base import Project
from include.registry import lost, versions
from include.registry.versions import CHAMPION, PREVIOUS
from include.rollout import promotion, records
from include.rollout.document import Rollout, changing, keep
from include.times import stamp


class RestoreChampionError(ValueError):
    """Raised when the champion cannot be restored.

    Nothing was changed. The message names the reason and the fix.
    """


@dataclass(frozen=True)
class Restored:
    """The result of a restore.

    Attributes:
        version: number of the version that has the alias now.
        was: number of the lost version.
    """

    version: str
    was: str


def restore_champion(project: Project, *, reason: str, by: str, version: str | None = None) -> Restored:
    """Restore the lost champion, also in a frozen project.

    Args:
        version: another version to promote. By default the lost version, or a new version with the
            same files if it was deleted.

    Raises:
        RestoreChampionError: the project has a champion, the version or its files do not exist, or
            its golden requests fail. ledger.LockTimeoutError: a task holds the deployment lock.
    """
    if not reason.strip():
        raise RestoreChampionError("state the reason: the version shows it")
    why = f"restored by {by}: {reason.strip()}"
    with changing(project):
        gone = lost.lost_champion(project)
        if gone is None:
            current = versions.aliases(project).get(CHAMPION)
            raise RestoreChampionError(
                f"{project.name} has lost no champion:"
                f" {f'version {current} is champion' if current else 'none was ever deployed'}"
            )
        chosen = version or (_registered_again(project, gone) if gone.deleted else gone.version)
        _refuse_unfit(project, chosen)
        tags = versions.get_version(project, chosen).tags
        cutoff, run = tags.get("cutoff") or stamp(), f"restored by {by} at {stamp()}"
        # Write the document first, as in each rollout. After a kill between the two writes, a
        # repeated restore finds this version.
        keep(project, Rollout(chosen, versions.aliases(project).get(PREVIOUS), None, "serving", run, cutoff, why))
        versions.move_alias(project, CHAMPION, chosen)
    records.record_end(
        project, {"version": chosen, "request": None, "cutoff": cutoff}, "deployed", why, cutoff=cutoff, dag_run=run
    )
    return Restored(chosen, gone.version)


def _registered_again(project: Project, gone: lost.Lost) -> str:
    """Register the files of a deleted version again, and return the number.

    A version from an earlier attempt is reused.
    """
    request = next(
        (one.id for one in reversed(ledger.requests(project.name)) if str(one.outcome.get("version")) == gone.version),
        None,
    )
    made = layout.training(project, request) / "refit.json" if request else None
    if made is None or not made.exists():
        raise RestoreChampionError(
            f"version {gone.version} was deleted, and no training of {project.name} is on record that made it."
            f" {_others(project)}"
        )
    return str(versions.register_version(project, str(made)).version)


def _refuse_unfit(project: Project, version: str) -> None:
    if versions.find_version(project, version) is None:
        raise RestoreChampionError(f"{project.name} has no version {version}. {_others(project)}")
    try:
        promotion.smoke_test(project, version)
    # MLflow, the store and the graph raise many types.
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise RestoreChampionError(
            f"version {version} cannot be champion: {type(error).__name__}: {line}. {_others(project, but=version)}"
        ) from error


def _others(project: Project, but: str | None = None) -> str:
    there = [
        str(one.version)
        for one in versions.newest_versions(project, 20)
        if str(one.version) != but and one.tags.get("gate") == "passed"
    ]
    if not there:
        return (
            f"No other version passed the gate. `airloop restore-champion {project.name} --give-up --reason ...` goes"
            " on as if there had never been one"
        )
    return f"Versions that passed the gate: {', '.join(there)}; name one with --version"
