"""Decide when to request a retraining: pure rules over evidence, without reading or writing data.

Only a *significant* difference counts: the nearer end of the 95 % interval must be beyond the
limit. Evidence that cannot be judged (too few labels, a metric that is not a number) is
``unknown``, never ``healthy``, and does not cause a request. With too few labels, the share of
drifted inputs is ignored too: a new model would be refused because there are too few labels to
judge it.

A drift **episode** makes one request. It opens at the first drifting verdict. It closes at the next
healthy one, or when a champion is deployed that was trained after it opened. If its request failed
or was refused and drift persists, the episode is closed after the cooldown and a follow-up episode
makes a new request. Each follow-up doubles the cooldown, up to eight times the policy's. After
``MAX_REQUESTS`` requests an operator is notified, and the requests continue. A request that is
waiting or in progress is not repeated: its own deadlines end it (``include.ledger.lifecycle``). An
episode that is neither healthy nor drifting for as long as its window and its cooldown together is
closed.

A slow decay can be smaller than the sampling variation of a month. So a policy may also set an age
at which a healthy champion is challenged. The gate then decides whether the new model is better.
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
    """The evidence about the champion at the cutoff. NaN means that a value is not available.

    ``metric`` and ``bias`` (mean prediction minus mean outcome) have their 95 % intervals, on the
    ``labels`` in the window. ``reference`` is the metric when the champion was judged.
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
    """The open drift episode.

    ``request`` is the state of its request, or None if there is none yet. ``ask`` counts the
    episodes of one lasting drift.
    """

    opened: datetime
    request: str | None = None
    ask: int = 1


@dataclass(frozen=True)
class DriftVerdict:
    """The decision.

    ``closes`` is the reason why the open episode ends, or None if it does not. ``opens`` opens an
    episode, after closing. ``ask`` requests a retraining.
    """

    state: Literal["healthy", "drifting", "unknown"]
    ask: bool
    reasons: tuple[str, ...]
    closes: str | None = None
    opens: bool = False
    cause: Literal["drift", "age"] = "drift"  # the reason of the request
    continues: bool = False  # the new episode is the follow-up of the one that it closes
    # Notify an operator, because repeated requests did not help.
    tell: bool = False


def decide(
    policy: RetrainPolicy, metric: Metric, evidence: Evidence, *, at: datetime, last_request: datetime | None = None, episode: Episode | None = None,  # noqa: E501
    last_answer: datetime | None = None,
) -> DriftVerdict:  # fmt: skip
    """Return the decision for the evidence.

    Args:
        policy: the project's.
        metric: the project's, with its direction.
        evidence: on the champion, at the cutoff.
        at: the cutoff.
        last_request: cutoff of the newest earlier request, from any source.
        episode: the open one.
        last_answer: cutoff of the newest earlier request that did not fail. A failed request is
            ignored when the champion's age is judged.
    """
    state, reasons = judge(policy, metric, evidence)
    closes = None
    # They are equal for the request of the run that opened the episode, which has that cutoff.
    if episode and evidence.champion_cutoff >= episode.opened:
        closes, episode = "a champion trained after it opened is deployed", None
    elif episode and state == "healthy":
        closes, episode = "healthy again", None

    if state == "healthy" and policy.max_age is not None:
        age = at - evidence.champion_cutoff
        answered = last_answer is not None and at - last_answer < policy.max_age
        if (
            age >= policy.max_age
            and not answered
            and (last_request is None or at - last_request >= min(policy.cooldown, policy.max_age))
        ):
            return DriftVerdict(
                state,
                True,
                (*reasons, f"the champion is {age.days} days old, the policy allows {policy.max_age.days}"),
                closes,
                cause="age",
            )
    waits = episode is not None and episode.request in lifecycle.live("request")
    asked = episode.ask if episode and episode.request is not None and not waits else 0
    cooldown = lifecycle.cooldown(policy.cooldown, asked)
    if state != "drifting":
        if (
            episode
            and not waits
            and at - episode.opened >= policy.window + lifecycle.cooldown(policy.cooldown, episode.ask)
        ):
            closes = f"neither healthy nor drifting for {(at - episode.opened).days} days"
        return DriftVerdict(state, False, tuple(reasons), closes)
    if waits and episode:
        return DriftVerdict(
            state, False, (*reasons, f"asked in this episode already: the request is {episode.request}")
        )
    if last_request is not None and at - last_request < cooldown:
        until = last_request + cooldown
        return DriftVerdict(
            state,
            False,
            (*reasons, f"cooldown after the last request until {until:%Y-%m-%d %H:%M}"),
            closes,
            opens=episode is None,
        )
    if asked and episode:
        reasons.append(f"asked {asked} times in vain: the last request is {episode.request}")
        closes = f"its request is {episode.request}; continued by a new one"
        return DriftVerdict(
            state, True, tuple(reasons), closes, opens=True, continues=True, tell=asked >= lifecycle.MAX_REQUESTS
        )
    return DriftVerdict(state, True, tuple(reasons), closes, opens=episode is None)


def judge(
    policy: RetrainPolicy, metric: Metric, evidence: Evidence
) -> tuple[Literal["healthy", "drifting", "unknown"], list[str]]:
    """Return the state of the evidence by the policy's limits, with reasons."""
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
            beyond.append(
                f"{evidence.drifted_share:.0%} of the inputs drifted, more than {policy.max_drifted_share:.0%}"
            )
    if policy.max_metric_loss is None and policy.max_bias is None and policy.max_drifted_share is None:
        missing.append("the policy sets no limit: nothing is watched")
    if beyond:
        return "drifting", [*beyond, *missing]
    if missing:
        return "unknown", missing
    return "healthy", [
        f"{metric.name} {evidence.metric:.4f} on {evidence.labels} labels: nothing is surely beyond its limit"
    ]


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
            beyond.append(
                f"{metric.name} {evidence.metric:.4f} {span} is surely worse than {evidence.reference:.4f} at training"
                f" by more than {allowed:g}"
            )


def _judge_bias(allowed: float, evidence: Evidence, beyond: list[str], missing: list[str]) -> None:
    if not all(math.isfinite(v) for v in (evidence.bias, evidence.bias_low, evidence.bias_high)):
        missing.append("the bias has no value or no confidence interval")
    elif evidence.bias_low > allowed or evidence.bias_high < -allowed:
        direction = "high" if evidence.bias > 0 else "low"
        span = f"[{evidence.bias_low:+.4f}, {evidence.bias_high:+.4f}]"
        beyond.append(
            f"bias {evidence.bias:+.4f} {span} (mean prediction minus mean outcome, too {direction}) is surely beyond"
            f" {allowed:g}"
        )
