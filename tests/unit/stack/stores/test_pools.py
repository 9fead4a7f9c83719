"""Pools from settings and from a cluster's nodes."""

import pytest

from include.projects.base import Candidate
from include.projects.compute import ComputeClass, Toleration
from include.projects.flights import project as flights
from include.settings import Settings
from include.stack.stores import pools
from include.stack.stores.pools import PoolsError, parse, pools_of_cluster, pools_of_settings

GPU_A = ComputeClass(gpus=2, node_selector={"gpu": "a"}, tolerations=(Toleration(key="gpu"),))


def node(cpu="8", memory="32Gi", gpus=0, labels=None, taints=(), unschedulable=False):
    spec = {"unschedulable": unschedulable, "taints": [{"key": t, "effect": "NoSchedule"} for t in taints]}
    return {
        "metadata": {"labels": labels or {}},
        "spec": spec,
        "status": {"allocatable": {"cpu": cpu, "memory": memory, "nvidia.com/gpu": str(gpus)}},
    }


def test_pools_are_read_from_text():
    assert parse("cpu=4, gpu_a=2") == {"cpu": 4, "gpu_a": 2}


@pytest.mark.parametrize("wrong", ["cpu", "cpu=0", "cpu=two", "CPU=1", "cpu:4"])
def test_a_wrong_text_is_refused_with_the_right_form(wrong):
    with pytest.raises(PoolsError, match="AIRLOOP_POOLS has .*write each pool as name=slots"):
        parse(f"gpu_a=2,{wrong}")


def test_a_class_that_is_not_named_gets_what_the_machine_runs_at_once_or_one_step_on_gpus(monkeypatch):
    monkeypatch.setattr(pools, "classes_of_projects", lambda: {"cpu": ComputeClass(), "gpu_a": GPU_A})
    assert pools_of_settings(Settings(parallelism=6)) == {"cpu": 6, "gpu_a": 2}
    assert pools_of_settings(Settings(parallelism=6, pools="gpu_a=8")) == {"cpu": 6, "gpu_a": 8}


def test_a_step_with_several_workers_has_room(monkeypatch):
    networks = tuple(Candidate(name=f"n_{c}", trainer="torch_mlp", compute=c, workers=5) for c in ("cpu", "gpu_a"))
    project = flights.model_copy(update={"candidates": networks, "compute": {"gpu_a": GPU_A}})
    monkeypatch.setattr(pools, "all_projects", lambda: [flights, project])
    assert pools_of_settings(Settings(parallelism=4)) == {"cpu": 5, "gpu_a": 10}
    with pytest.raises(PoolsError, match="gives gpu_a 8 slots, and one step of that class takes 10"):
        pools_of_settings(Settings(pools="gpu_a=8"))
    roomy = node(gpus=8, labels={"gpu": "a"}, taints=["gpu"])
    with pytest.raises(
        PoolsError, match="no room for one step of compute class gpu_a: it asks for 5 times 2 nvidia.com/gpu on nodes"
    ):
        pools_of_cluster([roomy], {"gpu_a": GPU_A})
    assert pools_of_cluster([roomy, roomy], {"gpu_a": GPU_A}) == {"gpu_a": 16}


def test_the_gpus_of_one_project_are_not_multiplied_by_the_workers_of_another(monkeypatch):
    def with_class(gpus, workers):
        candidate = Candidate(name="network", trainer="torch_mlp", compute="gpu_a", workers=workers)
        return flights.model_copy(update={"candidates": (candidate,), "compute": {"gpu_a": ComputeClass(gpus=gpus)}})

    monkeypatch.setattr(pools, "all_projects", lambda: [with_class(4, 1), with_class(1, 4)])
    assert pools_of_settings(Settings(parallelism=2, pools="gpu_a=4"))["gpu_a"] == 4  # no step takes more than four
    with pytest.raises(PoolsError, match="gives gpu_a 3 slots, and one step of that class takes 4"):
        pools_of_settings(Settings(pools="gpu_a=3"))


def test_a_pool_in_which_no_step_would_ever_run_is_refused(monkeypatch):
    monkeypatch.setattr(pools, "classes_of_projects", lambda: {"cpu": ComputeClass(), "gpu_a": GPU_A})
    with pytest.raises(PoolsError, match="gives gpu_a 1 slots, and one step of that class takes 2"):
        pools_of_settings(Settings(pools="gpu_a=1"))


def test_slots_are_counted_on_the_nodes_that_a_class_may_go_to():
    nodes = [
        node(cpu="4", memory="9Gi"),
        node(gpus=5, labels={"gpu": "a"}, taints=["gpu"]),
        node(gpus=4, labels={"gpu": "b"}, taints=["gpu"]),
        node(gpus=4, labels={"gpu": "a"}, taints=["gpu"], unschedulable=True),
        node(gpus=4, labels={"gpu": "a"}, taints=["gpu", "mine"]),
        node(labels={"gpu": "a"}) | {"status": {}},  # a node that only just joins
    ]
    # Four steps of 1 core and 2 GiB fit on the only node without a taint. With steps of two GPUs,
    # one of five GPUs is left over.
    assert pools_of_cluster(nodes, {"cpu": ComputeClass(), "gpu_a": GPU_A}) == {"cpu": 4, "gpu_a": 4}


def test_a_class_that_no_node_fits_is_an_error_that_says_what_it_looks_for():
    with pytest.raises(
        PoolsError,
        match="no room for one step of compute class gpu_a: it asks for 2 nvidia.com/gpu on nodes with labels gpu=a",
    ):
        pools_of_cluster([node()], {"gpu_a": GPU_A})
