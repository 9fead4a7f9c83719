"""The steps of a rollout: a share of the traffic, a look at what came of it, the next share. Taken up again wherever it was left: all of it stands in
the rollout document, and ``advance`` does what is next.

    trying (step 0, 1, ...) -> promoting, by ``promotion.promote``      all steps passed
    trying -> rolling_back -> rolled_back                               a breach: weight 0 and the old version for everybody, at once
    trying -> paused -> trying | rolled_back                            too many looks came to nothing: a person decides

Intervals are the wall clock's, since the requests are (ADR 33).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from include import ledger
from include.data.prediction_log import SETTLED
from include.projects.base import Project
from include.projects.rollout import Step
from include.registry import versions
from include.registry.versions import CHAMPION, PREVIOUS
from include.rollout import served
from include.rollout.analysis import Check, Word, verdict
from include.rollout.document import Overtaken, Rollout, adopt, changing, give_up, keep, overtaken, rollout_document, taken_back, undo
from include.rollout.evidence import look
from include.rollout.promotion import refuse_frozen, refuse_stale, was_in_service
from include.settings import get_settings
from include.times import utc_now

STEP = "rollout"  # decisions of the ledger: a look each
ANALYSIS = "rollout_analysis"  # tag of the version: its newest look
Clock = Callable[[], datetime]


def _wall_clock() -> datetime:
    return utc_now()


class Breached(Exception):
    """The version did what it must not, and was taken out: nobody is answered by it any more. The message says what."""


@dataclass(frozen=True)
class Progress:
    """``done``: all steps are over, and the version may be promoted. ``said``: where the rollout is, for the task's log."""

    done: bool
    said: str


def advance(project: Project, version: str, *, dag_run: str, cutoff: str, by_person: bool, clock: Clock = _wall_clock) -> Progress:
    """Do what is next in the rollout of a version, if it is time; to be called again and again.

    Raises:
        Breached: it was taken out just now.
        Superseded, Overtaken, ledger.Frozen: see there.
    """
    refuse_frozen(project, version, dag_run=dag_run)
    rollout = _begin(project, version, dag_run=dag_run, cutoff=cutoff, by_person=by_person, at=clock())
    if rollout is None:
        return Progress(True, "no steps: it is promoted at once")
    if rollout.state in ("promoting", "promoted", "serving") or rollout.step >= len(project.rollout.steps):
        return Progress(True, "all steps are over")
    if rollout.state == "paused":
        return Progress(False, f"paused: {rollout.reason}. {how_to_go_on(project)}")
    step = project.rollout.steps[rollout.step]
    name = f"step {rollout.step + 1} of {len(project.rollout.steps)}, {describe(step)}"
    said, fault = _serving_follows(project, rollout, step)
    if fault or (said and not rollout.began and clock() - _time(rollout.written) > timedelta(seconds=get_settings().serving_timeout)):
        raise _take_out(project, rollout, step, [Check("serving", "breached", fault or f"did not come to ask it in time: {said}")], clock())
    if said:
        return Progress(False, f"{name}: serving does not follow yet: {said}" if not rollout.began else f"{name}: {said}")
    if not rollout.began:
        at = clock().isoformat()
        _write(project, rollout, began=at, since=at, tried_since=rollout.tried_since or at)
        return Progress(False, f"{name}: serving follows")
    until = clock() - SETTLED
    if until - max(_time(rollout.since), _time(rollout.began)) < step.interval * (1 + rollout.inconclusive):
        return Progress(False, f"{name}: looks passed {rollout.passed} of {step.looks}")
    checks = look(project, step, version, since=_time(rollout.since), until=until, tried_since=_time(rollout.tried_since))
    return _conclude(project, rollout, step, checks, until)


def last_look(project: Project, version: str, *, dag_run: str, clock: Clock = _wall_clock) -> None:
    """Before it is promoted: has anything gone wrong since its last step passed? A person may have thought about it for days.

    Raises:
        Breached: it has, and the version was taken out.
    """
    rollout = rollout_document(project)
    if rollout is None or not rollout.is_of(version, dag_run) or rollout.state != "trying" or not project.rollout.steps:
        return
    step = project.rollout.steps[-1]
    _, fault = _serving_follows(project, rollout, step)
    checks = look(project, step, version, since=_time(rollout.since), until=clock() - SETTLED, tried_since=_time(rollout.tried_since))
    checks += [Check("serving", "breached", fault)] if fault else []
    if verdict(checks) == "breached":
        raise _take_out(project, rollout, step, checks, clock())


