"""When to ask for a retraining: pure rules over evidence; nothing here reads or writes anything.

Only what is *surely* so counts: a limit is passed when the near end of the 95 % interval is beyond it. What cannot be
judged (too few labels, a figure that is no number) is ``unknown``, never ``healthy``, and asks nothing. Too few labels
also silence the drifted share of inputs: a model trained then would be refused for want of labels to judge it on.

One drift **episode** asks once. It opens at the first drifting verdict and closes at the next healthy one, or when a
champion is deployed that was trained after it opened. Its request may have been refused, for want of labels perhaps, or have
failed, and the served model stay bad: then, after the cooldown, the episode is closed and continued by a new one with a request of
its own. Each continuation doubles the cooldown, up to eight times the policy's. After ``ASKS`` of them a person is told; the asking
goes on. A request that is still waiting or being worked on is waited for: its own deadlines end it (``include.ledger.lifecycle``).
An episode that is neither healthy nor drifting for as long as its window and its cooldown together is closed.

A slow decay hides in intervals as wide as a month's luck. So a policy may also name an age at which a healthy champion is
challenged; the gate decides whether anything is gained.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from include.ledger import lifecycle
from include.projects.base import Metric, RetrainPolicy

NAN = float("nan")


@dataclass(frozen=True)
class Evidence:
    """What is known about the champion at the cutoff. NaN: could not be had.

    ``metric`` and ``bias`` (mean prediction minus mean outcome) with their 95 % intervals, on the ``labels`` in the window;
    ``reference`` is the metric when the champion was judged.
    """

    labels: int
    metric: float
    metric_low: float
    metric_high: float
    reference: float
    bias: float
    bias_low: float
    bias_high: float
    drifted_share: float
    champion_cutoff: datetime


@dataclass(frozen=True)
class Episode:
    """The open drift episode: ``request`` is the state of what it asked for (None: nothing yet), ``ask`` counts the episodes of one lasting drift."""

    opened: datetime
    request: str | None = None
    ask: int = 1


@dataclass(frozen=True)
class Verdict:
    """``closes`` says why the open episode ends (None: it does not); ``opens`` an episode, after closing; ``ask`` for a retraining."""

    state: Literal["healthy", "drifting", "unknown"]
    ask: bool
    reasons: tuple[str, ...]
    closes: str | None = None
    opens: bool = False
    cause: Literal["drift", "age"] = "drift"  # of what it asks for
    continues: bool = False  # the episode that it opens goes on with the one that it closes
    tell: bool = False  # a person: asking again and again did not help


def decide(
    policy: RetrainPolicy, metric: Metric, evidence: Evidence, *, at: datetime, last_request: datetime | None = None, episode: Episode | None = None,
    last_answer: datetime | None = None,
) -> Verdict:  # fmt: skip
    """What to do about the evidence.

    Args:
        policy: the project's.
        metric: the project's, with its direction.
        evidence: on the champion, at the cutoff.
        at: the cutoff.
        last_request: cutoff of the newest earlier request, whoever asked.
        episode: the open one.
        last_answer: cutoff of the newest earlier request that did not fail: one that failed says nothing about a champion's age.
    """
    state, reasons = judge(policy, metric, evidence)
    closes = None
    if episode and evidence.champion_cutoff >= episode.opened:  # equal: the request of the run that opened it has that cutoff
        closes, episode = "a champion trained after it opened is deployed", None
    elif episode and state == "healthy":
        closes, episode = "healthy again", None

    if state == "healthy" and policy.max_age is not None:
        age = at - evidence.champion_cutoff
        answered = last_answer is not None and at - last_answer < policy.max_age
        if age >= policy.max_age and not answered and (last_request is None or at - last_request >= min(policy.cooldown, policy.max_age)):
            return Verdict(state, True, (*reasons, f"the champion is {age.days} days old, the policy allows {policy.max_age.days}"), closes, cause="age")
    waits = episode is not None and episode.request in lifecycle.live("request")
    asked = episode.ask if episode and episode.request is not None and not waits else 0
    cooldown = lifecycle.cooldown(policy.cooldown, asked)
    if state != "drifting":
        if episode and not waits and at - episode.opened >= policy.window + lifecycle.cooldown(policy.cooldown, episode.ask):
            closes = f"neither healthy nor drifting for {(at - episode.opened).days} days"
        return Verdict(state, False, tuple(reasons), closes)
    if waits and episode:
        return Verdict(state, False, (*reasons, f"asked in this episode already: the request is {episode.request}"))
    if last_request is not None and at - last_request < cooldown:
        until = last_request + cooldown
        return Verdict(state, False, (*reasons, f"cooldown after the last request until {until:%Y-%m-%d %H:%M}"), closes, opens=episode is None)
    if asked and episode:
        reasons.append(f"asked {asked} times in vain: the last request is {episode.request}")
        closes = f"its request is {episode.request}; continued by a new one"
        return Verdict(state, True, tuple(reasons), closes, opens=True, continues=True, tell=asked >= lifecycle.ASKS)
    return Verdict(state, True, tuple(reasons), closes, opens=episode is None)


def judge(policy: RetrainPolicy, metric: Metric, evidence: Evidence) -> tuple[Literal["healthy", "drifting", "unknown"], list[str]]:
    """The state that the evidence shows by the policy's limits, and why."""
    if evidence.labels < policy.min_labels:
        return "unknown", [f"not enough labels: {evidence.labels} in the window, the policy wants {policy.min_labels}"]
    beyond: list[str] = []
    missing: list[str] = []
    if not math.isfinite(evidence.metric):
        missing.append(f"{metric.name} has no value")
    elif policy.max_metric_loss is not None:
        _judge_metric(policy.max_metric_loss, metric, evidence, beyond, missing)
    if policy.max_bias is not None:
        _judge_bias(policy.max_bias, evidence, beyond, missing)
    if policy.max_drifted_share is not None:
        if not math.isfinite(evidence.drifted_share):
            missing.append("the share of drifted inputs is not known")
        elif evidence.drifted_share > policy.max_drifted_share:
            beyond.append(f"{evidence.drifted_share:.0%} of the inputs drifted, more than {policy.max_drifted_share:.0%}")
    if policy.max_metric_loss is None and policy.max_bias is None and policy.max_drifted_share is None:
        missing.append("the policy sets no limit: nothing is watched")
    if beyond:
        return "drifting", [*beyond, *missing]
    if missing:
        return "unknown", missing
    return "healthy", [f"{metric.name} {evidence.metric:.4f} on {evidence.labels} labels: nothing is surely beyond its limit"]


