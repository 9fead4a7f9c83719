"""A restarted search proposes the same parameters, regardless of which process was killed.

Several processes share one study without duplicates or gaps.
"""

import itertools
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta

import optuna
import pytest
from pydantic import ValidationError

from include import ledger
from include.data import layout
from include.projects.base import Candidate, Choices, GatePolicy, Range, Search
from include.projects.flights import project as flights
from include.registry import requests
from include.registry.client import registry_client
from include.settings import get_settings
from include.training import candidates, manifest, search, steps, trainers
from tests.unit.training import made_up

pytestmark = pytest.mark.slow

COUNT = itertools.count()
CUTOFF = "2013-02-10T00:00:00Z"
SPACE = {
    "max_leaf_nodes": Range(low=3, high=63, whole=True),
    "learning_rate": Range(low=0.01, high=1, log=True),
    "min_samples_leaf": Choices(options=(5, 20, 80)),
}
# Where to also run the study's tests: a SQLAlchemy URL of a database that may be written to, for
# example Postgres.
OTHER_STORE = os.environ.get("AIRLOOP_TEST_OPTUNA_URL")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name, value in {
        "AIRLOOP_HOME": tmp_path / "home",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()
    yield tmp_path
    get_settings.cache_clear()


@pytest.fixture(params=["sqlite", *(["other"] if OTHER_STORE else [])])
def store(request, home, monkeypatch):
    """Return the study's database: SQLite, and another one if it is configured."""
    if request.param == "other":
        monkeypatch.setenv("AIRLOOP_OPTUNA_URL", OTHER_STORE)
        get_settings.cache_clear()


def made(trials=6, space=SPACE, **changes):
    """Return a new project with one candidate that searches."""
    candidate = Candidate(
        name="trees",
        trainer="hist_gradient_boosting",
        parameters={"max_iter": 10, "max_leaf_nodes": 7},
        search=Search(trials=trials, space=space, **changes),
    )
    other = Candidate(name="plain", trainer="hist_gradient_boosting", parameters={"max_iter": 5})
    name = f"made_{os.getpid()}_{next(COUNT)}"
    return flights.model_copy(
        update={
            "name": name,
            "candidates": (candidate, other),
            "gate": GatePolicy(min_rows=300, holdout=timedelta(days=10)),
        }
    )


def study_of(project, request="abc"):
    return search._study(project, request, project.candidates[0])


def finish(project, place, value, request="abc", error=None):
    """End a trial's step with any result."""
    candidate = project.candidates[0]
    parameters = manifest.read(search.write_proposal(project, request, candidate, place))["parameters"]
    record = {"step": "trial", "trial": place, "parameters": parameters, "value": value, "error": error, "fit_s": 0.1}
    manifest.write(search.trial_uri(project, request, candidate.name, place), record)
    return parameters


def test_a_trial_that_begins_again_has_the_same_parameters(store):
    project = made()
    candidate = project.candidates[0]
    first = search.propose(project, "abc", candidate, 3)
    assert search.propose(project, "abc", candidate, 4) != first
    assert search.propose(project, "abc", candidate, 3) == first
    assert first["max_iter"] == 10 and set(first) == {"max_iter", *SPACE}
    assert len(study_of(project).trials) == 2


def test_the_first_trial_tries_what_the_candidate_has(store):
    assert search.propose(made(), "abc", made().candidates[0], 0)["max_leaf_nodes"] == 7
    # The candidate's default is outside the search space.
    beyond = made(space={"max_leaf_nodes": Range(low=20, high=63, whole=True)})
    assert 20 <= search.propose(beyond, "abc", beyond.candidates[0], 0)["max_leaf_nodes"] <= 63


def test_proposals_learn_from_what_has_ended_and_depend_on_nothing_else(store):
    def tried():
        project = made(trials=30, space={"learning_rate": Range(low=0, high=1)})
        return [
            finish(
                project,
                place,
                -abs(0.8 - search.propose(project, "abc", project.candidates[0], place)["learning_rate"]),
            )
            for place in range(30)
        ]

    first, second = tried(), tried()
    assert first == second
    late = [abs(0.8 - p["learning_rate"]) for p in first[-10:]]
    # Ten random trials would be 0.34 away.
    assert sum(late) / 10 < 0.17


def test_another_request_is_another_study_and_so_is_a_changed_candidate(store):
    project = made()
    finish(project, 0, 0.7)
    assert search.propose(project, "other", project.candidates[0], 1)
    assert len(study_of(project, "other").trials) == 1
    changed = project.model_copy(
        update={"candidates": (project.candidates[0].model_copy(update={"parameters": {"max_iter": 20}}),)}
    )
    assert study_of(changed).trials == []


def test_the_study_is_told_by_whoever_comes_next(store):
    project = made(trials=4)
    for place, value in enumerate([0.6, 0.8, None]):
        finish(project, place, value, error=None if value else "ValueError: no")
    states = [t.state.name for t in study_of(project).trials]
    # The third one was killed between its manifest and any later write.
    assert states == ["COMPLETE", "COMPLETE", "RUNNING"]
    search.propose(project, "abc", project.candidates[0], 3)
    study_trials = study_of(project).trials
    assert [t.state.name for t in study_trials] == ["COMPLETE", "COMPLETE", "FAIL", "RUNNING"] and study_trials[
        1
    ].value == 0.8


def test_a_trial_that_begins_while_the_study_is_told_is_not_taken_for_a_double(store, monkeypatch):
    project = made()
    candidate = project.candidates[0]
    search.propose(project, "abc", candidate, 0)
    study, begun = study_of(project), []
    whole = study.get_trials

    def read_and_then_another_begins(*arguments, **options):
        trials = whole(*arguments, **options)
        if not begun:
            begun.append(search.propose(project, "abc", candidate, 1))
        return trials

    monkeypatch.setattr(study, "get_trials", read_and_then_another_begins)
    search._tell(study, project, "abc", candidate)
    assert [t.state.name for t in study_of(project).trials] == ["RUNNING", "RUNNING"]


def test_two_that_tell_the_study_of_one_trial_do_not_mind_each_other(store, monkeypatch):
    project = made()
    candidate = project.candidates[0]
    finish(project, 0, 0.7)
    study = study_of(project)
    whole = study._storage.set_trial_state_values

    def when_another_was_faster(*arguments, **options):
        search._tell(study_of(project), project, "abc", candidate)
        return whole(*arguments, **options)

    monkeypatch.setattr(study._storage, "set_trial_state_values", when_another_was_faster)
    search._tell(study, project, "abc", candidate)
    assert [(t.state.name, t.value) for t in study_of(project).trials] == [("COMPLETE", 0.7)]


@pytest.mark.parametrize(("higher_is_better", "winner"), [(True, 1), (False, 0)])
def test_the_winner_is_the_best_by_the_projects_metric(higher_is_better, winner):
    project = made(trials=4)
    project = project.model_copy(
        update={"metric": project.metric.model_copy(update={"higher_is_better": higher_is_better})}
    )
    tried = [
        finish(project, place, value, error=None if value else "broken")
        for place, value in enumerate([0.6, 0.8, None, 0.8])
    ]
    conclusion = manifest.read(search.conclude(project, "abc", project.candidates[0]))
    # The earlier of two equally good ones.
    assert conclusion["winner"] == winner and conclusion["parameters"] == tried[winner]
    assert [t["value"] for t in conclusion["trials"]] == [0.6, 0.8, None, 0.8]
    study = study_of(project)
    assert study.best_value == conclusion["trials"][winner]["value"] and study.direction.name == (
        "MAXIMIZE" if higher_is_better else "MINIMIZE"
    )


def test_a_search_in_which_nothing_has_a_figure_says_why():
    project = made(trials=2)
    for place in range(2):
        finish(project, place, None, error="TypeError: no such parameter")
    with pytest.raises(
        search.EmptySearchError,
        match=r"none of the 2 trials of 'trees' has a figure; the first one's reason: TypeError: no such parameter",
    ):
        search.conclude(project, "abc", project.candidates[0])


def _work(name: str, place: int) -> tuple[int, dict]:
    """In a separate process, begin a trial twice, as a retry does, and end it."""
    project = made(trials=12).model_copy(update={"name": name})
    get_settings.cache_clear()
    first = search.propose(project, "abc", project.candidates[0], place)
    assert search.propose(project, "abc", project.candidates[0], place) == first
    return place, finish(project, place, first["learning_rate"])


def test_several_processes_share_one_study_on_a_database_that_is_empty(store):
    # Two processes run each place concurrently: a task that was presumed dead, and its retry.
    project, places = made(trials=12), [*range(12), *range(12)]
    with ProcessPoolExecutor(6, mp_context=multiprocessing.get_context("spawn")) as processes:
        done = list(processes.map(_work, [project.name] * len(places), places))
    assert len(done) == 24
    conclusion = manifest.read(search.conclude(project, "abc", project.candidates[0]))
    counted = search._by_place(study_of(project).get_trials())
    assert sorted(counted) == list(range(12))
    for place, parameters in done:
        assert parameters == {**project.candidates[0].parameters, **counted[place].params}
    states = {t.number: t.state for t in study_of(project).trials}
    assert all(states[t.number] == optuna.trial.TrialState.COMPLETE for t in counted.values())
    assert set(states.values()) <= {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL}
    assert conclusion["parameters"]["learning_rate"] == max(p["learning_rate"] for _, p in done)


# --- the steps ------------------------------------------------------------------------------------


def run_step(project, name, given):
    """Run a step as ``include.training.__main__`` does, for a project that has no folder."""
    target = given.pop("manifest")
    steps_from = {"step": name, **given}
    if not manifest.finished(target, steps_from):
        getattr(steps, name)(project, manifest=target, made_from=steps_from, git_sha="abc", dag_run="run_1", **given)
    return target


def run_trial(project, request, basis, planned):
    shared = {k: basis[k] for k in ("request", "training_set", "champion_fitted_until")}
    place = int(planned["trial"])
    uri = search.write_proposal(project, request["id"], candidates.candidate_of(project, planned["candidate"]), place)
    target = str(search.trial_uri(project, request["id"], planned["candidate"], place))
    run_step(
        project,
        "trial",
        {"candidate": planned["candidate"], "trial": place, "parameters": uri, "manifest": target, **shared},
    )
    return manifest.read(target)


def test_trials_see_the_fits_rows_only_and_the_winner_is_fitted_judged_and_logged(home):
    rows = made_up.examples(flights, days=60, a_day=40)
    project = made(
        trials=3,
        space={
            "max_leaf_nodes": Range(low=3, high=31, whole=True),
            "learning_rate": Choices(options=(0.1, 0.3, "much")),
        },
    )
    request = ledger.request_retraining(project.name, cutoff=CUTOFF, reason="first_model", asked_by="a test")._asdict()
    basis = requests.judging_basis(project, request, made_up.write(project, request, rows))

    planned = requests.trials_of(project, request, "cpu")
    assert [(p["candidate"], p["trial"]) for p in planned] == [("trees", "0"), ("trees", "1"), ("trees", "2")]
    assert requests.trials_of(project, request, "gpu_a100") == []
    assert requests.trials_of(project, {**request, "parameters": {"candidates": ["plain"]}}, "cpu") == []
    tried = [run_trial(project, request, basis, p) for p in planned]
    assert any(t["error"] is None for t in tried)

    # The judged rows do not affect a trial: with other outcomes there, it has the same result.
    examples = steps.read_examples(project, basis["training_set"])
    split = steps._split(project, examples, None)
    changed = rows.assign(label=rows["label"].where(rows["label_known_at"] <= split, 1 - rows["label"]))
    again = {**request, "id": "changed"}
    other = {**basis, "request": "changed", "training_set": made_up.write(project, again, changed)}
    assert not changed["label"].equals(rows["label"])
    repeated = run_trial(project, again, other, planned[0])
    assert (repeated["value"], repeated["parameters"]) == (tried[0]["value"], tried[0]["parameters"])

    fits = requests.fits_of(project, request, basis)
    assert [f["candidate"] for f in fits] == ["trees", "plain", "baseline_rule"] and [
        "parameters" in f for f in fits
    ] == [True, False, False]
    assert (
        requests.fits_of(project, request, basis, "cpu") == fits
        and requests.fits_of(project, request, basis, "gpu_a100") == []
    )
    folder = layout.training(project, request["id"])
    uris = [
        run_step(project, "fit", {**given, "manifest": f"{folder}/fit-{given['candidate']}.json"}) for given in fits
    ]
    winner = manifest.read(fits[0]["parameters"])
    assert manifest.read(uris[0])["parameters"] == winner["parameters"] == tried[winner["winner"]]["parameters"]
    given = {**basis, "fits": uris, "manifest": f"{folder}/evaluate.json", "report": str(folder / "report")}
    judged = manifest.read(run_step(project, "evaluate", dict(given)))
    assert set(judged["candidates"]) == {"trees", "plain", "baseline_rule"}
    (folder / "evaluate.json").unlink()
    # Killed before its manifest, and run again: there are no duplicates.
    run_step(project, "evaluate", dict(given))

    client = registry_client()
    experiment = client.get_experiment_by_name(project.name).experiment_id
    runs = {r.data.tags["candidate"]: r for r in client.search_runs([experiment])}
    assert len(client.search_runs([experiment])) == len(runs) == 7
    trials = [runs[f"trees/trial_{place}"] for place in range(3)]
    assert {r.data.tags["mlflow.parentRunId"] for r in trials} == {runs["trees"].info.run_id}
    assert runs["trees"].data.tags["mlflow.parentRunId"] == runs["request"].info.run_id
    assert [place for place, r in enumerate(trials) if r.data.tags.get("winner")] == [winner["winner"]]
    assert runs["trees"].data.params["max_leaf_nodes"] == str(winner["parameters"]["max_leaf_nodes"])
    for trial, run in zip(tried, trials, strict=True):
        assert run.data.metrics.get("auc") == trial["value"] and run.data.params["max_leaf_nodes"] == str(
            trial["parameters"]["max_leaf_nodes"]
        )
        assert run.info.status == ("FAILED" if trial["error"] else "FINISHED")
    assert "trial" in (folder / "report" / "index.html").read_text()

    # The refit for deployment has the winner's parameters as well.
    judged["candidate"], judged["bundle"], judged["parameters"] = (
        "trees",
        manifest.read(uris[0])["bundle"],
        winner["parameters"],
    )
    manifest.write(folder / "evaluate.json", judged)
    manifest.write(folder / "verdict.json", {"passed": True})
    fitted = []
    whole = trainers.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trainers,
            "train",
            lambda project, candidate, *rest: (fitted.append(candidate), whole(project, candidate, *rest))[1],
        )
        refit = {
            "evaluation": f"{folder}/evaluate.json",
            "verdict": f"{folder}/verdict.json",
            "manifest": f"{folder}/refit.json",
        }
        run_step(project, "refit", {**{k: basis[k] for k in ("request", "training_set")}, **refit})
    assert [c.parameters for c in fitted] == [winner["parameters"]]


