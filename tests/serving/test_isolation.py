"""A model that hangs, allocates or crashes affects its own name only, whether it does so while it is tested or while it answers."""

import asyncio
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving import batching
from serving import predict as data_plane
from serving.bundle import Bundle, BundleError
from serving.checker import Checker, CheckError
from serving.lookup import FeatureLookup
from serving.problems import Problem
from serving.registry import ModelRegistry
from serving.served import Route, Served
from serving.version_files import Limits
from tests.serving.hostile import HostileMlflow, allocating_graph, entry, hanging_graph, hostile_mlflow
from tests.serving.stand import INSTANCES, NAME, expected, wait_for, write_bundle

OTHER = "others"
RAW = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}
mlflow = pytest.fixture(hostile_mlflow)


@pytest.fixture
def follow(tmp_path):
    made: list[ModelRegistry] = []

    def make(uri: str, **settings) -> ModelRegistry:
        made.append(ModelRegistry(uri, tmp_path / "cache", **{"poll_seconds": 0.05, "patience": 0.2, **settings}))
        return made[-1]

    yield make
    for registry in made:
        registry.close()


def checker(**settings) -> Checker:
    return Checker(**{"seconds": 30, "memory_bytes": 4 * 2**30, "threads": 1, "limits": Limits(), **settings})


def polled(models: ModelRegistry, condition, timeout: float = 60):
    def step():
        models.poll()
        return condition()

    return wait_for(step, timeout, lambda: (models.status(), [models.document(name) for name in models.models]))


def test_a_graph_that_hangs_in_its_golden_requests_is_ended_and_holds_up_no_other_model(mlflow, follow, tmp_path):
    mlflow.add(OTHER, write_bundle(tmp_path / "hangs", contract={"project": OTHER}, model=hanging_graph()))
    mlflow.add(NAME, write_bundle(tmp_path / "first", 1))
    models = follow(mlflow.url, check_seconds=8)
    polled(models, lambda: NAME in models.routes)
    hanging = models.document(OTHER)
    began = time.monotonic()
    mlflow.files[NAME] = write_bundle(tmp_path / "second", 2)
    mlflow.entries[1] = entry(NAME, "2")
    polled(models, lambda: models.serving(NAME).version == "2")
    assert time.monotonic() - began < 5 and hanging["state"] == "loading"  # the other one is being tested all the while
    assert models.up

    polled(models, lambda: models.document(OTHER)["state"] == "error")
    assert "did not end within 8 s (SERVING_CHECK_SECONDS)" in models.document(OTHER)["error"]


def test_a_test_without_a_result_is_repeated_twice_then_the_version_is_refused(mlflow, follow, tmp_path):
    mlflow.add(OTHER, write_bundle(tmp_path / "hangs", contract={"project": OTHER}, model=hanging_graph()))
    models = follow(mlflow.url, check_seconds=1)
    polled(models, lambda: models.document(OTHER)["state"] == "refused")
    assert models.document(OTHER)["error"].startswith("version 1: the test of its golden requests did not end")
    assert "(3 times)" in models.document(OTHER)["error"]


def test_the_killed_process_is_gone_and_the_next_version_is_tested_in_another_one(tmp_path):
    tested = checker(seconds=2)
    good = write_bundle(tmp_path / "good")
    tested.check(good, "")
    first = tested._process.pid
    with pytest.raises(CheckError, match="did not end within 2 s"):
        tested.check(write_bundle(tmp_path / "hangs", model=hanging_graph()), "")
    assert not [pid for pid in _processes() if _group(pid) == first]
    assert set(tested.check(good, "")) == {"model.onnx", "contract.json", "golden.json"}
    tested.close()
    assert not [pid for pid in _processes() if _group(pid) == tested._process.pid]


def test_a_graph_that_allocates_without_bound_ends_its_own_test_only(tmp_path):
    tested = checker(memory_bytes=2**30)
    with pytest.raises((BundleError, CheckError)):
        tested.check(write_bundle(tmp_path / "big", model=allocating_graph(4)), "")
    assert tested.check(write_bundle(tmp_path / "good"), "")
    tested.close()


def test_a_crash_is_reported_with_its_signal_and_the_next_version_is_tested(tmp_path, monkeypatch):
    """The fork dies as by a fault in ONNX Runtime: SIGXCPU, since its CPU limit is 0."""
    tested = checker()
    tested.check(write_bundle(tmp_path / "good"), "")
    monkeypatch.setattr(Checker, "cpu_seconds", property(lambda self: 1))
    tested._end()
    with pytest.raises(CheckError, match="crashed: signal"):
        tested.check(write_bundle(tmp_path / "hangs", model=hanging_graph()), "")
    assert tested.check(write_bundle(tmp_path / "good"), "")
    tested.close()


def test_the_process_that_tests_versions_has_none_of_the_services_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    tested = checker()
    tested.check(write_bundle(tmp_path / "good"), "")
    environment = Path(f"/proc/{tested._process.pid}/environ").read_bytes()
    tested.close()
    assert b"ORT_DISABLE_TELEMETRY" in environment
    assert b"secret" not in environment and b"AWS" not in environment and b"MLFLOW" not in environment


def test_a_download_that_drips_is_ended_and_holds_up_no_other_model(mlflow, follow, tmp_path):
    mlflow.add(OTHER, write_bundle(tmp_path / "drips", contract={"project": OTHER}))
    mlflow.add(NAME, write_bundle(tmp_path / "first", 1))
    mlflow.drip[f"/{OTHER}/model.onnx"] = 0.05
    models = follow(mlflow.url, fetch_seconds=2)
    began = time.monotonic()
    polled(models, lambda: NAME in models.routes)
    assert time.monotonic() - began < 10
    polled(models, lambda: models.document(OTHER)["state"] == "error")
    assert "not complete within 2 s" in models.document(OTHER)["error"]


