"""The steps of a rollout: send a share of the traffic, evaluate the answers, take the next share.

All state is in the rollout document, so a rollout can resume at any point. ``advance`` does the
next step.

    trying (step 0, 1, ...) -> promoting, by ``promotion.promote``      all steps passed
    trying -> rolling_back -> rolled_back                               a breach: immediate rollback
    trying -> paused -> trying | rolled_back                            inconclusive: a user decides

Intervals are measured in wall-clock time, as the requests are (ADR 33).
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
from include.rollout.document import (
    OvertakenError,
    Rollout,
    adopt,
    changing,
    give_up,
    keep,
    overtaken,
    rollout_document,
    taken_back,
    undo,
)
from include.rollout.evidence import look
from include.rollout.promotion import refuse_frozen, refuse_stale, was_in_service
from include.settings import get_settings
from include.times import utc_now

# The ledger's decisions of this kind record one look each.
STEP = "rollout"
# Tag of the version: its newest look.
ANALYSIS = "rollout_analysis"
Clock = Callable[[], datetime]


def _wall_clock() -> datetime:
    return utc_now()


class RuleBreachedError(Exception):
    """Raised when the version breached a rule and was rolled back. The message names the rule."""


@dataclass(frozen=True)
class Progress:
    """The progress of a rollout.

    ``done``: all steps are over, and the version may be promoted. ``message``: the state of the
    rollout, for the task's log.
    """

    done: bool
    message: str


def advance(
    project: Project, version: str, *, dag_run: str, cutoff: str, by_person: bool, clock: Clock = _wall_clock
) -> Progress:
    """Do the next step in the rollout of a version, if it is due. Call it repeatedly.

    Raises:
        RuleBreachedError: the version was rolled back just now.
        Superseded, Overtaken, ledger.Frozen: see there.
    """
    refuse_frozen(project, version, dag_run=dag_run)
    rollout = _begin(project, version, dag_run=dag_run, cutoff=cutoff, by_person=by_person, at=clock())
    if rollout is None:
        return Progress(True, "no steps: it is promoted at once")
    if rollout.state in ("promoting", "promoted", "serving") or rollout.step >= len(project.rollout.steps):
        return Progress(True, "all steps are over")
    if rollout.state == "paused":
        return Progress(False, f"paused: {rollout.reason}. {next_action(project)}")
    step = project.rollout.steps[rollout.step]
    name = f"step {rollout.step + 1} of {len(project.rollout.steps)}, {describe(step)}"
    problem, fault = _serving_follows(project, rollout, step)
    if fault or (
        problem
        and not rollout.began
        and clock() - _time(rollout.written) > timedelta(seconds=get_settings().serving_timeout)
    ):
        raise _take_out(
            project,
            rollout,
            step,
            [Check("serving", "breached", fault or f"did not come to ask it in time: {problem}")],
            clock(),
        )
    if problem:
        return Progress(
            False, f"{name}: serving does not follow yet: {problem}" if not rollout.began else f"{name}: {problem}"
        )
    if not rollout.began:
        at = clock().isoformat()
        _write(project, rollout, began=at, since=at, tried_since=rollout.tried_since or at)
        return Progress(False, f"{name}: serving follows")
    until = clock() - SETTLED
    if until - max(_time(rollout.since), _time(rollout.began)) < step.interval * (1 + rollout.inconclusive):
        return Progress(False, f"{name}: looks passed {rollout.passed} of {step.looks}")
    checks = look(
        project, step, version, since=_time(rollout.since), until=until, tried_since=_time(rollout.tried_since)
    )
    return _conclude(project, rollout, step, checks, until)


def last_look(project: Project, version: str, *, dag_run: str, clock: Clock = _wall_clock) -> None:
    """Evaluate the version once more before its promotion, since approval may take days.

    Raises:
        RuleBreachedError: the version breached a rule since its last step passed, and was rolled
            back.
    """
    rollout = rollout_document(project)
    if rollout is None or not rollout.is_of(version, dag_run) or rollout.state != "trying" or not project.rollout.steps:
        return
    step = project.rollout.steps[-1]
    _, fault = _serving_follows(project, rollout, step)
    checks = look(
        project,
        step,
        version,
        since=_time(rollout.since),
        until=clock() - SETTLED,
        tried_since=_time(rollout.tried_since),
    )
    checks += [Check("serving", "breached", fault)] if fault else []
    if verdict(checks) == "breached":
        raise _take_out(project, rollout, step, checks, clock())


def resume(project: Project, *, by: str) -> Rollout | None:
    """Resume a paused rollout on behalf of a user. Return None if it is not paused.

    The step's inconclusive looks are reset.
    """
    with changing(project) as rollout:
        if rollout is None or rollout.state != "paused":
            return None
        back = keep(project, replace(rollout, state="trying", inconclusive=0, reason=f"resumed by {by}"))
    ledger.decide(
        project.name, STEP, _subject(back, "resumed"), verdict="resumed", reasons=[f"by {by}"], cutoff=back.cutoff
    )
    return back


def next_action(project: Project) -> str:
    return (
        f"Look at it, then `airloop rollout {project.name} --resume` or `airloop rollback {project.name} --reason ...`"
    )


def describe(step: Step) -> str:
    if step.shadow is not None:
        return f"{step.name}: a shadow of {step.shadow:.4g} of the requests"
    beside = f" beside {step.control}" if step.control else ""
    return f"{step.name}: {step.weight:.4g} of the entities{beside}"


def looks(project: Project, rollout: Rollout) -> list[dict[str, Any]]:
    """Return the ledger's record of each look of a rollout, oldest first."""
    return [d for d in ledger.decisions(project.name, STEP) if d["subject"].startswith(f"{_rollout(rollout)}, step ")]


