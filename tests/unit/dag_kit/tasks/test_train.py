"""The tasks of train: which candidates run in which compute class, and what the gate lets pass."""

import pytest

from include.dag_kit.tasks import train
from include.projects import get_project
from include.projects.base import Candidate, Range, Search
from include.projects.compute import ComputeClass
from include.training import manifest

SEARCH = Search(trials=2, space={"max_leaf_nodes": Range(low=3, high=31, whole=True)})
TWO_CLASSES = get_project("flights").model_copy(
    update={
        "candidates": (
            Candidate(name="trees", trainer="hist_gradient_boosting", search=SEARCH),
            Candidate(name="network", trainer="torch_mlp", compute="gpu"),
        ),
        "compute": {"gpu": ComputeClass(gpus=1)},
    }
)
BASIS = {"request": "r", "training_set": "/set", "champion": None, "champion_fitted_until": None}
pytestmark = pytest.mark.usefixtures("own_store")


@pytest.fixture(autouse=True)
def two_classes(monkeypatch):
    monkeypatch.setattr(train, "get_project", lambda name: TWO_CLASSES)


def asked(*candidates):
    return {"project": "flights", "id": "r", "parameters": {"candidates": list(candidates)}}


@pytest.mark.parametrize(
    ("candidates", "compute", "trials"),
    [
        pytest.param((), "cpu", ["0", "1"], id="all candidates: the searched one has its trials"),
        pytest.param((), "gpu", [], id="a class without a search has none"),
        pytest.param(("network",), "cpu", [], id="a candidate that is left out has none"),
    ],
)
def test_trials_are_planned_for_the_searched_candidates_of_a_class(candidates, compute, trials):
    planned = train.plan_trials.function(asked(*candidates), compute)
    assert [one["trial"] for one in planned] == trials


@pytest.mark.parametrize(
    ("candidates", "compute", "fits"),
    [
        pytest.param(("network",), "gpu", ["network"], id="a candidate runs in its class"),
        pytest.param(("network",), "cpu", ["baseline_rule"], id="the baseline always runs, on cpu"),
        pytest.param(("trees",), "gpu", [], id="a class may have nothing to fit"),
    ],
)
def test_candidates_are_fitted_in_their_class(candidates, compute, fits):
    chosen = train.choose_candidates.function(asked(*candidates), BASIS, compute)
    assert [one["candidate"] for one in chosen] == fits
    assert all(one["request"] == "r" and one["training_set"] == "/set" for one in chosen)


@pytest.mark.parametrize(("best", "task_id"), [("trees", "refit"), ("network", "refit_gpu")])
def test_the_best_candidate_is_refitted_in_its_class(own_store, best, task_id):
    evaluation = own_store / "evaluation.json"
    manifest.write(evaluation, {"candidate": best})
    assert train.choose_refit.function("flights", str(evaluation)) == task_id


@pytest.mark.parametrize("verdict", ["passed", "refused"])
def test_only_a_version_that_passed_goes_on(verdict):
    assert train.passed_the_gate.function({"gate": verdict}) == (verdict == "passed")
