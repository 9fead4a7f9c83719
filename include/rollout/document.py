"""The rollout document: the tag ``rollout`` of the registered model, a write-ahead log (ADR 7).

A task and a user may want to change it concurrently. Hold the project's lock (``changing``) from
reading it until it is written or an alias is moved.
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
# Tag of a version: how its rollout ended, and in which run.
OUTCOME_TAG = "rollout"

State = Literal["trying", "paused", "promoting", "promoted", "serving", "rolling_back", "rolled_back", "overtaken"]
IN_PROGRESS = lifecycle.live("rollout")


@dataclass(frozen=True)
class Rollout:
    """The rollout document.

    ``previous`` was champion before. ``before_previous`` had the alias ``previous``.

    While the state is ``trying``:

    - ``step`` is the number of the policy's step in progress, counted from 0.
    - ``began`` is when serving was first seen to follow the step (ISO, wall clock). It is empty
      until then.
    - ``since`` is the start of the next look's time range.
    - ``passed``, ``breached`` and ``inconclusive`` count the step's looks.
    - ``tried_since`` is when the first step began.
    """

    version: str
    previous: str | None
    before_previous: str | None
    state: State
    dag_run: str
    cutoff: str
    reason: str = ""
    # Arms and shadows in addition to the champion. Serving follows this
    # (serving/models/rollout.py).
    traffic: dict[str, Any] | None = None
    step: int = 0
    written: str = ""  # when the step's traffic was written
    began: str = ""
    since: str = ""
    tried_since: str = ""
    passed: int = 0
    breached: int = 0
    inconclusive: int = 0
    # ISO, wall clock: the time by which its run must have advanced it (include.ledger.lifecycle).
    # Empty once the rollout has ended.
    deadline: str = ""
    # Number of attempts to resume the rollout after its run was gone.
    attempts: int = 0
    schema: int = 1

    def is_of(self, version: str, dag_run: str) -> bool:
        return (self.version, self.dag_run) == (version, dag_run)


class SupersededError(Exception):
    """Raised when a version must not be promoted: it is outdated, or its rollout has ended."""


class TakenBackError(SupersededError):
    """Raised when the version was rolled back, by this run or by a user."""


class OvertakenError(Exception):
    """Raised when a user moved the champion alias during this rollout. It is left unchanged."""


def rollout_document(project: Project) -> Rollout | None:
    text = versions.model_tag(project, DOCUMENT)
    if not text:
        return None
    known = {field.name for field in fields(Rollout)}
    return Rollout(**{name: value for name, value in json.loads(text).items() if name in known})


@contextmanager
def changing(project: Project, *, timeout_s: float = 60) -> Iterator[Rollout | None]:
    """Yield the rollout document while holding the project's lock.

    No other process changes the document or moves an alias until the end of the block.

    Raises:
        ledger.LockTimeoutError: another process holds the lock for too long.
    """
    with ledger.one_at_a_time(project.name, timeout_s=timeout_s):
        yield rollout_document(project)


def keep(project: Project, rollout: Rollout) -> Rollout:
    """Write the document with the deadline of its state. Return the document as written.

    All steps of a rollout share one deadline.
    """
    by = ""
    if rollout.state in ("trying", "paused"):
        by = rollout.deadline or iso(times.utc_now() + project.rollout.patience)
    elif (end := lifecycle.deadline("rollout", rollout.state, times.utc_now())) is not None:
        by = iso(end)
    rollout = replace(rollout, deadline=by)
    versions.tag_model(project, DOCUMENT, json.dumps(asdict(rollout)))
    return rollout


def end(project: Project, rollout: Rollout, state: State) -> None:
    """Record on the version how its rollout ended, and why."""
    text = {"state": state, "dag_run": rollout.dag_run, "cutoff": rollout.cutoff, "reason": rollout.reason}
    versions.tag_version(project, rollout.version, OUTCOME_TAG, json.dumps(text))


def overtaken(project: Project, rollout: Rollout, current: str | None) -> OvertakenError:
    """Record that the alias was moved from outside. Return the error to raise.

    The rollout's arms and shadows are removed.
    """
    reason = (
        f"the champion alias was moved to version {current} from outside while version {rollout.version} was rolled"
        " out; it stays there"
    )
    over = replace(rollout, state="overtaken", reason=reason, traffic=None)
    end(project, over, "overtaken")
    keep(project, over)
    return OvertakenError(reason)


def adopt(project: Project, rollout: Rollout | None, version: str, dag_run: str) -> Rollout | None:
    """Take over this version's rollout from a run that is gone, and return the document.

    Call it while ``changing``. ``deploy`` has one run at a time.

    Otherwise, the new run would treat a version as the champion that its predecessor had only just
    promoted. It would then never roll that version back if serving does not load it.
    """
    if (
        rollout is None
        or rollout.version != version
        or rollout.dag_run == dag_run
        or rollout.state not in ("trying", "paused", "promoting", "promoted")
    ):
        return rollout
    return keep(project, replace(rollout, dag_run=dag_run))


def give_up(project: Project, rollout: Rollout, version: str) -> None:
    """End a rollout whose run was abandoned during its steps.

    Otherwise, it could continue later, concurrently with the current rollout.
    """
    if rollout.state in ("trying", "paused"):
        end(project, replace(rollout, reason=f"given up when version {version} was rolled out"), "overtaken")


def taken_back(rollout: Rollout) -> TakenBackError:
    return TakenBackError(
        f"version {rollout.version} was put back by this run before ({rollout.reason}); a new run with this version"
        " tries again"
    )


def undo(project: Project, rollout: Rollout, reason: str) -> Rollout:
    """Restore the aliases ``champion`` and ``previous`` from before this rollout. Stop its traffic.

    Call it while ``changing``. After a kill it can be called again.

    Raises:
        OvertakenError: the champion alias was moved by another process. It is left unchanged.
    """
    current = versions.aliases(project).get(CHAMPION)
    ours = {
        "trying": (rollout.previous,),
        "paused": (rollout.previous,),
        "promoted": (rollout.version,),
        "serving": (rollout.version,),
    }
    if current not in ours.get(rollout.state, (rollout.version, rollout.previous)):
        raise overtaken(project, rollout, current)
    rollout = keep(project, replace(rollout, state="rolling_back", reason=reason, traffic=None))
    now = versions.aliases(project)
    for alias, target in ((CHAMPION, rollout.previous), (versions.PREVIOUS, rollout.before_previous)):
        if now.get(alias) != target:
            versions.move_alias(project, alias, target)
    end(project, rollout, "rolled_back")
    return keep(project, replace(rollout, state="rolled_back"))