# --- what advance does ------------------------------------------------------------------------


def _begin(
    project: Project, version: str, *, dag_run: str, cutoff: str, by_person: bool, at: datetime
) -> Rollout | None:
    """Return this run's document, created if needed. Return None if there are no steps to take."""
    with changing(project) as rollout:
        now = versions.aliases(project)
        current = now.get(CHAMPION)
        rollout = adopt(project, rollout, version, dag_run)
        if rollout is None or not rollout.is_of(version, dag_run):
            refuse_stale(project, version, current, dag_run=dag_run, by_person=by_person)
            if not project.rollout.steps or current in (None, version) or was_in_service(project, version):
                # There is no champion to compare it with, or it is already champion, or it was in
                # service before: a rollback needs no steps.
                return None
            if rollout is not None:
                give_up(project, rollout, version)
            first = Rollout(
                version,
                current,
                now.get(PREVIOUS),
                "trying",
                dag_run,
                cutoff,
                traffic=_traffic(project, 0, version, current),
            )
            return keep(project, replace(first, written=at.isoformat()))
        if rollout.state in ("rolling_back", "rolled_back"):
            raise taken_back(rollout if rollout.state == "rolled_back" else undo(project, rollout, rollout.reason))
        if rollout.state == "overtaken":
            raise OvertakenError(rollout.reason)
        if rollout.state in ("trying", "paused") and current != rollout.previous:
            raise overtaken(project, rollout, current)
        return rollout


def _traffic(project: Project, number: int, version: str, champion: str | None) -> dict[str, Any]:
    """Return the traffic that serving is to follow in a step.

    The salt is the version, so that each version is tried on other entities.
    """
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
    """Return why serving does not follow the step, and what permanently disqualifies the version.

    Each is "" if it does not apply.
    """
    status = served.ask(get_settings().serving_url, project.name)
    if "unreachable" in status:
        return f"serving is away: {status['unreachable']}", ""
    arms = {arm["name"]: arm for arm in status.get("arms", [])}
    candidate = arms.get(step.name)
    if candidate is None or candidate["version"] != rollout.version:
        return status.get("rollout_error") or "it has not read the rollout document", ""
    if candidate["state"] in ("refused", "stopped"):
        return candidate["state"], f"serving has {candidate['state']} it: {candidate['error']}"
    waiting = [arm for arm in (candidate, arms.get(step.control or "")) if arm and arm["state"] != "ready"]
    return (
        "; ".join(f"{arm['name']} is {arm['state']}{': ' + arm['error'] if arm['error'] else ''}" for arm in waiting),
        "",
    )


