"""The whole loop on S3, Postgres and Redis, with training steps as pods if a cluster is available.

Two pods are evicted. The result is the same as with processes on files, nothing is stored in a file
of the home, and no secret leaks. Without a cluster, ``test_stores.py`` has Postgres and Redis.
"""

import json
import threading
from contextlib import contextmanager, nullcontext

import pytest

from include import ledger
from include.data import layout, storage
from tests.cluster.machine import address_for_pods
from tests.cluster.namespace import Cluster, NoClusterError, a_cluster
from tests.integration.s3.conftest import s3  # noqa: F401 -- one of this file's own: it listens where pods reach it
from tests.loop.harness import FLIGHTS, a_house, ends_alike, on_s3, replay
from tests.loop.probe import assert_nothing_leaks

pytestmark = [pytest.mark.stack, pytest.mark.timeout(3000)]


@pytest.fixture(scope="session")
def some_cluster():
    """Return a new namespace of the cluster that ``KUBECONFIG`` names, or None if it is not set.

    With None, training steps are processes here, too.
    """
    try:
        with a_cluster() as test_cluster:
            yield test_cluster
    except NoClusterError as missing:
        print(f"training steps are processes on S3, too: {missing}")
        yield None


@pytest.fixture(scope="session")
def s3_host(some_cluster) -> str:
    """Return the address at which pods reach the S3 server."""
    return address_for_pods(some_cluster) if some_cluster else "127.0.0.1"


@pytest.mark.parametrize("kind", ["s3"])
def test_the_loop_closes(kind, tmp_path, monkeypatch, endings, some_cluster, s3, request):  # noqa: F811
    servers = tuple(request.getfixturevalue(f"{name}_server") for name in ("postgres", "redis")) if some_cluster else ()
    with (
        endings.guarantee(kind),
        a_house(kind, tmp_path, monkeypatch, s3=s3, cluster=some_cluster, servers=servers) as house,
    ):
        with evictions(some_cluster, "fit-torch-mlp", "refit") if some_cluster else nullcontext():
            ended = replay(house)
        endings.keep(kind, ended)
        if some_cluster:
            pods = pods_of_steps()
            assert pods.keys() >= {
                "fit-baseline_rule",
                "fit-hist_gradient_boosting",
                "fit-torch_mlp",
                "evaluate",
                "refit",
            }
            for step in ("fit-torch_mlp", "refit"):
                first, last = pods.pop(step)
                # "deleted": the pod was gone before the next check.
                assert (first in ("evicted", "deleted"), last) == (True, "succeeded"), first
            assert all(ended == ["succeeded"] for ended in pods.values()), pods
            assert [file.name for file in house.settings.home.rglob("*.db")] == []  # nothing fell back to a file
        on_s3(house.settings, house.api)
        assert_nothing_leaks(kind, house.settings, house.api, s3)


def test_it_ends_as_on_files(endings, request):
    ends_alike(endings.of("s3", request=request), endings.of("files", request=request))


@contextmanager
def evictions(cluster: Cluster, *steps: str):
    """Evict the first pod of each of these steps as soon as it runs."""
    left, done = set(steps), threading.Event()

    def look() -> None:
        while left and not done.wait(0.2):
            for pod in cluster.pods():
                victim = next((step for step in left if f"-{step}-" in pod.metadata.name), None)
                if victim and pod.status.phase == "Running":
                    cluster.evict(pod)
                    left.remove(victim)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not left, f"no pod of {left} was seen running"


def pods_of_steps() -> dict[str, list[str]]:
    """Return training step -> how its pods ended."""
    kept = [
        path
        for request in ledger.requests("flights")
        for path in storage.files(layout.training(FLIGHTS, request.id))
        if path.name.endswith(".pods.json")
    ]
    costs = {path.name.removesuffix(".pods.json"): json.loads(path.read_text()).values() for path in kept}
    return {step: [pod["ended"] for pod in sorted(pods, key=lambda pod: pod["made"])] for step, pods in costs.items()}
