"""Confidence intervals from a block bootstrap; rows in one block are assumed to be correlated.

An example of a block is the flights of one stormy day. Blocks are resampled, not rows (Efron &
Tibshirani 1993, ch. 8): the precision of a metric depends on the number of days, not on the number
of rows. Correlation between neighbouring days is not modelled, so limits need a margin for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import t as student

from include.training.metrics import metric_function

RESAMPLES = 1000
LEVEL = 0.95
# Fewer blocks say too little about their variation. A single day would seem perfectly certain.
MIN_BLOCKS = 7
NAN = float("nan")

# Maps the number of draws of each block, [resamples, blocks], to the value of each resample,
# [resamples].
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval, NaN if not available."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Statistic, blocks: int, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Return a value with its two-sided interval from a bootstrap over blocks.

    The interval consists of percentiles. For few blocks they are widened to match Student's t
    (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.5). If one resample
    does not have a value, the interval is NaN.

    Args:
        statistic: see ``metric_statistic`` and ``bias_statistic``.
        blocks: number of blocks. Below ``MIN_BLOCKS`` the interval is NaN.
    """
    if blocks == 0:
        return Estimate(NAN, NAN, NAN)
    value = float(statistic(np.ones((1, blocks)))[0])
    if blocks < MIN_BLOCKS:
        return Estimate(value, NAN, NAN)
    drawn = statistic(
        np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples).astype("float64")
    )
    reach = np.sqrt(blocks / (blocks - 1)) * student.ppf((1 + level) / 2, blocks - 1)
    tail = NormalDist().cdf(-float(reach))
    low, high = np.quantile(drawn, [tail, 1 - tail])  # NaN if one of them is NaN
    return Estimate(value, float(low), float(high))


def metric_statistic(name: str, label: np.ndarray, prediction: np.ndarray, block: np.ndarray) -> Statistic:
    """Return a metric of ``include.training.metrics`` as a function of the draws of each block.

    Args:
        name: name of the metric.
        label: outcomes float [n].
        prediction: float [n].
        block: number of each row's block, 0 to blocks - 1, [n].
    """
    label, prediction = np.asarray(label, dtype="float64"), np.asarray(prediction, dtype="float64")
    if name == "auc":
        return _auc_statistic(label, prediction, block)
    figure = metric_function(name)
    return lambda draws: np.array([figure(label, prediction, drawn[block]) for drawn in draws])


def bias_statistic(label: np.ndarray, prediction: np.ndarray, block: np.ndarray) -> Statistic:
    """Return mean prediction minus mean outcome, as a function of the draws of each block."""
    excess = np.bincount(block, weights=np.asarray(prediction, dtype="float64") - np.asarray(label, dtype="float64"))
    rows = np.bincount(block)
    return lambda draws: (draws @ excess) / (draws @ rows)


def _auc_statistic(label: np.ndarray, prediction: np.ndarray, block: np.ndarray) -> Statistic:
    """Return the AUC as a function of the draws of each block, from counts computed once.

    won[i, j] is the number of correctly ordered pairs (positive of block i, negative of block j).
    Ties count half. Mann-Whitney's U of a resample is then a quadratic form of the draws, so the
    rows need not be sorted again.
    """
    if not (np.isfinite(label).all() and np.isfinite(prediction).all()):
        return lambda draws: np.full(len(draws), NAN)
    blocks = int(block.max()) + 1 if len(block) else 0
    positive = label > 0.5
    scores, owner = prediction[positive], block[positive]
    won = np.zeros((blocks, blocks))
    for j in range(blocks):
        lost = np.sort(prediction[~positive & (block == j)])
        below = np.searchsorted(lost, scores, side="left") + np.searchsorted(lost, scores, side="right")
        won[:, j] = np.bincount(owner, weights=below / 2, minlength=blocks)
    positives, negatives = np.bincount(owner, minlength=blocks), np.bincount(block[~positive], minlength=blocks)

    def auc(draws: np.ndarray) -> np.ndarray:
        # For a resample of one class, 0 / 0 is NaN, as intended.
        with np.errstate(invalid="ignore"):
            areas: np.ndarray = ((draws @ won) * draws).sum(axis=1) / ((draws @ positives) * (draws @ negatives))
            return areas

    return auc