def test_a_registry_that_drips_its_answer_is_reported_away(mlflow, follow, monkeypatch):
    monkeypatch.setattr("serving.mlflow_rest.SECONDS", 1.5)
    mlflow.entries = [entry(NAME, tags=[{"key": "x", "value": "y" * 10_000}])]
    mlflow.drip["registered-models/search"] = 0.1
    models = follow(mlflow.url)
    began = time.monotonic()
    models.poll()
    assert time.monotonic() - began < 4
    assert "not complete within 1.5 s" in models.error and not models.up


def test_a_registry_that_was_not_read_for_long_is_not_up_and_the_service_is_degraded(mlflow, follow, tmp_path):
    mlflow.add(NAME, write_bundle(tmp_path / "first", 1))
    models = follow(mlflow.url, stale_seconds=1)
    polled(models, lambda: NAME in models.routes)
    assert models.up and not models.stale and models.waiting() == []
    time.sleep(1.1)
    assert models.stale and not models.up and models.age > 1
    assert models.document(NAME)["error"].startswith("the registry was last read ")
    assert models.status()["stale"] and models.waiting() == []  # it keeps answering
    models.poll()
    assert models.up


def test_a_model_that_does_not_load_takes_no_readiness_from_the_others(mlflow, follow, tmp_path):
    mlflow.add(NAME, write_bundle(tmp_path / "first", 1))
    mlflow.add(OTHER, write_bundle(tmp_path / "bad", contract={"project": OTHER}, model=b"no graph"))
    models = follow(mlflow.url)
    polled(models, lambda: NAME in models.routes and models.document(OTHER)["state"] == "refused")
    assert models.waiting() == []
    named = follow(mlflow.url, names=(NAME, OTHER))
    polled(named, lambda: NAME in named.routes and named.document(OTHER)["state"] == "refused")
    assert named.waiting() == [f"model '{OTHER}' is not loaded"]  # it is named in the settings


# --- while it answers ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looping(tmp_path_factory) -> Served:
    """A champion whose golden requests are quick, and which loops for hours from the hour 100 on."""
    folder = write_bundle(tmp_path_factory.mktemp("loops"), model=hanging_graph(late_hour=100))
    return Served(NAME, "1", "models:/m-1", Bundle.load(folder), datetime.now(UTC))


async def _ask(served: Served, hour: float) -> float:
    made = await data_plane.answer(Route(served), FeatureLookup(None), [{**RAW, "hour": hour}])
    return made[0].prediction


def test_a_champion_that_hangs_for_some_inputs_never_blocks_the_event_loop_and_is_ended(looping, monkeypatch):
    monkeypatch.setattr(batching, "RUN_SECONDS", 1)

    async def both() -> tuple[float, float]:
        hangs = asyncio.create_task(_ask(looping, 100))
        await asyncio.sleep(0)
        longest, before = 0.0, time.perf_counter()
        while not hangs.done():
            await asyncio.sleep(0.01)
            longest, before = max(longest, time.perf_counter() - before), time.perf_counter()
        with pytest.raises(Problem, match="fails on these inputs"):
            await hangs
        return longest, await _ask(looping, 1)

    began = time.monotonic()
    longest, answer = asyncio.run(both())
    assert time.monotonic() - began < 10
    assert longest < 0.5
    assert answer == expected(RAW)  # the same model goes on


def test_few_requests_wait_for_a_model_that_hangs(looping, monkeypatch):
    monkeypatch.setattr(batching, "RUN_SECONDS", 2)

    async def many() -> list[object]:
        tasks = []
        for _ in range(batching.MOST_WAITING + 20):
            tasks.append(asyncio.create_task(_ask(looping, 100)))
            await asyncio.sleep(0.001)
        done, waiting = await asyncio.wait(tasks, timeout=0.5)
        for task in waiting:
            task.cancel()
        return [task.exception().kind for task in done]

    assert asyncio.run(many()) == ["model-busy"] * 20


def test_the_process_ends_although_a_graph_hangs(tmp_path):
    import subprocess
    import sys

    write_bundle(tmp_path, model=hanging_graph(late_hour=100))
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom serving.bundle import Bundle\nfrom serving.batching import Batcher\n"
        f"graph = Bundle.load(Path({str(tmp_path)!r})).graph\n"
        "async def main():\n    task = asyncio.create_task(Batcher(graph).run([[100., 0, 0, 0, 0]], [['a']]))\n    await asyncio.sleep(0.5)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, timeout=60, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_slowest_golden_request_decides_whether_a_graph_runs_in_the_event_loop(looping, tmp_path):
    assert looping.bundle.graph.seconds == float("inf")
    plain = Bundle.load(write_bundle(tmp_path))
    assert 0 < plain.graph.seconds < 0.1
    assert plain.predict(INSTANCES).tolist() == [expected(row) for row in INSTANCES]


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def test_hostile_mlflow_speaks_like_mlflow(mlflow, follow, tmp_path):
    """The other tests prove nothing if this server is not one that serving understands."""
    for number in range(150):
        mlflow.entries.append(entry(f"model_{number}", "x"))
    mlflow.add(NAME, write_bundle(tmp_path / "first", 1))
    models = follow(mlflow.url, patience=30)
    models.poll()
    assert models.serving(NAME).bundle.predict(INSTANCES[:1])[0] == expected(INSTANCES[0], 1)
    assert json.dumps(models.document("model_1")["error"]) == "\"the alias 'champion' names the version 'x', which is no number\""
    assert isinstance(mlflow, HostileMlflow)
