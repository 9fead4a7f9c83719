"""The parameters that each trainer accepts, and their values.

It does not import ML libraries, because `airloop check` uses it. A test compares it with the
libraries.
"""

from dataclasses import dataclass
from typing import Any

from include.projects.base import Range, Search, TaskKind


@dataclass(frozen=True)
class Number:
    """A number within limits, or one of ``also``."""

    low: float | None = None
    high: float | None = None
    whole: bool = False
    above_low: bool = False
    below_high: bool = False
    also: tuple[Any, ...] = ()

    def fault(self, value: Any) -> str | None:
        """Return why a value is not accepted, or None if it is."""
        if any(value is one or (isinstance(one, str) and value == one) for one in self.also):
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be {self}"
        if self.whole and not isinstance(value, int):
            return f"must be {self}"
        below = self.low is not None and (value <= self.low if self.above_low else value < self.low)
        beyond = self.high is not None and (value >= self.high if self.below_high else value > self.high)
        if below or beyond or value != value:
            return f"must be {self}"
        return None

    def __str__(self) -> str:
        limits = [f"{'above' if self.above_low else 'at least'} {self.low:g}"] if self.low is not None else []
        limits += [f"{'below' if self.below_high else 'at most'} {self.high:g}"] if self.high is not None else []
        words = f"a {'whole number' if self.whole else 'number'}{' ' if limits else ''}{' and '.join(limits)}"
        return words + "".join(f", or {one!r}" for one in self.also)


@dataclass(frozen=True)
class OneOf:
    """One of some values."""

    values: tuple[Any, ...]

    def fault(self, value: Any) -> str | None:
        """Return why a value is not accepted, or None if it is."""
        if any(type(value) is type(one) and value == one for one in self.values):
            return None
        return f"must be {self}"

    def __str__(self) -> str:
        return "one of " + ", ".join(repr(one) for one in self.values)


@dataclass(frozen=True)
class Text:
    """Any text, or None."""

    def fault(self, value: Any) -> str | None:
        """Return why a value is not accepted, or None if it is."""
        return None if value is None or isinstance(value, str) else "must be a text or None"


Accepted = Number | OneOf | Text
SWITCH = OneOf((True, False))
BOTH = {TaskKind.BINARY, TaskKind.REGRESSION}
HIST_GRADIENT_BOOSTING: dict[str, Accepted] = {
    "learning_rate": Number(0, above_low=True),
    "max_iter": Number(1, whole=True),
    "max_leaf_nodes": Number(2, whole=True, also=(None,)),
    "max_depth": Number(1, whole=True, also=(None,)),
    "min_samples_leaf": Number(1, whole=True),
    "l2_regularization": Number(0),
    "max_features": Number(0, 1, above_low=True),
    "max_bins": Number(2, 255, whole=True),
    "interaction_cst": OneOf((None, "pairwise", "no_interactions")),
    "early_stopping": OneOf(("auto", True, False)),
    "n_iter_no_change": Number(1, whole=True),
    "tol": Number(0),
    "validation_fraction": Number(0, 1, above_low=True, below_high=True, also=(None,)),
    "scoring": Text(),
    "warm_start": SWITCH,
    "verbose": Number(0, whole=True),
    "random_state": Number(0, 2**32 - 1, whole=True, also=(None,)),
}
# Trainer -> kind -> parameter -> accepted values.
PARAMETERS: dict[str, dict[TaskKind, dict[str, Accepted]]] = {
    "baseline_rule": {
        TaskKind.BINARY: {
            "C": Number(0, above_low=True),
            "max_iter": Number(0, whole=True),
            "tol": Number(0),
            "fit_intercept": SWITCH,
        },
        TaskKind.REGRESSION: {"fit_intercept": SWITCH, "positive": SWITCH},
    },
    "hist_gradient_boosting": {
        TaskKind.BINARY: HIST_GRADIENT_BOOSTING | {"class_weight": OneOf((None, "balanced"))},
        TaskKind.REGRESSION: HIST_GRADIENT_BOOSTING
        | {
            "loss": OneOf(("squared_error", "absolute_error", "gamma", "poisson", "quantile")),
            "quantile": Number(0, 1, also=(None,)),
        },
    },
    "torch_mlp": dict.fromkeys(
        BOTH,
        {
            "hidden": Number(2, whole=True),
            "epochs": Number(1, whole=True),
            "learning_rate": Number(0, above_low=True),
            "batch_size": Number(1, whole=True),
            "dropout": Number(0, 1),
            "weight_decay": Number(0),
        },
    ),
}


def faults_of(
    kind: TaskKind, trainer: str, parameters: dict[str, Any], search: Search | None
) -> list[tuple[str, Any, str]]:
    """Return (parameter, value, fault) of each parameter that the trainer does not accept.

    An unknown parameter has the fault "unknown".

    Args:
        search: the values of its space are checked too.
    """
    accepted = PARAMETERS[trainer][kind]
    tried = list(parameters.items())
    for name, values in (search.space if search else {}).items():
        if isinstance(values, Range):
            tried += [(name, int(end) if values.whole else end) for end in (values.low, values.high)]
        else:
            tried += [(name, value) for value in values.options]
    faults: list[tuple[str, Any, str]] = []
    for name, value in tried:
        if name not in accepted:
            fault: str | None = "unknown"
        else:
            fault = accepted[name].fault(value)
        if fault and not any(one[0] == name and one[2] == fault for one in faults):
            faults.append((name, value, fault))
    return faults
