"""A training step as a child process of its task."""

import time
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from include.dag_kit.compute import TrainingStep, child_environment, command_line, training_step
from include.dag_kit.defaults import RUN_TIMEOUT, default_args, training_timeout
from include.dag_kit.retries import OUTAGES, RETRIES, BackendOutageRetryPolicy
from include.projects import get_project
from include.projects.compute import ComputeClass
from include.settings import REPOSITORY, get_settings

FLIGHTS = get_project("flights")


@pytest.mark.parametrize("warm", ["", "yes"])
def test_a_step_that_runs_longer_than_its_class_allows_is_killed_and_says_so(monkeypatch, warm):
    monkeypatch.setenv("AIRFLOW_WORKERS_ARE_WARM", warm)
    step = TrainingStep(
        task_id="fit",
        project="flights",
        command="fit",
        arguments={},
        compute="gpu_a",
        compute_class={"timeout": "PT1S"},
    )
    began = time.monotonic()
    with pytest.raises(AirflowException, match="longer than the 0:00:01 of compute class gpu_a: killed"):
        step._run("timeit", ["-n", "1", "-r", "1", "-s", "import time", "time.sleep(60)"])
    assert time.monotonic() - began < 30


def test_a_step_takes_as_many_slots_of_its_class_s_pool_as_gpus():
    project = FLIGHTS.model_copy(update={"compute": {"gpu_a": ComputeClass(gpus=2)}})
    step = training_step(project, "fit", compute="gpu_a", arguments={})
    assert (step.task_id, step.pool, step.pool_slots) == ("fit_gpu_a", "gpu_a", 2)
    baseline = training_step(project, "fit", arguments={})
    assert (baseline.task_id, baseline.pool, baseline.pool_slots) == ("fit", "cpu", 1)


def test_a_fit_with_workers_takes_slots_for_all_of_them_and_an_evaluation_for_one():
    network = next(candidate for candidate in FLIGHTS.candidates if candidate.name == "torch_mlp")
    many = network.model_copy(update={"workers": 3, "compute": "gpu_a"})
    candidates = tuple(many if candidate is network else candidate for candidate in FLIGHTS.candidates)
    project = FLIGHTS.model_copy(update={"compute": {"gpu_a": ComputeClass(gpus=2)}, "candidates": candidates})
    assert training_step(project, "fit", compute="gpu_a", arguments={}).pool_slots == 6
    assert training_step(project, "evaluate", compute="gpu_a", arguments={}).pool_slots == 2


def test_a_step_on_a_cluster_is_a_pod_whose_end_resumes_the_task(monkeypatch):
    monkeypatch.setenv("AIRLOOP_COMPUTE", "kubernetes")
    monkeypatch.setenv("AIRLOOP_TRAINING_IMAGE", "image:1")
    get_settings.cache_clear()
    started = []
    pod = SimpleNamespace(start=lambda context, method: started.append(method) or {"event": 1})
    step = TrainingStep(task_id="fit", project="flights", command="fit", arguments={"request": "r"})
    monkeypatch.setattr(step, "_pod_of", lambda context: pod)
    monkeypatch.setattr(step, "pod_ended", lambda context, event: ["made", event])
    monkeypatch.setattr("include.dag_kit.compute.refuse_frozen_step", lambda *_: None, raising=False)
    monkeypatch.setattr("include.dag_kit.requests.refuse_frozen_step", lambda *_: None, raising=False)
    try:
        assert step.execute({"ti": SimpleNamespace(run_id="run")}) == ["made", {"event": 1}]
        assert started == ["pod_ended"]
    finally:
        get_settings.cache_clear()


def test_a_training_may_take_as_long_as_all_of_its_steps():
    limits = ComputeClass().timeout + ComputeClass().schedule_timeout + ComputeClass().start_timeout
    candidates = FLIGHTS.candidates[:2]
    project = FLIGHTS.model_copy(update={"candidates": candidates, "compute": {}})
    steps = sum(1 + (one.search.trials if one.search else 0) for one in candidates) + 2 + 1
    assert training_timeout(project) == RUN_TIMEOUT + 2 * steps * limits


def test_a_step_has_a_try_for_each_memory_size_of_its_class_and_more_for_what_comes_from_outside():
    project = FLIGHTS.model_copy(update={"compute": {"wide": ComputeClass(memory="1Gi", memory_max="32Gi")}})
    assert training_step(project, "fit", compute="wide", arguments={}).retries == 5 + 4 + OUTAGES
    assert training_step(project, "fit", arguments={}).retries == 2 + 4 + OUTAGES


def test_the_line_has_the_references_of_all_mapped_steps_and_none_of_a_skipped_one():
    assert command_line({"request": "abc", "fits": [["a", "b"], [], None, ["c"]], "champion": None}) == [
        "--request",
        "abc",
        "--fits",
        "a",
        "b",
        "c",
    ]


def test_a_class_that_the_project_has_not_is_named_with_those_it_has():
    with pytest.raises(ValueError, match="'flights' has no compute class 'gpu_x'; it has cpu"):
        training_step(FLIGHTS, "fit", compute="gpu_x", arguments={})


@pytest.mark.parametrize("warm", ["", "yes"])
def test_a_step_whose_error_must_come_again_has_one_try(monkeypatch, tmp_path, warm):
    monkeypatch.setenv("AIRFLOW_WORKERS_ARE_WARM", warm)
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    get_settings.cache_clear()
    arguments = {"request": "r", "candidate": "no_such_candidate", "training_set": str(tmp_path / "x.parquet")}
    step = TrainingStep(task_id="fit", project="flights", command="fit", arguments=arguments, retries=6)
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="fit", try_number=1, max_tries=6)
    with pytest.raises(AirflowFailException, match="another try would fail in the same way") as caught:
        step.execute({"ti": ti})
    assert "no_such_candidate" in str(caught.value)
    get_settings.cache_clear()


@pytest.mark.parametrize(("tries", "error"), [(2, AirflowException), (3, AirflowFailException)])
def test_a_step_that_fails_by_its_own_fault_has_three_tries(monkeypatch, tmp_path, tries, error):
    monkeypatch.setenv("AIRFLOW_WORKERS_ARE_WARM", "")
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    get_settings.cache_clear()
    step = TrainingStep(
        task_id="fit", project="flights", command="fit", arguments={"request": "r"}, module="no_such_module", retries=6
    )
    ti = SimpleNamespace(
        dag_id="d", run_id="r", task_id="fit", try_number=10 + tries, max_tries=16
    )  # cleared after ten tries
    with pytest.raises(AirflowException, match="No module named no_such_module") as caught:
        step.execute({"ti": ti})
    assert caught.type is error
    get_settings.cache_clear()


def test_a_child_process_gets_no_variable_of_airflow(monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    environment = child_environment()
    assert [name for name in environment if "AIRFLOW" in name and not name.startswith("AIRLOOP")] == []
    assert environment["AWS_REGION"] == "eu-central-1" and environment["PYTHONPATH"] == str(REPOSITORY)


def test_every_task_waits_for_a_store_that_is_unavailable_and_has_a_time_limit():
    defaults = default_args(FLIGHTS)
    assert isinstance(defaults["retry_policy"], BackendOutageRetryPolicy)
    assert defaults["retries"] == RETRIES + OUTAGES and defaults["owner"] == FLIGHTS.owner
    assert defaults["execution_timeout"].total_seconds() == 3600 and callable(defaults["pre_execute"])
