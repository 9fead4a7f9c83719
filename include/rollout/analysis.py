"""Is the new version as good as the champion beside it? Pure rules over what both answered in the same time; nothing here reads or writes anything.

A rule finds a breach only in what is surely so, passes what it could look at, and says ``inconclusive`` where there is too little to look at: that is
no verdict, and never a good one.
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
Z = 1.96  # 95 %, two-sided
BINS = 10  # of the predictions' distribution
SLOW = 0.05  # the share of the champion's answers that are slower than its own 95th percentile
GROUPS = 100  # of entities, of which the bootstrap draws


@dataclass(frozen=True)
class Check:
    """What a rule found."""

    name: str
    word: Word
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.word}: {self.text}"


@dataclass(frozen=True)
class Side:
    """One side's part of a look.

    ``requests``: one row a request, ``latency_ms``, of those that this side answered alone; ``failed``: requests that it should have answered and did
    not; ``predictions`` float [n]; ``entities``: whose they are, [n].
    """

    requests: pd.DataFrame
    failed: int
    predictions: np.ndarray
    entities: tuple[object, ...]


def verdict(checks: Iterable[Check]) -> Word:
    words = {check.word for check in checks}
    return "breached" if "breached" in words else "inconclusive" if "inconclusive" in words else "passed"


def compare(analysis: Analysis, mine: Side, theirs: Side) -> list[Check]:
    """The rules that need no outcomes."""
    checks = [failures(analysis, mine)]
    if analysis.max_latency_ratio is not None:
        checks.append(latency(analysis, mine, theirs))
    if analysis.max_psi is not None:
        checks.append(distribution(analysis, mine, theirs))
    return checks


def failures(analysis: Analysis, mine: Side) -> Check:
    """Surely more failures than allowed; a few requests are enough where all fail."""
    asked = len(mine.requests) + mine.failed
    text = f"{mine.failed} of {asked} requests failed, the limit is {analysis.max_failure_share:.1%}"
    if mine.failed and wilson(mine.failed, asked)[0] > analysis.max_failure_share:
        return Check("errors", "breached", text)
    if asked < analysis.min_samples:
        return Check("errors", "inconclusive", f"{text}; fewer than {analysis.min_samples} requests say too little")
    return Check("errors", "passed", text)


def latency(analysis: Analysis, mine: Side, theirs: Side) -> Check:
    """Surely more than 5 % of its answers are slower than the champion's 95th percentile times the ratio."""
    assert analysis.max_latency_ratio is not None
    if few := _too_few(analysis, len(mine.requests), len(theirs.requests)):
        return Check("latency", "inconclusive", few)
    champions = float(np.percentile(theirs.requests["latency_ms"], 95))
    limit = max(analysis.latency_floor_ms, champions * analysis.max_latency_ratio)
    slow = int((mine.requests["latency_ms"] > limit).sum())
    own = float(np.percentile(mine.requests["latency_ms"], 95))
    text = f"95th percentile {own:.1f} ms, the champion's {champions:.1f} ms; {slow} of {len(mine.requests)} took more than {limit:.1f} ms"
    return Check("latency", "breached" if wilson(slow, len(mine.requests))[0] > SLOW else "passed", text)


def distribution(analysis: Analysis, mine: Side, theirs: Side) -> Check:
    """The predictions' population stability index, less what luck gives by itself, is surely beyond the limit.

    Luck is that of entities, not of rows: an arm is a draw of entities. Without any difference the index is about chi-squared with bins - 1 degrees of
    freedom times (1/n + 1/m) (Yurdakul 2018, "Statistical Properties of Population Stability Index").
    """
    assert analysis.max_psi is not None
    if few := _too_few(analysis, len(mine.predictions), len(theirs.predictions)):
        return Check("predictions", "inconclusive", few)
    n, m = (len(set(side.entities)) for side in (mine, theirs))
    if min(n, m) < 3 * BINS:
        return Check("predictions", "inconclusive", f"of {n} and {m} entities: too few to tell a distribution by; set max_psi to None if that is all there are")
    index, bins = psi(mine.predictions, theirs.predictions)
    share = 1 / n + 1 / m
    surely = index - share * (bins - 1) - Z * share * sqrt(2 * (bins - 1))
    means = f"mean {mine.predictions.mean():.4g}, the champion's {theirs.predictions.mean():.4g}"
    text = f"stability index {index:.3f}, at least {max(0.0, surely):.3f} of it no luck; the limit is {analysis.max_psi:g}; {means}"
    return Check("predictions", "breached" if surely > analysis.max_psi else "passed", text)


