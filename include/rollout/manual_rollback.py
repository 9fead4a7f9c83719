"""Manual rollback. It writes directly to the registry, so it is fast and works without Airflow.

Rolling back is idempotent.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from include.ledger import LedgerError, freeze_of
from include.projects.base import Project
from include.registry import versions
from include.registry.versions import CHAMPION, PREVIOUS
from include.rollout import records, served
from include.rollout.document import IN_PROGRESS, OvertakenError, Rollout, changing, keep, rollout_document, undo
from include.settings import get_settings
from include.times import stamp

# How long to wait for another process that changes the deployment.
PATIENCE_S = 20.0


class RollbackError(ValueError):
    """Raised when there is no version to roll back to. The message says what to do."""


class DeploymentChangedError(RollbackError):
    """Raised when the deployment changed after the user loaded it. They must reload and confirm."""


@dataclass(frozen=True)
class DeploymentSnapshot:
    """The deployment as the user saw it: the champion, and the newest rollout's version and run.

    ``version`` and ``dag_run`` are None if there was no rollout.
    """

    champion: str | None
    version: str | None
    dag_run: str | None

    @classmethod
    def from_rollout(cls, champion: str | None, rollout: Rollout | None) -> "DeploymentSnapshot":
        return cls(champion, rollout.version if rollout else None, rollout.dag_run if rollout else None)

    def refuse_changed(self, champion: str | None, rollout: Rollout | None) -> None:
        """Refuse to roll back if the deployment has changed since the user saw it.

        Progress of the same rollout is accepted. Another rollout, or a champion that this rollout
        did not set, is refused.

        Raises:
            DeploymentChangedError: the deployment has changed.
        """
        now, its = (
            DeploymentSnapshot.from_rollout(champion, rollout),
            (rollout.version, rollout.previous) if rollout else (),
        )
        if (now.version, now.dag_run) != (self.version, self.dag_run) or champion not in (self.champion, *its):
            newest = f", and the newest rollout is that of version {now.version}" if now.version else ""
            raise DeploymentChangedError(
                f"the deployment has changed since you looked: version {champion or 'none'} is champion{newest}. Look"
                " again"
            )


@dataclass
class RolledBack:
    """The result of a rollback.

    Attributes:
        champion: the version that the alias points to now, or None if there is none.
        taken_back: the rollout that was undone, or None if nothing had to change.
        notes: other information for the user, one sentence each.
    """

    champion: str | None
    taken_back: Rollout | None
    notes: list[str] = field(default_factory=list)


def roll_back(
    project: Project, *, to: str | None, reason: str, by: str, seen: DeploymentSnapshot | None = None
) -> RolledBack:
    """Undo the rollout in progress, or else the last one. This also works in a frozen project.

    Afterwards, serving no longer answers with the rollout's version.

    Args:
        to: the version to make champion. None: the version that was champion before the rollout.
        seen: the deployment as the caller saw it. None: do not check for changes.

    Raises:
        RollbackError: the version does not exist, there is no previous version, or the reason is
            empty. DeploymentChangedError, a subclass: the deployment differs from ``seen``.
        ledger.LockTimeoutError: a task holds the deployment lock for too long.
    """
    if not reason.strip():
        raise RollbackError("state the reason: the version shows it")
    if to is not None and versions.find_version(project, to) is None:
        raise RollbackError(f"{project.name} has no version {to}")
    why = f"rolled back by {by}: {reason.strip()}"
    notes: list[str] = []
    try:
        with changing(project, timeout_s=PATIENCE_S) as rollout:
            undone = _back(project, rollout, to, why, notes, seen)
    except (SQLAlchemyError, LedgerError) as error:
        notes.append(
            "the ledger does not answer, so a task of deploy might have been in the way, and nothing is on record"
            f" there: {_line(error)}"
        )
        undone = _back(project, rollout_document(project), to, why, notes, seen)
    for taken_back, run in undone:
        try:
            _record(project, taken_back, run, why)
        except (SQLAlchemyError, LedgerError) as error:
            notes.append(f"the ledger does not have it: {_line(error)}")
    with suppress(SQLAlchemyError, LedgerError):
        if held := freeze_of(project.name):
            notes.append(f"{held}; the way back is open all the same")
    champion = versions.aliases(project).get(CHAMPION)
    return RolledBack(champion, undone[0][0] if undone else None, notes)


def wait_for_served_version(project: Project, version: str | None, *, timeout_s: float = 15) -> tuple[bool, str]:
    """Wait until serving answers with the version and without other arms.

    Return whether it does, and the state that serving reports.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        status = served.ask(get_settings().serving_url, project.name)
        if stranger := served.other_installation(status):
            return False, stranger
        beside = [arm["name"] for arm in status.get("arms", [])]
        if "unreachable" not in status and status.get("version") == version and not beside:
            return True, f"serving answers with version {version}"
        if time.monotonic() > deadline:
            return False, _mismatch(status, beside)
        time.sleep(0.2)


