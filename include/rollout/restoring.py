"""Bring a lost champion back: with its alias where only that is gone, else as a new version of the same files. Doing it again changes nothing."""

from dataclasses import dataclass

from include import ledger
from include.data import layout
from include.projects.base import Project
from include.registry import lost, versions
from include.registry.versions import CHAMPION, PREVIOUS
from include.rollout import promotion, records
from include.rollout.document import Rollout, changing, keep
from include.times import stamp


class CannotRestore(ValueError):
    """Nothing was changed; the message says why and what to do."""


@dataclass(frozen=True)
class Restored:
    """What is champion again.

    Attributes:
        version: that has the alias now.
        was: the version that was lost.
    """

    version: str
    was: str


def restore_champion(project: Project, *, reason: str, by: str, version: str | None = None) -> Restored:
    """Make the lost champion champion again, also in a frozen project.

    Args:
        version: that is to be champion instead; None: the lost one, or a new version of its files.

    Raises:
        CannotRestore: there is a champion, the version or its files are gone, or it does not answer its golden requests.
        ledger.Busy: a task is changing what is deployed at this moment.
    """
    if not reason.strip():
        raise CannotRestore("say why: whoever looks at the version reads it")
    why = f"restored by {by}: {reason.strip()}"
    with changing(project):
        gone = lost.lost_champion(project)
        if gone is None:
            current = versions.aliases(project).get(CHAMPION)
            raise CannotRestore(f"{project.name} has lost no champion: {f'version {current} is champion' if current else 'none was ever deployed'}")
        chosen = version or (_registered_again(project, gone) if gone.deleted else gone.version)
        _refuse_unfit(project, chosen)
        tags = versions.get_version(project, chosen).tags
        cutoff, run = tags.get("cutoff") or stamp(), f"restored by {by} at {stamp()}"
        # The document comes first, as in each rollout: killed between the two, the champion is still lost, and this version is found.
        keep(project, Rollout(chosen, versions.aliases(project).get(PREVIOUS), None, "serving", run, cutoff, why))
        versions.move_alias(project, CHAMPION, chosen)
    records.record_end(project, {"version": chosen, "request": None, "cutoff": cutoff}, "deployed", why, cutoff=cutoff, dag_run=run)
    return Restored(chosen, gone.version)


def _registered_again(project: Project, gone: lost.Lost) -> str:
    """A new version of the files of a deleted one; the same one, if it was made before."""
    request = next((one.id for one in reversed(ledger.requests(project.name)) if str(one.outcome.get("version")) == gone.version), None)
    made = layout.training(project, request) / "refit.json" if request else None
    if made is None or not made.exists():
        raise CannotRestore(f"version {gone.version} was deleted, and no training of {project.name} is on record that made it. {_others(project)}")
    return str(versions.register_version(project, str(made)).version)


def _refuse_unfit(project: Project, version: str) -> None:
    if versions.find_version(project, version) is None:
        raise CannotRestore(f"{project.name} has no version {version}. {_others(project)}")
    try:
        promotion.smoke_test(project, version)
    except Exception as error:  # whatever MLflow, the store or the graph raise
        line = " ".join(str(error).split())[:300]
        raise CannotRestore(f"version {version} cannot be champion: {type(error).__name__}: {line}. {_others(project, but=version)}") from error


def _others(project: Project, but: str | None = None) -> str:
    there = [str(one.version) for one in versions.newest_versions(project, 20) if str(one.version) != but and one.tags.get("gate") == "passed"]
    if not there:
        return f"No other version passed the gate. `airloop restore-champion {project.name} --give-up --reason ...` goes on as if there had never been one"
    return f"Versions that passed the gate: {', '.join(there)}; name one with --version"