def _judge_metric(allowed: float, metric: Metric, evidence: Evidence, beyond: list[str], missing: list[str]) -> None:
    near = evidence.metric_high if metric.higher_is_better else evidence.metric_low
    if not math.isfinite(near):
        missing.append(f"{metric.name} has no confidence interval")
    elif not math.isfinite(evidence.reference):
        missing.append(f"{metric.name} at training is not known")
    else:
        loss = evidence.reference - near if metric.higher_is_better else near - evidence.reference
        if loss > allowed:
            span = f"[{evidence.metric_low:.4f}, {evidence.metric_high:.4f}]"
            beyond.append(f"{metric.name} {evidence.metric:.4f} {span} is surely worse than {evidence.reference:.4f} at training by more than {allowed:g}")


def _judge_bias(allowed: float, evidence: Evidence, beyond: list[str], missing: list[str]) -> None:
    if not all(math.isfinite(v) for v in (evidence.bias, evidence.bias_low, evidence.bias_high)):
        missing.append("the bias has no value or no confidence interval")
    elif evidence.bias_low > allowed or evidence.bias_high < -allowed:
        direction = "high" if evidence.bias > 0 else "low"
        span = f"[{evidence.bias_low:+.4f}, {evidence.bias_high:+.4f}]"
        beyond.append(f"bias {evidence.bias:+.4f} {span} (mean prediction minus mean outcome, too {direction}) is surely beyond {allowed:g}")
