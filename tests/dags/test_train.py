"""Structure of the train DAG: one fit per compute class, each in its pool.

Only the best candidate is refitted, and nothing runs after a failed step.
"""

import pytest
from pydantic import ValidationError

from dags.train import create_train_dag
from include.projects.base import Candidate, Project, Range, Search
from include.projects.compute import ComputeClass
from include.projects.flights import project as flights

STEPS = ("plan_trials", "trial", "choose_candidates", "fit", "evaluate", "choose_refit", "refit")
SEARCH = Search(trials=4, at_once=2, space={"max_leaf_nodes": Range(low=3, high=31, whole=True)})


def project_with(*candidates: Candidate, **classes: ComputeClass) -> Project:
    return flights.model_copy(update={"name": "made", "candidates": candidates, "compute": classes})


def trees(**changes) -> Candidate:
    return Candidate(name="trees", trainer="hist_gradient_boosting", **changes)


def network(compute="gpu_small", **changes) -> Candidate:
    return Candidate(**{"name": "network", "trainer": "torch_mlp", "compute": compute, **changes})


def steps_of(project: Project) -> dict:
    """Return task id -> task for the tasks that differ by project."""
    return {task.task_id: task for task in create_train_dag(project).tasks if task.task_id.startswith(STEPS)}


def test_a_project_of_one_class_has_each_step_once():
    steps = steps_of(flights)
    assert set(steps) == {"choose_candidates", "fit", "evaluate", "refit"}
    assert {task.task_id for task in steps.values() if task.is_mapped} == {"fit"}
    assert {(steps[task].pool, steps[task].pool_slots) for task in ("fit", "evaluate", "refit")} == {("cpu", 1)}
    assert steps["fit"].upstream_task_ids == {"choose_candidates"}


def test_a_project_of_two_classes_fits_and_refits_in_both():
    steps = steps_of(project_with(trees(search=SEARCH), network(), gpu_small=ComputeClass(gpus=2)))
    assert set(steps) == {
        "plan_trials",
        "trial",
        "choose_candidates",
        "fit",
        "choose_candidates_gpu_small",
        "fit_gpu_small",
        "evaluate",
        "choose_refit",
        "refit",
        "refit_gpu_small",
    }
    assert {(steps[task].pool, steps[task].pool_slots) for task in ("trial", "fit", "refit", "evaluate")} == {
        ("cpu", 1)
    }
    for task in ("fit_gpu_small", "refit_gpu_small"):
        assert (steps[task].pool, steps[task].pool_slots) == ("gpu_small", 2)
    assert (
        steps["fit_gpu_small"].partial_kwargs["compute_class"]["gpus"]
        == steps["refit_gpu_small"].compute_class["gpus"]
        == 2
    )
    assert (steps["trial"].is_mapped, steps["trial"].max_active_tis_per_dagrun) == (True, 2)
    assert (
        steps["choose_candidates"].upstream_task_ids >= {"trial"}
        and "trial" not in steps["choose_candidates_gpu_small"].upstream_task_ids
    )
    assert steps["fit"].upstream_task_ids == {"choose_candidates"} and steps["fit_gpu_small"].upstream_task_ids == {
        "choose_candidates_gpu_small"
    }
    assert steps["evaluate"].upstream_task_ids == {"fit", "fit_gpu_small", "find_champion"}
    assert steps["choose_refit"].downstream_task_ids == {"refit", "refit_gpu_small"}


def test_what_comes_after_may_go_on_without_a_skipped_step_but_not_without_a_failed_one():
    tasks = {
        task.task_id: task
        for task in create_train_dag(project_with(trees(search=SEARCH), network(), gpu_small=ComputeClass())).tasks
    }
    rules = {task: tasks[task].trigger_rule for task in tasks}
    lenient = {"choose_candidates", "choose_candidates_gpu_small", "evaluate", "register"}
    assert {task for task, rule in rules.items() if rule == "none_failed_min_one_success"} == lenient
    assert {rule for task, rule in rules.items() if task not in lenient} == {"all_success"}
    assert tasks["register"].upstream_task_ids == {"refit", "refit_gpu_small"}


def test_the_baseline_rule_has_its_class_also_where_no_candidate_has():
    steps = steps_of(project_with(network(), gpu_small=ComputeClass(gpus=1)))
    assert set(steps) == {
        "choose_candidates",
        "fit",
        "choose_candidates_gpu_small",
        "fit_gpu_small",
        "evaluate",
        "refit_gpu_small",
    }


def test_the_classes_have_one_order():
    everywhere = [network(name=f"n_{c}", compute=c) for c in ("gpu_b", "gpu_a", "cpu", "big")]
    classes = {name: ComputeClass() for name in ("gpu_b", "gpu_a", "big")}
    project = project_with(*everywhere, **classes)
    assert project.fitting == project.refitting == ("cpu", "big", "gpu_a", "gpu_b")
    assert list(steps_of(project)) == list(steps_of(project_with(*reversed(everywhere), **classes)))


@pytest.mark.parametrize(("gpus", "slots"), [(0, 3), (2, 6)])
def test_a_class_s_steps_hold_the_slots_of_its_biggest_candidate(gpus, slots):
    several = [network(name=f"n_{n}", workers=n) for n in (1, 3)]
    steps = steps_of(project_with(trees(), *several, gpu_small=ComputeClass(gpus=gpus)))
    assert steps["fit_gpu_small"].pool_slots == steps["refit_gpu_small"].pool_slots == slots
    assert steps["fit"].pool_slots == steps["refit"].pool_slots == 1


def test_a_step_that_fits_nothing_holds_one_slot_whatever_the_workers():
    steps = steps_of(project_with(network(compute="cpu", workers=3)))
    assert (steps["fit"].pool_slots, steps["evaluate"].pool_slots) == (3, 1)


def test_a_candidate_of_an_unknown_class_is_refused_by_name():
    given = project_with(network(compute="gpu_smal"), gpu_small=ComputeClass()).model_dump()
    with pytest.raises(
        ValidationError,
        match="candidate 'network': project 'made' has no compute class 'gpu_smal'; it has cpu, gpu_small: add it to",
    ):
        Project.model_validate(given)
