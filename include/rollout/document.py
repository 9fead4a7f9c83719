"""The rollout document: the tag ``rollout`` of the registered model, which says what is about to happen before it happens (ADR 7).

Whoever changes it, or moves an alias by it, holds the project's lock from reading to writing (``changing``): a task and a person may both want to.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from include import ledger, times
from include.ledger import lifecycle
from include.projects.base import Project
from include.registry import versions
from include.registry.versions import CHAMPION
from include.times import iso

DOCUMENT = versions.ROLLOUT
ENDED = "rollout"  # tag of a version: how its rollout ended, and in which run

State = Literal["trying", "paused", "promoting", "promoted", "serving", "rolling_back", "rolled_back", "overtaken"]
IN_PROGRESS = lifecycle.live("rollout")


@dataclass(frozen=True)
class Rollout:
    """The rollout document. ``previous`` was champion before, ``before_previous`` had the alias ``previous``.

    While it is ``trying``: ``step`` is the number of the policy's step in progress (0 is the first), ``began`` when serving was first seen to follow
    it (ISO, wall clock; empty: not yet), ``since`` the start of what the next look looks at; ``passed``, ``breached`` and ``inconclusive`` count the
    step's looks; ``tried_since`` is when the first step began.
    """

    version: str
    previous: str | None
    before_previous: str | None
    state: State
    dag_run: str
    cutoff: str
    reason: str = ""
    traffic: dict[str, Any] | None = None  # arms and shadows beside the champion, which serving follows (serving/rollout.py)
    step: int = 0
    written: str = ""  # when the step's traffic was written
    began: str = ""
    since: str = ""
    tried_since: str = ""
    passed: int = 0
    breached: int = 0
    inconclusive: int = 0
    deadline: str = ""  # ISO, wall clock: by when its run must have brought it on; see include.ledger.lifecycle. Ended: none
    attempts: int = 0  # to have it taken up again after its run was gone
    schema: int = 1

    def is_of(self, version: str, dag_run: str) -> bool:
        return (self.version, self.dag_run) == (version, dag_run)


class Superseded(Exception):
    """There is nothing to promote: the world has moved on since this version was judged, or this was done and ended before."""


class TakenBack(Superseded):
    """This run has put the version back, or a person has."""


class Overtaken(Exception):
    """Somebody moved the champion alias by hand while this rollout was in progress: what they chose stays."""


def rollout_document(project: Project) -> Rollout | None:
    text = versions.model_tag(project, DOCUMENT)
    if not text:
        return None
    known = {field.name for field in fields(Rollout)}
    return Rollout(**{name: value for name, value in json.loads(text).items() if name in known})


@contextmanager
def changing(project: Project, *, timeout_s: float = 60) -> Iterator[Rollout | None]:
    """The document, and nobody else changes it, or moves an alias by it, until the end of the block.

    Raises:
        ledger.Busy: somebody else does so for too long.
    """
    with ledger.one_at_a_time(project.name, timeout_s=timeout_s):
        yield rollout_document(project)


def keep(project: Project, rollout: Rollout) -> Rollout:
    """Write the document, with the deadline of its state; gives it as written. The steps of a rollout have one deadline together."""
    by = ""
    if rollout.state in ("trying", "paused"):
        by = rollout.deadline or iso(times.utc_now() + project.rollout.patience)
    elif (end := lifecycle.deadline("rollout", rollout.state, times.utc_now())) is not None:
        by = iso(end)
    rollout = replace(rollout, deadline=by)
    versions.tag_model(project, DOCUMENT, json.dumps(asdict(rollout)))
    return rollout


def end(project: Project, rollout: Rollout, state: State) -> None:
    """Write on the version how its rollout ended, and why."""
    text = {"state": state, "dag_run": rollout.dag_run, "cutoff": rollout.cutoff, "reason": rollout.reason}
    versions.tag_version(project, rollout.version, ENDED, json.dumps(text))


def overtaken(project: Project, rollout: Rollout, current: str | None) -> Overtaken:
    """Write down that somebody else moved the alias; gives the error to raise. The arms and shadows go with the rollout."""
    reason = f"the champion alias was moved to version {current} from outside while version {rollout.version} was rolled out; it stays there"
    over = replace(rollout, state="overtaken", reason=reason, traffic=None)
    end(project, over, "overtaken")
    keep(project, over)
    return Overtaken(reason)


def adopt(project: Project, rollout: Rollout | None, version: str, dag_run: str) -> Rollout | None:
    """Take over this version's rollout from a run that is gone: ``deploy`` has one run at a time. To be called while ``changing``; gives the document.

    Else the new run would call a version champion that its predecessor only just made it, and never put it back if serving does not serve it.
    """
    if rollout is None or rollout.version != version or rollout.dag_run == dag_run or rollout.state not in ("trying", "paused", "promoting", "promoted"):
        return rollout
    return keep(project, replace(rollout, dag_run=dag_run))


def give_up(project: Project, rollout: Rollout, version: str) -> None:
    """The run of this rollout was given up while its steps went on: it is not to go on by itself one day, beside what is rolled out now."""
    if rollout.state in ("trying", "paused"):
        end(project, replace(rollout, reason=f"given up when version {version} was rolled out"), "overtaken")


def taken_back(rollout: Rollout) -> TakenBack:
    return TakenBack(f"version {rollout.version} was put back by this run before ({rollout.reason}); a new run with this version tries again")


def undo(project: Project, rollout: Rollout, reason: str) -> Rollout:
    """Champion and ``previous`` as they were before this rollout, nothing beside them. To be called while ``changing``; killed, it can be called again.

    Raises:
        Overtaken: the champion alias was moved by somebody else; it stays there.
    """
    current = versions.aliases(project).get(CHAMPION)
    ours = {"trying": (rollout.previous,), "paused": (rollout.previous,), "promoted": (rollout.version,), "serving": (rollout.version,)}
    if current not in ours.get(rollout.state, (rollout.version, rollout.previous)):
        raise overtaken(project, rollout, current)
    rollout = keep(project, replace(rollout, state="rolling_back", reason=reason, traffic=None))
    now = versions.aliases(project)
    for alias, target in ((CHAMPION, rollout.previous), (versions.PREVIOUS, rollout.before_previous)):
        if now.get(alias) != target:
            versions.move_alias(project, alias, target)
    end(project, rollout, "rolled_back")
    return keep(project, replace(rollout, state="rolled_back"))