def _conclude(project: Project, rollout: Rollout, step: Step, checks: list[Check], at: datetime) -> Progress:
    """Record the result of a look, and act on it."""
    policy, word = project.rollout, verdict(checks)
    name = f"step {rollout.step + 1} of {len(policy.steps)}, {describe(step)}"
    results = "; ".join(f"{check}" for check in checks)
    if word == "breached" and rollout.breached >= policy.analysis.failure_limit:
        raise _take_out(project, rollout, step, checks, at)
    _record(project, rollout, word, checks)
    time = at.isoformat()
    if word == "breached":
        _write(project, rollout, breached=rollout.breached + 1, inconclusive=0, since=time)
    elif word == "inconclusive" and rollout.inconclusive >= policy.analysis.inconclusive_limit:
        reason = f"{name}: {rollout.inconclusive + 1} looks came to nothing: {_only(checks, 'inconclusive')}"
        _write(project, rollout, state="paused", reason=reason)
        return Progress(False, f"paused: {reason}. {next_action(project)}")
    # The next look includes these answers too.
    elif word == "inconclusive":
        _write(project, rollout, inconclusive=rollout.inconclusive + 1)
    elif rollout.passed + 1 < step.looks:
        _write(project, rollout, passed=rollout.passed + 1, inconclusive=0, since=time)
    elif rollout.step + 1 < len(policy.steps):
        traffic = _traffic(project, rollout.step + 1, rollout.version, rollout.previous)
        fresh = {"passed": 0, "breached": 0, "inconclusive": 0, "began": "", "since": "", "written": time}
        _write(project, rollout, step=rollout.step + 1, traffic=traffic, **fresh)
    # The traffic stays unchanged until the version answers all requests.
    else:
        over = _write(project, rollout, step=rollout.step + 1, passed=0, since=time)
        return Progress(over is not None, f"{name}: {word}, and it was the last one: {results}")
    return Progress(False, f"{name}: {word}: {results}")


def _take_out(project: Project, rollout: Rollout, step: Step, checks: list[Check], at: datetime) -> Exception:
    """Roll back immediately to the previous champion. Return the error to raise."""
    reason = f"{describe(step)}: {_only(checks, 'breached')}"
    with changing(project) as now:
        if now is None or not now.is_of(rollout.version, rollout.dag_run):
            return taken_back(rollout)
        if now.state not in ("rolled_back", "rolling_back"):
            now = undo(project, now, reason)
    _record(project, rollout, "breached", checks)
    return RuleBreachedError(
        f"version {rollout.version} was taken out after {_after(rollout, at)}: {reason}; champion is version"
        f" {rollout.previous}, as before"
    )


def _write(project: Project, before: Rollout, **changes: Any) -> Rollout | None:
    """Change the document if it is unchanged since it was read.

    Return None if a user changed it first. The next call then finds their change.
    """
    with changing(project) as now:
        return keep(project, replace(before, **changes)) if now == before else None


def _record(project: Project, rollout: Rollout, word: Word, checks: list[Check]) -> None:
    number = rollout.passed + rollout.breached + rollout.inconclusive + 1
    results = [str(check) for check in checks]
    ledger.decide(
        project.name, STEP, _subject(rollout, f"look {number}"), verdict=word, reasons=results, cutoff=rollout.cutoff
    )
    newest = {"step": rollout.step + 1, "look": number, "verdict": word, "found": results}
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
