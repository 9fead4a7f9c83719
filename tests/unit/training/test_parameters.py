"""The table of parameters agrees with the libraries that take them."""

import inspect

import pytest

from include.projects.base import Choices, Range, Search, TaskKind
from include.training.parameters import PARAMETERS, Number, OneOf, faults_of
from include.training.trainers import TRAINERS


def estimator(trainer, kind):
    from sklearn import ensemble, linear_model

    binary = kind == TaskKind.BINARY
    if trainer == "baseline_rule":
        return linear_model.LogisticRegression if binary else linear_model.LinearRegression
    return ensemble.HistGradientBoostingClassifier if binary else ensemble.HistGradientBoostingRegressor


def values(accepted):
    """Return values at, below and above each limit."""
    if isinstance(accepted, OneOf):
        return [*accepted.values, "another"]
    if not isinstance(accepted, Number):
        return ["loss", None]
    step = 1 if accepted.whole else 0.25
    ends = [end for end in (accepted.low, accepted.high) if end is not None]
    kind = int if accepted.whole else float
    return [kind(end + off) for end in ends for off in (-step, 0, step)] + list(accepted.also)


def test_every_trainer_has_its_table_for_each_kind():
    assert PARAMETERS.keys() == TRAINERS.keys()
    assert all(set(kinds) == set(TaskKind) for kinds in PARAMETERS.values())


@pytest.mark.parametrize("kind", TaskKind)
@pytest.mark.parametrize("trainer", ["baseline_rule", "hist_gradient_boosting"])
def test_scikit_learn_accepts_what_the_table_accepts_and_nothing_else(trainer, kind):
    from sklearn.utils._param_validation import InvalidParameterError

    for name, accepted in PARAMETERS[trainer][kind].items():
        for value in values(accepted):
            one = estimator(trainer, kind)(**{name: value})
            try:
                one._validate_params()
                theirs = True
            except InvalidParameterError:
                theirs = False
            assert (accepted.fault(value) is None) == theirs, (name, value, accepted.fault(value))


@pytest.mark.parametrize("kind", TaskKind)
def test_what_the_table_of_gradient_boosting_lacks_is_no_value_of_json(kind):
    there = (
        set(inspect.signature(estimator("hist_gradient_boosting", kind)).parameters)
        - PARAMETERS["hist_gradient_boosting"][kind].keys()
    )
    assert there <= {"categorical_features", "monotonic_cst", "loss"}


@pytest.mark.parametrize("kind", TaskKind)
def test_the_network_takes_what_the_table_says(kind):
    from include.training.trainers.torch_mlp import fit_mlp

    taken = {
        name
        for name, one in inspect.signature(fit_mlp).parameters.items()
        if one.kind is inspect.Parameter.KEYWORD_ONLY
    } - {"run"}
    assert PARAMETERS["torch_mlp"][kind].keys() == taken


def test_values_of_a_search_are_looked_at_too():
    space = {
        "max_iter": Range(low=0, high=100, whole=True),
        "nobody": Choices(options=(1, 2)),
        "max_depth": Choices(options=(None, "deep")),
    }
    faults = faults_of(
        TaskKind.BINARY, "hist_gradient_boosting", {"max_iter": True, "tol": float("nan")}, Search(space=space)
    )
    assert [(name, value if value == value else "nan") for name, value, _ in faults] == [
        ("max_iter", True),
        ("tol", "nan"),
        ("nobody", 1),
        ("max_depth", "deep"),
    ]
    good = Search(
        space={"learning_rate": Range(low=0.01, high=1, log=True), "max_leaf_nodes": Range(low=2, high=9, whole=True)}
    )
    assert faults_of(TaskKind.BINARY, "hist_gradient_boosting", {"max_iter": 3}, good) == []