def _back(
    project: Project,
    rollout: Rollout | None,
    to: str | None,
    why: str,
    notes: list[str],
    seen: DeploymentSnapshot | None,
) -> list[tuple[Rollout, str]]:
    """Undo the rollout. Return each undone rollout with the run under which it is recorded.

    Return [] if nothing had to change.
    """
    if seen is not None:
        seen.refuse_changed(versions.aliases(project).get(CHAMPION), rollout)
    undone: list[tuple[Rollout, str]] = []
    run = f"{why.partition(':')[0]} at {stamp()}"
    if rollout is not None and rollout.state in IN_PROGRESS:
        try:
            undone.append(
                (undo(project, rollout, rollout.reason if rollout.state == "rolling_back" else why), rollout.dag_run)
            )
        except OvertakenError as error:
            notes.append(str(error))
    now = versions.aliases(project)
    current = now.get(CHAMPION)
    if (to is None and undone) or (to is not None and to == current):
        return undone
    if to is None and rollout is not None:
        if rollout.state == "rolled_back" and current == rollout.previous:
            notes.append(
                f"version {rollout.version} is rolled back already ({rollout.reason}); name an older version with --to"
                " to go further back"
            )
            return undone
        if rollout.state == "serving" and rollout.version == current and rollout.previous:
            return [(undo(project, rollout, why), run)]
    if current is None:
        if to is None:
            return undone
        raise RollbackError(
            f"{project.name} has no champion: deploy a version, or restore a lost one with `airloop restore-champion"
            f" {project.name}`"
        )
    target = to or now.get(PREVIOUS)
    if target is None:
        raise RollbackError(f"{project.name} has no version before {current}: name one with --to")
    if target == current:
        return undone
    before = None if now.get(PREVIOUS) == target else now.get(PREVIOUS)
    cutoff = versions.get_version(project, current).tags.get("cutoff") or stamp()
    doc = keep(project, Rollout(current, target, before, "rolling_back", run, cutoff, why))
    return [*undone, (undo(project, doc, why), run)]


def _record(project: Project, rollout: Rollout, run: str, why: str) -> None:
    request: Any = versions.get_version(project, rollout.version).tags.get("request")
    chosen = {"version": rollout.version, "request": request, "cutoff": rollout.cutoff}
    reason = f"{why}; champion is version {rollout.previous or 'none'} again"
    records.record_end(project, chosen, "rolled_back", reason, cutoff=rollout.cutoff, dag_run=run)


def _mismatch(status: dict[str, Any], beside: list[str]) -> str:
    if "unreachable" in status:
        return f"serving does not answer: {status['unreachable']}"
    also = f", and beside it {', '.join(beside)}" if beside else ""
    error = f": {status['error']}" if status.get("error") else ""
    return f"serving still answers with version {status.get('version')}{also}; it says: {status.get('state')}{error}"


def _line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