def resume(project: Project, *, by: str) -> Rollout | None:
    """A person has looked at a paused rollout and lets it go on: the step's looks that came to nothing are forgotten. None: it is not paused."""
    with changing(project) as rollout:
        if rollout is None or rollout.state != "paused":
            return None
        back = keep(project, replace(rollout, state="trying", inconclusive=0, reason=f"resumed by {by}"))
    ledger.decide(project.name, STEP, _subject(back, "resumed"), verdict="resumed", reasons=[f"by {by}"], cutoff=back.cutoff)
    return back


def how_to_go_on(project: Project) -> str:
    return f"Look at it, then `airloop rollout {project.name} --resume` or `airloop rollback {project.name} --reason ...`"


def describe(step: Step) -> str:
    if step.shadow is not None:
        return f"{step.name}: a shadow of {step.shadow:.4g} of the requests"
    beside = f" beside {step.control}" if step.control else ""
    return f"{step.name}: {step.weight:.4g} of the entities{beside}"


def looks(project: Project, rollout: Rollout) -> list[dict[str, Any]]:
    """The ledger's record of each look of a rollout, oldest first."""
    return [d for d in ledger.decisions(project.name, STEP) if d["subject"].startswith(f"{_rollout(rollout)}, step ")]


# --- what advance does --------------------------------------------------------------------------------------------------------------


def _begin(project: Project, version: str, *, dag_run: str, cutoff: str, by_person: bool, at: datetime) -> Rollout | None:
    """This run's document, begun if need be; None: there are no steps to take."""
    with changing(project) as rollout:
        now = versions.aliases(project)
        current = now.get(CHAMPION)
        rollout = adopt(project, rollout, version, dag_run)
        if rollout is None or not rollout.is_of(version, dag_run):
            refuse_stale(project, version, current, dag_run=dag_run, by_person=by_person)
            if not project.rollout.steps or current in (None, version) or was_in_service(project, version):
                return None  # nobody to compare it with, or it was good before: who goes back wants it now
            if rollout is not None:
                give_up(project, rollout, version)
            first = Rollout(version, current, now.get(PREVIOUS), "trying", dag_run, cutoff, traffic=_traffic(project, 0, version, current))
            return keep(project, replace(first, written=at.isoformat()))
        if rollout.state in ("rolling_back", "rolled_back"):
            raise taken_back(rollout if rollout.state == "rolled_back" else undo(project, rollout, rollout.reason))
        if rollout.state == "overtaken":
            raise Overtaken(rollout.reason)
        if rollout.state in ("trying", "paused") and current != rollout.previous:
            raise overtaken(project, rollout, current)
        return rollout


def _traffic(project: Project, number: int, version: str, champion: str | None) -> dict[str, Any]:
    """What serving is to follow in a step. The salt is the version's: which entities try new versions is not always the same."""
    policy = project.rollout
    step = policy.steps[number]
    if step.shadow is not None:
        return {"salt": version, "arms": [], "shadows": [{"name": step.name, "version": version, "share": step.shadow}]}
    limits = {"weight": step.weight, "max_failures": policy.max_failures, "max_seconds": policy.max_seconds}
    arms = [{"name": step.name, "version": version, **limits}]
    if step.control:
        arms.append({"name": step.control, "version": champion, **limits})
    return {"salt": version, "arms": arms, "shadows": []}


def _serving_follows(project: Project, rollout: Rollout, step: Step) -> tuple[str, str]:
    """What serving says of the step: why it does not follow it ("": it does), and what is wrong with the version for good ("": nothing)."""
    told = served.ask(get_settings().serving_url, project.name)
    if "unreachable" in told:
        return f"serving is away: {told['unreachable']}", ""
    arms = {arm["name"]: arm for arm in told.get("arms", [])}
    mine = arms.get(step.name)
    if mine is None or mine["version"] != rollout.version:
        return told.get("rollout_error") or "it has not read the rollout document", ""
    if mine["state"] in ("refused", "stopped"):
        return mine["state"], f"serving has {mine['state']} it: {mine['error']}"
    waiting = [arm for arm in (mine, arms.get(step.control or "")) if arm and arm["state"] != "ready"]
    return "; ".join(f"{arm['name']} is {arm['state']}{': ' + arm['error'] if arm['error'] else ''}" for arm in waiting), ""


