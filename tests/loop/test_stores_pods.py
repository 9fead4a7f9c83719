"""The whole loop on S3, its training steps as pods where there is a cluster: two of them are evicted, and it comes to the same as with processes on files."""

import json
import threading
from contextlib import contextmanager, nullcontext

import pytest

from include import ledger
from include.data import layout, storage
from tests.cluster.machine import address_for_pods
from tests.cluster.namespace import Cluster, NoCluster, a_cluster
from tests.integration.s3.conftest import s3  # noqa: F401 -- one of this file's own: it listens where pods reach it
from tests.loop.probe import nothing_is_told
from tests.loop.stand import FLIGHTS, a_house, ends_alike, on_s3, replay

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def some_cluster():
    """A namespace of its own of the cluster that ``KUBECONFIG`` names; None where it names none: then training steps are processes here, too."""
    try:
        with a_cluster() as found:
            yield found
    except NoCluster as missing:
        print(f"training steps are processes on S3, too: {missing}")
        yield None


@pytest.fixture(scope="session")
def s3_host(some_cluster) -> str:
    """Where pods reach the S3 server."""
    return address_for_pods(some_cluster) if some_cluster else "127.0.0.1"


@pytest.mark.parametrize("kind", ["s3"])
def test_the_loop_closes(kind, tmp_path, monkeypatch, endings, some_cluster, s3):  # noqa: F811
    with endings.told(kind), a_house(kind, tmp_path, monkeypatch, s3=s3, cluster=some_cluster) as house:
        with evictions(some_cluster, "fit-torch-mlp", "refit") if some_cluster else nullcontext():
            ended = replay(house)
        endings.keep(kind, ended)
        if some_cluster:
            pods = pods_of_steps()
            assert pods.keys() >= {"fit-baseline_rule", "fit-hist_gradient_boosting", "fit-torch_mlp", "evaluate", "refit"}
            for step in ("fit-torch_mlp", "refit"):
                first, last = pods.pop(step)
                assert (first in ("evicted", "deleted"), last) == (True, "succeeded"), first  # deleted: it was gone before it was looked at again
            assert all(ended == ["succeeded"] for ended in pods.values()), pods
        on_s3(house.settings, house.api)
        nothing_is_told(kind, house.settings, house.api, s3)


def test_it_ends_as_on_files(endings, request):
    ends_alike(endings.of("s3", request=request), endings.of("files", request=request))


@contextmanager
def evictions(cluster: Cluster, *steps: str):
    """Evicts the first pod of each of these steps, as soon as it runs."""
    left, done = set(steps), threading.Event()

    def look() -> None:
        while left and not done.wait(0.2):
            for pod in cluster.pods():
                found = next((step for step in left if f"-{step}-" in pod.metadata.name), None)
                if found and pod.status.phase == "Running":
                    cluster.evict(pod)
                    left.remove(found)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not left, f"no pod of {left} was seen running"


def pods_of_steps() -> dict[str, list[str]]:
    """Training step -> how its pods ended."""
    kept = [path for request in ledger.requests("flights") for path in storage.files(layout.training(FLIGHTS, request.id)) if path.name.endswith(".pods.json")]
    costs = {path.name.removesuffix(".pods.json"): json.loads(path.read_text()).values() for path in kept}
    return {step: [pod["ended"] for pod in sorted(pods, key=lambda pod: pod["made"])] for step, pods in costs.items()}
