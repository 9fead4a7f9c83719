"""The promotion gate: decide whether a challenger may replace the champion.

It is a pure function. A missing or NaN metric never passes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from include.projects.base import GatePolicy, Metric

Figures = Mapping[str, float]
ROUNDING = 1e-12  # 0.752 - 0.750 is not quite 0.002


@dataclass(frozen=True)
class Rule:
    """The result of one rule, with its values."""

    name: str
    kept: bool
    text: str


@dataclass(frozen=True)
class GateVerdict:
    """The gate's verdict. It passes only if every rule was kept."""

    rules: tuple[Rule, ...]

    @property
    def passed(self) -> bool:
        return bool(self.rules) and all(rule.kept for rule in self.rules)

    @property
    def word(self) -> str:
        return "passed" if self.passed else "refused"

    @property
    def reasons(self) -> list[str]:
        """Return every rule in a sentence, the broken ones first."""
        return [f"{'kept' if r.kept else 'BROKEN'}: {r.text}" for r in sorted(self.rules, key=lambda r: r.kept)]


def judge(
    policy: GatePolicy, metric: Metric, *, challenger: Figures, baseline: Figures, champion: Figures | None, rows: int
) -> GateVerdict:
    """Judge a challenger by the policy.

    Args:
        policy: the project's.
        metric: the metric to compare. The project defines its direction.
        challenger, baseline, champion: metric name -> value, all on the same rows. If champion is
            None, there is none yet, and only the floor and the baseline decide. An empty mapping is
            a champion that could not be judged, which is a refusal.
        rows: number of rows they were judged on.

    Returns:
        The verdict with every rule.
    """
    rules = [
        Rule(
            "enough new labels",
            rows >= policy.min_rows,
            f"judged on {rows} rows with new labels; at least {policy.min_rows} are needed",
        )
    ]
    mine = _figure(challenger, metric)
    if mine is None:
        rules.append(Rule("figure", False, f"the challenger has no {metric.name}"))
    if policy.floor is not None:
        kept = mine is not None and _gain(metric, mine, policy.floor) >= -ROUNDING
        bound = "at least" if metric.higher_is_better else "at most"
        rules.append(
            Rule("floor", kept, f"challenger's {metric.name} {_text(mine)}; {bound} {policy.floor:g} is needed")
        )
    if champion is not None:
        rules.append(_better("champion", metric, mine, _figure(champion, metric), policy.min_improvement))
    rules.append(_better("baseline", metric, mine, _figure(baseline, metric), policy.beat_baseline_by))
    return GateVerdict(tuple(rules))


def _better(whom: str, metric: Metric, mine: float | None, other: float | None, margin: float) -> Rule:
    if mine is None or other is None:
        return Rule(
            whom, False, f"cannot be compared with the {whom}: {metric.name} {_text(mine)} against {_text(other)}"
        )
    gain = _gain(metric, mine, other)
    kept = gain > ROUNDING and gain >= margin - ROUNDING  # a tie does not justify a change
    needed = f"{margin:g}" if margin > 0 else "more than 0"
    return Rule(
        whom,
        kept,
        f"challenger's {metric.name} {mine:.4f} against the {whom}'s {other:.4f}: better by {gain:+.4f}, needed"
        f" {needed}",
    )


def _gain(metric: Metric, mine: float, other: float) -> float:
    return mine - other if metric.higher_is_better else other - mine


def _figure(figures: Figures, metric: Metric) -> float | None:
    value = figures.get(metric.name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _text(value: float | None) -> str:
    return "missing or not a number" if value is None else f"{value:.4f}"