def _conclude(project: Project, rollout: Rollout, step: Step, checks: list[Check], at: datetime) -> Progress:
    """Write down what a look found, and do what follows from it."""
    policy, word = project.rollout, verdict(checks)
    name = f"step {rollout.step + 1} of {len(policy.steps)}, {describe(step)}"
    found = "; ".join(f"{check}" for check in checks)
    if word == "breached" and rollout.breached >= policy.analysis.failure_limit:
        raise _take_out(project, rollout, step, checks, at)
    _record(project, rollout, word, checks)
    time = at.isoformat()
    if word == "breached":
        _write(project, rollout, breached=rollout.breached + 1, inconclusive=0, since=time)
    elif word == "inconclusive" and rollout.inconclusive >= policy.analysis.inconclusive_limit:
        reason = f"{name}: {rollout.inconclusive + 1} looks came to nothing: {_only(checks, 'inconclusive')}"
        _write(project, rollout, state="paused", reason=reason)
        return Progress(False, f"paused: {reason}. {how_to_go_on(project)}")
    elif word == "inconclusive":  # what was answered so far counts at the next look too
        _write(project, rollout, inconclusive=rollout.inconclusive + 1)
    elif rollout.passed + 1 < step.looks:
        _write(project, rollout, passed=rollout.passed + 1, inconclusive=0, since=time)
    elif rollout.step + 1 < len(policy.steps):
        traffic = _traffic(project, rollout.step + 1, rollout.version, rollout.previous)
        fresh = {"passed": 0, "breached": 0, "inconclusive": 0, "began": "", "since": "", "written": time}
        _write(project, rollout, step=rollout.step + 1, traffic=traffic, **fresh)
    else:  # the traffic stays as it is, until the version answers everybody
        over = _write(project, rollout, step=rollout.step + 1, passed=0, since=time)
        return Progress(over is not None, f"{name}: {word}, and it was the last one: {found}")
    return Progress(False, f"{name}: {word}: {found}")


def _take_out(project: Project, rollout: Rollout, step: Step, checks: list[Check], at: datetime) -> Exception:
    """Weight 0 and the old version for everybody, at once; gives the error to raise."""
    reason = f"{describe(step)}: {_only(checks, 'breached')}"
    with changing(project) as now:
        if now is None or not now.is_of(rollout.version, rollout.dag_run):
            return taken_back(rollout)
        if now.state not in ("rolled_back", "rolling_back"):
            now = undo(project, now, reason)
    _record(project, rollout, "breached", checks)
    return Breached(f"version {rollout.version} was taken out after {_after(rollout, at)}: {reason}; champion is version {rollout.previous}, as before")


def _write(project: Project, before: Rollout, **changes: Any) -> Rollout | None:
    """Change the document, if it still says what it said; None: a person was faster, and the next call finds what they did."""
    with changing(project) as now:
        return keep(project, replace(before, **changes)) if now == before else None


def _record(project: Project, rollout: Rollout, word: Word, checks: list[Check]) -> None:
    number = rollout.passed + rollout.breached + rollout.inconclusive + 1
    found = [str(check) for check in checks]
    ledger.decide(project.name, STEP, _subject(rollout, f"look {number}"), verdict=word, reasons=found, cutoff=rollout.cutoff)
    newest = {"step": rollout.step + 1, "look": number, "verdict": word, "found": found}
    versions.tag_version(project, rollout.version, ANALYSIS, json.dumps(newest))


def _subject(rollout: Rollout, what: str) -> str:
    return f"{_rollout(rollout)}, step {rollout.step + 1}, {what}"


def _rollout(rollout: Rollout) -> str:
    return f"version {rollout.version}, {rollout.dag_run}"[:100]


def _only(checks: list[Check], word: Word) -> str:
    return "; ".join(f"{check.name}: {check.text}" for check in checks if check.word == word)


def _after(rollout: Rollout, at: datetime) -> str:
    return f"{(at - _time(rollout.tried_since or rollout.written)).total_seconds():.0f} s"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
