"""Trainers: each fits one kind of model and returns an object that predicts and exports itself.

There is one module per family of models. Its function ``fit`` is ``(kind, inputs, rule, numeric,
categorical, label, parameters, run) -> Model``. ``Candidate.trainer`` names it. Trainers are
deterministic: seeds are fixed and the number of threads is limited. ``run`` has the workers, the
device and the checkpoints.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from include.projects.base import Candidate, Project, TaskKind
from include.training.trainers import baseline_rule, hist_gradient_boosting
from include.training.trainers.base import Model
from include.training.workers import FitRun


class UnfitDataError(ValueError):
    """Raised when rows contain nothing to learn from."""


def train(
    project: Project,
    candidate: Candidate,
    numeric: np.ndarray,
    categorical: np.ndarray,
    label: np.ndarray,
    run: FitRun | None = None,
) -> Model:
    """Fit a candidate on these rows.

    Args:
        run: by default one worker on the CPU without checkpoints.

    Raises:
        UnfitDataError: there are no rows, or (binary) all outcomes are the same.
        ValueError: the trainer does not exist.
    """
    name, trainer = candidate.name, candidate.trainer
    if trainer not in TRAINERS:
        raise ValueError(f"candidate '{name}': no trainer '{trainer}'; there is {', '.join(TRAINERS)}")
    if len(label) == 0:
        raise UnfitDataError(f"no rows to fit '{name}' on")
    if project.kind == TaskKind.BINARY and (label == label[0]).all():
        raise UnfitDataError(f"all {len(label)} rows to fit '{name}' on have the outcome {label[0]:g}")
    given = (project.kind, project.inputs, project.baseline_rule, numeric, categorical, label)
    return TRAINERS[trainer](*given, dict(candidate.parameters), run or FitRun())


def _torch_mlp(*arguments: Any) -> Model:
    # Imports torch, which takes two seconds.
    from include.training.trainers import torch_mlp

    return torch_mlp.fit(*arguments)


TRAINERS: dict[str, Callable[..., Model]] = {
    "baseline_rule": baseline_rule.fit,
    "hist_gradient_boosting": hist_gradient_boosting.fit,
    "torch_mlp": _torch_mlp,
}