def outcomes(policy: LabelPolicy, metric: str, mine: pd.DataFrame, theirs: pd.DataFrame, *, paired: bool) -> Check:
    """Surely worse on outcomes than allowed.

    Args:
        mine: ``label``, ``prediction``, ``entity`` of what the version answered.
        theirs: the same of the champion; if ``paired``, row by row of the same requests (a shadow).
    """
    n, m = len(mine), len(theirs)
    if min(n, m) < policy.min_labels:
        text = f"{n} outcomes, {m} of the champion's; {policy.min_labels} are wanted"
        return Check("outcomes", "inconclusive" if policy.wait else "passed", text if policy.wait else f"not looked at yet: {text}")
    sign = 1.0 if higher_is_better(metric) else -1.0
    own, other, loss = _loss(metric, mine, theirs, sign, paired=paired)
    text = f"{metric} {own:.4f} on {n}, the champion's {other:.4f} on {m}; worse by {loss.value:+.4f} [{loss.low:+.4f}, {loss.high:+.4f}]"
    if not np.isfinite([loss.value, loss.low]).all():
        return Check("outcomes", "inconclusive", f"{metric} has no value or no interval: {text}")
    return Check("outcomes", "breached" if loss.low > policy.max_metric_loss else "passed", f"{text}; the limit is {policy.max_metric_loss:g}")


def _loss(metric: str, mine: pd.DataFrame, theirs: pd.DataFrame, sign: float, *, paired: bool) -> tuple[float, float, Estimate]:
    """Both figures, and by how much ``mine`` is worse, with its 95 % interval from a bootstrap over groups of entities."""
    if paired:
        blocks, count = _groups(mine["entity"])
        own, other = _statistic(metric, mine, blocks), _statistic(metric, theirs, blocks)
        once = np.ones((1, count))
        return float(own(once)[0]), float(other(once)[0]), bootstrap(lambda draws: sign * (other(draws) - own(draws)), count)
    a, b = _estimate(metric, mine), _estimate(metric, theirs)
    # Two independent intervals make that of the difference (MOVER: Zou & Donner 2008).
    value, low, high = b.value - a.value, float(np.hypot(b.value - b.low, a.high - a.value)), float(np.hypot(b.high - b.value, a.value - a.low))
    return a.value, b.value, Estimate(value, value - low, value + high) if sign > 0 else Estimate(-value, -value - high, -value + low)


def _estimate(metric: str, rows: pd.DataFrame) -> Estimate:
    blocks, count = _groups(rows["entity"])
    return bootstrap(_statistic(metric, rows, blocks), count)


def _statistic(metric: str, rows: pd.DataFrame, blocks: np.ndarray) -> Statistic:
    return metric_statistic(metric, rows["label"].to_numpy("float64"), rows["prediction"].to_numpy("float64"), blocks)


def _groups(entities: Iterable[object]) -> tuple[np.ndarray, int]:
    """Each row's group of entities, numbered from 0, and how many there are: all rows of an entity share their luck."""
    codes, found = pd.factorize(np.array([zlib.crc32(repr(entity).encode()) % GROUPS for entity in entities]))
    return codes, len(found)


def psi(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, int]:
    """Population stability index of two samples in bins of equally many of ``theirs``, and how many bins there are (fewer where values repeat)."""
    edges = np.unique(np.quantile(theirs, np.linspace(0, 1, BINS + 1)[1:-1]))
    a, b = (np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) for values in (mine, theirs))
    used = (a + b) > 0
    a, b = ((counts[used] + 0.5) / (counts[used] + 0.5).sum() for counts in (a, b))  # half a row in each: an empty bin is no infinity
    return float(((a - b) * np.log(a / b)).sum()), int(used.sum())


def wilson(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if of == 0:
        return 0.0, 1.0
    share, spread = hits / of, Z * Z / of
    centre, reach = share + spread / 2, Z * sqrt(share * (1 - share) / of + spread / (4 * of))
    return (centre - reach) / (1 + spread), (centre + reach) / (1 + spread)


def _too_few(analysis: Analysis, mine: int, theirs: int) -> str | None:
    return f"{mine} answers, {theirs} of the champion's: fewer than {analysis.min_samples} say too little" if min(mine, theirs) < analysis.min_samples else None
