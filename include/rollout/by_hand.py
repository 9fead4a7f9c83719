"""Rolling back by hand: the registry is told directly, so that it works in seconds, and while Airflow is down. Doing it again changes nothing."""

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
from include.rollout.document import IN_PROGRESS, Overtaken, Rollout, changing, keep, rollout_document, undo
from include.settings import get_settings
from include.times import stamp

PATIENCE_S = 20.0  # for whoever else changes what is deployed at this moment


class CannotRollBack(ValueError):
    """There is nothing to go back to; the message says what to do."""


class Changed(CannotRollBack):
    """What is deployed is not what whoever rolls back has looked at: it is for them to look again."""


@dataclass(frozen=True)
class Seen:
    """What was deployed when somebody looked: the champion, and the newest rollout's version and run (None: there was none)."""

    champion: str | None
    version: str | None
    dag_run: str | None

    @classmethod
    def of(cls, champion: str | None, rollout: Rollout | None) -> "Seen":
        return cls(champion, rollout.version if rollout else None, rollout.dag_run if rollout else None)

    def refuse_changed(self, champion: str | None, rollout: Rollout | None) -> None:
        """The same rollout may have gone on meanwhile; another one, or a champion that is not its doing, was not meant.

        Raises:
            Changed.
        """
        now, its = Seen.of(champion, rollout), (rollout.version, rollout.previous) if rollout else ()
        if (now.version, now.dag_run) != (self.version, self.dag_run) or champion not in (self.champion, *its):
            newest = f", and the newest rollout is that of version {now.version}" if now.version else ""
            raise Changed(f"what is deployed has changed since you looked: version {champion or 'none'} is champion{newest}. Look again")


@dataclass
class RolledBack:
    """What rolling back came to.

    Attributes:
        champion: the version that the alias stands at now; None: there is none.
        taken_back: the rollout that was undone; None: everything was so already.
        notes: what else whoever rolls back should know, a sentence each.
    """

    champion: str | None
    taken_back: Rollout | None
    notes: list[str] = field(default_factory=list)


def roll_back(project: Project, *, to: str | None, reason: str, by: str, seen: Seen | None = None) -> RolledBack:
    """Take back the rollout in progress, or else the last one: nobody is answered by its version any more. Also in a frozen project.

    Args:
        to: the version that is to be champion afterwards; None: the one that was before the rollout.
        seen: what whoever asks believes to be deployed; None: whatever is.

    Raises:
        CannotRollBack: there is no such version, or none before this one, or no reason, or (Changed) it is not what was seen.
        ledger.Busy: a task is changing what is deployed at this moment, and does not come to an end.
    """
    if not reason.strip():
        raise CannotRollBack("say why: whoever looks at the version reads it")
    if to is not None and versions.find_version(project, to) is None:
        raise CannotRollBack(f"{project.name} has no version {to}")
    why = f"rolled back by {by}: {reason.strip()}"
    notes: list[str] = []
    try:
        with changing(project, timeout_s=PATIENCE_S) as rollout:
            found = _back(project, rollout, to, why, notes, seen)
    except (SQLAlchemyError, LedgerError) as error:
        notes.append(f"the ledger does not answer, so a task of deploy might have been in the way, and nothing is on record there: {_line(error)}")
        found = _back(project, rollout_document(project), to, why, notes, seen)
    for taken_back, run in found:
        try:
            _record(project, taken_back, run, why)
        except (SQLAlchemyError, LedgerError) as error:
            notes.append(f"the ledger does not have it: {_line(error)}")
    with suppress(SQLAlchemyError, LedgerError):
        if held := freeze_of(project.name):
            notes.append(f"{held}; the way back is open all the same")
    champion = versions.aliases(project).get(CHAMPION)
    return RolledBack(champion, found[0][0] if found else None, notes)


def what_serving_serves(project: Project, version: str | None, *, timeout_s: float = 15) -> tuple[bool, str]:
    """Wait until serving answers with the version and nothing beside it; whether it does, and what it says."""
    deadline = time.monotonic() + timeout_s
    while True:
        said = served.ask(get_settings().serving_url, project.name)
        if stranger := served.other_installation(said):
            return False, stranger
        beside = [arm["name"] for arm in said.get("arms", [])]
        if "unreachable" not in said and said.get("version") == version and not beside:
            return True, f"serving answers with version {version}"
        if time.monotonic() > deadline:
            return False, _told(said, beside)
        time.sleep(0.2)


def _back(project: Project, rollout: Rollout | None, to: str | None, why: str, notes: list[str], seen: Seen | None) -> list[tuple[Rollout, str]]:
    """What was taken back, each with the run that it is put on record for; [] if all was so already."""
    if seen is not None:
        seen.refuse_changed(versions.aliases(project).get(CHAMPION), rollout)
    found: list[tuple[Rollout, str]] = []
    by_hand = f"{why.partition(':')[0]} at {stamp()}"
    if rollout is not None and rollout.state in IN_PROGRESS:
        try:
            found.append((undo(project, rollout, rollout.reason if rollout.state == "rolling_back" else why), rollout.dag_run))
        except Overtaken as error:
            notes.append(str(error))
    now = versions.aliases(project)
    current = now.get(CHAMPION)
    if to == current or (to is None and found):
        return found
    if to is None and rollout is not None:
        if rollout.state == "rolled_back" and current == rollout.previous:
            notes.append(f"version {rollout.version} is rolled back already ({rollout.reason}); name an older version with --to to go further back")
            return found
        if rollout.state == "serving" and rollout.version == current and rollout.previous:
            return [(undo(project, rollout, why), by_hand)]
    target = to or now.get(PREVIOUS)
    if target is None or current is None:
        raise CannotRollBack(f"{project.name} has no version before {current or 'this'}: name one with --to")
    if target == current:
        return found
    before = None if now.get(PREVIOUS) == target else now.get(PREVIOUS)
    cutoff = versions.get_version(project, current).tags.get("cutoff") or stamp()
    doc = keep(project, Rollout(current, target, before, "rolling_back", by_hand, cutoff, why))
    return [*found, (undo(project, doc, why), by_hand)]


def _record(project: Project, rollout: Rollout, run: str, why: str) -> None:
    request: Any = versions.get_version(project, rollout.version).tags.get("request")
    chosen = {"version": rollout.version, "request": request, "cutoff": rollout.cutoff}
    reason = f"{why}; champion is version {rollout.previous or 'none'} again"
    records.record_end(project, chosen, "rolled_back", reason, cutoff=rollout.cutoff, dag_run=run)


def _told(said: dict[str, Any], beside: list[str]) -> str:
    if "unreachable" in said:
        return f"serving does not answer: {said['unreachable']}"
    also = f", and beside it {', '.join(beside)}" if beside else ""
    return f"serving still answers with version {said.get('version')}{also}; it says: {said.get('state')}{': ' + said['error'] if said.get('error') else ''}"


def _line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