def test_parameters_that_the_trainer_refuses_end_the_trial_not_the_step():
    project = made(trials=1, space={"learning_rate": Choices(options=("much", "more"))})
    request = ledger.request_retraining(project.name, cutoff=CUTOFF, reason="first_model", asked_by="a test")._asdict()
    basis = requests.judging_basis(
        project, request, made_up.write(project, request, made_up.examples(flights, days=60, a_day=20))
    )
    record = run_trial(project, request, basis, {"candidate": "trees", "trial": "0"})
    assert record["value"] is None and "InvalidParameterError: The 'learning_rate' parameter" in record["error"]
    assert json.dumps(record, allow_nan=False)


# --- settings of a project ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"low": 3, "high": 3}, "a range from 3 to 3 is empty, so there is nothing to choose from"),
        ({"low": 0, "high": 3, "log": True}, "a logarithmic range must begin above 0, not at 0"),
        (
            {"low": 1.5, "high": 3, "whole": True},
            "a range of whole numbers must begin and end with one, not with 1.5 and 3",
        ),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Range(**wrong)


def test_a_project_says_which_classes_search():
    candidates = [
        Candidate(name=f"c_{compute}", trainer="torch_mlp", compute=compute, search=Search(space=SPACE, at_once=n))
        for compute, n in (("gpu_a", 2), ("cpu", 4))
    ]
    project = flights.model_copy(update={"candidates": (*candidates, *flights.candidates)})
    assert (project.searching, project.trials_at_once) == (("cpu", "gpu_a"), 2)
    assert (flights.searching, flights.trials_at_once) == ((), None)
