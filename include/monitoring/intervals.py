"""How sure a figure is: bootstrap over blocks of rows that share their luck, such as the flights of one stormy day.

Blocks are drawn, not rows (Efron & Tibshirani 1993, ch. 8): a figure of many rows from few days is as sure as the days
are many. Luck that spans neighbouring days is not seen; limits need a margin for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import t as student

from include.training.metrics import metric_function

RESAMPLES = 1000
LEVEL = 0.95
MIN_BLOCKS = 7  # fewer say too little about how blocks differ: one day alone would look perfectly sure
NAN = float("nan")

# Maps how often each block is drawn, [resamples, blocks], to the figure of each resample, [resamples].
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A figure and its confidence interval; NaN: it could not be had."""

    value: float
    low: float
    high: float


def bootstrap(statistic: Statistic, blocks: int, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Estimate:
    """A figure with its two-sided interval from a bootstrap over blocks.

    Percentiles, expanded for few blocks to the width that Student's t asks for (Hesterberg 2015, "What Teachers Should
    Know About the Bootstrap", section 4.5). One resample without a value leaves the interval without one.

    Args:
        statistic: see ``metric_statistic`` and ``bias_statistic``.
        blocks: how many blocks there are; below ``MIN_BLOCKS`` the interval is NaN.
    """
    if blocks == 0:
        return Estimate(NAN, NAN, NAN)
    value = float(statistic(np.ones((1, blocks)))[0])
    if blocks < MIN_BLOCKS:
        return Estimate(value, NAN, NAN)
    drawn = statistic(np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples).astype("float64"))
    reach = np.sqrt(blocks / (blocks - 1)) * student.ppf((1 + level) / 2, blocks - 1)
    tail = NormalDist().cdf(-float(reach))
    low, high = np.quantile(drawn, [tail, 1 - tail])  # NaN if one of them is
    return Estimate(value, float(low), float(high))


def metric_statistic(name: str, label: np.ndarray, prediction: np.ndarray, block: np.ndarray) -> Statistic:
    """A metric of ``include.training.metrics`` as a function of how often each block is drawn.

    Args:
        name: of the metric.
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
    """Mean prediction minus mean outcome, as a function of how often each block is drawn."""
    excess = np.bincount(block, weights=np.asarray(prediction, dtype="float64") - np.asarray(label, dtype="float64"))
    rows = np.bincount(block)
    return lambda draws: (draws @ excess) / (draws @ rows)


def _auc_statistic(label: np.ndarray, prediction: np.ndarray, block: np.ndarray) -> Statistic:
    """The AUC of a resample from counts made once: won[i, j] = pairs (positive of block i, negative of block j) in right order, ties half.

    Mann-Whitney's U of any resample is then a quadratic form of how often its blocks were drawn, instead of another sort of all rows.
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
        with np.errstate(invalid="ignore"):  # a resample of one class: 0 / 0 is NaN, as it should be
            return ((draws @ won) * draws).sum(axis=1) / ((draws @ positives) * (draws @ negatives))

    return auc
