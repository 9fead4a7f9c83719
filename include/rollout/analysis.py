"""Compare a new version with the champion on the requests that both answered in the same time.

These are pure rules. Nothing here reads or writes data.

A rule reports a breach only if it is statistically significant, and ``passed`` if it had enough
data. With too little data it reports ``inconclusive``: that is not a verdict, and never counts as a
pass.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
import pandas as pd

from include.monitoring.intervals import Estimate, Statistic, bootstrap, metric_statistic
from include.projects.rollout import Analysis, LabelPolicy
from include.training.metrics import higher_is_better

Word = Literal["passed", "breached", "inconclusive"]
# 95 %, two-sided
Z = 1.96
BINS = 10  # for the distribution of predictions
# The share of the champion's answers that are slower than its own 95th percentile.
SLOW = 0.05
GROUPS = 100  # entity groups that the bootstrap resamples


@dataclass(frozen=True)
class Check:
    """The result of a rule."""

    name: str
    word: Word
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.word}: {self.text}"


@dataclass(frozen=True)
class ArmObservations:
    """One side's data in a look.

    Attributes:
        requests: one row a request, with ``latency_ms``. Contains only requests that this side
            answered alone.
        failed: number of requests that this side should have answered and did not.
        predictions: float [n].
        entities: the entity of each prediction, [n].
    """

    requests: pd.DataFrame
    failed: int
    predictions: np.ndarray
    entities: tuple[object, ...]


def verdict(checks: Iterable[Check]) -> Word:
    words = {check.word for check in checks}
    return "breached" if "breached" in words else "inconclusive" if "inconclusive" in words else "passed"


def compare(analysis: Analysis, candidate: ArmObservations, control: ArmObservations) -> list[Check]:
    """Apply the rules that do not need outcomes."""
    checks = [failures(analysis, candidate)]
    if analysis.max_latency_ratio is not None:
        checks.append(latency(analysis, candidate, control))
    if analysis.max_psi is not None:
        checks.append(distribution(analysis, candidate, control))
    return checks


def failures(analysis: Analysis, candidate: ArmObservations) -> Check:
    """Check whether the failure share exceeds the limit with 95 % confidence.

    If all requests fail, a few are enough.
    """
    requests = len(candidate.requests) + candidate.failed
    text = f"{candidate.failed} of {requests} requests failed, the limit is {analysis.max_failure_share:.1%}"
    if candidate.failed and wilson(candidate.failed, requests)[0] > analysis.max_failure_share:
        return Check("errors", "breached", text)
    if requests < analysis.min_samples:
        return Check("errors", "inconclusive", f"{text}; fewer than {analysis.min_samples} requests say too little")
    return Check("errors", "passed", text)


def latency(analysis: Analysis, candidate: ArmObservations, control: ArmObservations) -> Check:
    """Check whether more than 5 % of the version's answers are too slow, with 95 % confidence.

    An answer is too slow if it takes longer than the champion's 95th percentile times the allowed
    ratio.
    """
    assert analysis.max_latency_ratio is not None
    if few := _too_few(analysis, len(candidate.requests), len(control.requests)):
        return Check("latency", "inconclusive", few)
    champions = float(np.percentile(control.requests["latency_ms"], 95))
    limit = max(analysis.latency_floor_ms, champions * analysis.max_latency_ratio)
    slow = int((candidate.requests["latency_ms"] > limit).sum())
    own = float(np.percentile(candidate.requests["latency_ms"], 95))
    text = (
        f"95th percentile {own:.1f} ms, the champion's {champions:.1f} ms; {slow} of {len(candidate.requests)} took"
        f" more than {limit:.1f} ms"
    )
    return Check("latency", "breached" if wilson(slow, len(candidate.requests))[0] > SLOW else "passed", text)


def distribution(analysis: Analysis, candidate: ArmObservations, control: ArmObservations) -> Check:
    """Check whether the PSI, minus its expected value under no shift, exceeds the limit (95 %).

    The index is the population stability index of the predictions. Sampling variation is computed
    over entities, not rows, because an arm is a sample of entities. Without any shift, the index is
    approximately chi-squared with bins - 1 degrees of freedom times (1/n + 1/m) (Yurdakul 2018,
    "Statistical Properties of Population Stability Index").
    """
    assert analysis.max_psi is not None
    if few := _too_few(analysis, len(candidate.predictions), len(control.predictions)):
        return Check("predictions", "inconclusive", few)
    n, m = (len(set(side.entities)) for side in (candidate, control))
    if min(n, m) < 3 * BINS:
        return Check(
            "predictions",
            "inconclusive",
            f"of {n} and {m} entities: too few to tell a distribution by; set max_psi to None if that is all there are",
        )
    index, bins = psi(candidate.predictions, control.predictions)
    share = 1 / n + 1 / m
    surely = index - share * (bins - 1) - Z * share * sqrt(2 * (bins - 1))
    means = f"mean {candidate.predictions.mean():.4g}, the champion's {control.predictions.mean():.4g}"
    text = (
        f"stability index {index:.3f}, at least {max(0.0, surely):.3f} of it no luck; the limit is"
        f" {analysis.max_psi:g}; {means}"
    )
    return Check("predictions", "breached" if surely > analysis.max_psi else "passed", text)


def outcomes(
    policy: LabelPolicy, metric: str, candidate: pd.DataFrame, control: pd.DataFrame, *, paired: bool
) -> Check:
    """Check whether the version's metric is worse than allowed, with 95 % confidence.

    Args:
        candidate: ``label``, ``prediction``, ``entity`` of the version's answers.
        control: the same for the champion. If ``paired``, row by row for the same requests (a
            shadow).
    """
    n, m = len(candidate), len(control)
    if min(n, m) < policy.min_labels:
        text = f"{n} outcomes, {m} of the champion's; {policy.min_labels} are wanted"
        return Check(
            "outcomes",
            "inconclusive" if policy.wait else "passed",
            text if policy.wait else f"not looked at yet: {text}",
        )
    sign = 1.0 if higher_is_better(metric) else -1.0
    own, other, loss = _loss(metric, candidate, control, sign, paired=paired)
    text = (
        f"{metric} {own:.4f} on {n}, the champion's {other:.4f} on {m}; worse by {loss.value:+.4f} [{loss.low:+.4f},"
        f" {loss.high:+.4f}]"
    )
    if not np.isfinite([loss.value, loss.low]).all():
        return Check("outcomes", "inconclusive", f"{metric} has no value or no interval: {text}")
    return Check(
        "outcomes",
        "breached" if loss.low > policy.max_metric_loss else "passed",
        f"{text}; the limit is {policy.max_metric_loss:g}",
    )


def _loss(
    metric: str, candidate: pd.DataFrame, control: pd.DataFrame, sign: float, *, paired: bool
) -> tuple[float, float, Estimate]:
    """Return both metric values, and by how much ``candidate`` is worse, with a 95 % interval.

    The interval comes from a bootstrap over groups of entities.
    """
    if paired:
        blocks, count = _groups(candidate["entity"])
        own, other = _statistic(metric, candidate, blocks), _statistic(metric, control, blocks)
        once = np.ones((1, count))
        return (
            float(own(once)[0]),
            float(other(once)[0]),
            bootstrap(lambda draws: sign * (other(draws) - own(draws)), count),
        )
    a, b = _estimate(metric, candidate), _estimate(metric, control)
    # The interval of the difference is computed from two independent intervals (MOVER: Zou & Donner
    # 2008).
    value, low, high = (
        b.value - a.value,
        float(np.hypot(b.value - b.low, a.high - a.value)),
        float(np.hypot(b.high - b.value, a.value - a.low)),
    )
    return (
        a.value,
        b.value,
        Estimate(value, value - low, value + high) if sign > 0 else Estimate(-value, -value - high, -value + low),
    )


def _estimate(metric: str, rows: pd.DataFrame) -> Estimate:
    blocks, count = _groups(rows["entity"])
    return bootstrap(_statistic(metric, rows, blocks), count)


def _statistic(metric: str, rows: pd.DataFrame, blocks: np.ndarray) -> Statistic:
    return metric_statistic(metric, rows["label"].to_numpy("float64"), rows["prediction"].to_numpy("float64"), blocks)


def _groups(entities: Iterable[object]) -> tuple[np.ndarray, int]:
    """Return the group number of each row's entity, counted from 0, and the number of groups.

    All rows of an entity are in one group, because they are correlated.
    """
    codes, groups = pd.factorize(np.array([zlib.crc32(repr(entity).encode()) % GROUPS for entity in entities]))
    return codes, len(groups)


def psi(candidate: np.ndarray, control: np.ndarray) -> tuple[float, int]:
    """Return the population stability index of two samples, and the number of bins.

    Each bin contains the same number of values of ``control``. There are fewer bins where values
    repeat.
    """
    edges = np.unique(np.quantile(control, np.linspace(0, 1, BINS + 1)[1:-1]))
    a, b = (
        np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        for values in (candidate, control)
    )
    used = (a + b) > 0
    # Add half a row to each bin, so that an empty bin does not make the index infinite.
    a, b = ((counts[used] + 0.5) / (counts[used] + 0.5).sum() for counts in (a, b))
    return float(((a - b) * np.log(a / b)).sum()), int(used.sum())


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    share, spread = hits / total, Z * Z / total
    centre, reach = share + spread / 2, Z * sqrt(share * (1 - share) / total + spread / (4 * total))
    return (centre - reach) / (1 + spread), (centre + reach) / (1 + spread)


def _too_few(analysis: Analysis, candidate: int, control: int) -> str | None:
    return (
        f"{candidate} answers, {control} of the champion's: fewer than {analysis.min_samples} say too little"
        if min(candidate, control) < analysis.min_samples
        else None
    )
