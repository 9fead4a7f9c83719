"""A model that hangs, allocates or crashes affects only its own name.

This holds while it is tested and while it answers.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.features.lookup import FeatureLookup
from serving.models import batching, graph
from serving.models.bundle import Bundle, BundleError
from serving.models.checker import Checker, CheckError, Checkers
from serving.models.loaded_model import LoadedModel, Route
from serving.models.onnx_file import SIZED_BY, operators
from serving.models.registry import ModelRegistry
from serving.models.version_files import FileLimits
from serving.predicting import predict as data_plane
from serving.problems import ProblemError
from tests.serving.harness import INSTANCES, NAME, REPOSITORY, expected, write_bundle
from tests.serving.hostile import HostileMlflow, allocating_graph, entry, hanging_graph, hostile_mlflow, sized_graph
from tests.waiting import wait_for

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


@pytest.fixture
def lent_checks() -> None:
    """Give each service of this file its own child processes: their ends are tested."""


def checker(**settings) -> Checker:
    return Checker(**{"seconds": 30, "memory_bytes": 4 * 2**30, "threads": 1, "limits": FileLimits(), **settings})


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
    # The other model is still being tested.
    assert time.monotonic() - began < 5 and hanging["state"] == "loading"
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


def test_a_process_that_ended_for_want_of_work_is_reaped_by_the_next_poll(tmp_path, monkeypatch):
    pool = Checkers(2, seconds=30, memory_bytes=4 * 2**30, threads=1, limits=FileLimits())
    folder = write_bundle(tmp_path)
    pool.check(folder, "", Bundle.load(folder).digests)
    tested = pool._free.queue[-1]
    pid = tested._process.pid
    tested._process.stdin.close()  # as after 30 s: the child ends
    wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z", 10)
    pool.reap()
    assert not Path(f"/proc/{pid}").exists() and tested._process is None
    assert pool._free.qsize() == 2
    pool.check(write_bundle(tmp_path / "second", 1), "", Bundle.load(tmp_path / "second").digests)
    pool.close()


def test_a_fork_whose_parent_was_killed_is_reaped_by_a_service_that_is_init(tmp_path):
    """The stopped child cannot reap its fork. The service adopts the fork, as in a container."""
    program = (
        "import ctypes, os, signal, sys, threading, time\nfrom pathlib import Path\nfrom serving.models.checker import"
        " Checker\n"
        "from serving.models.version_files import FileLimits\nctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"  # PR_SET_CHILD_SUBREAPER  # noqa: E501
        "tested = Checker(seconds=3, memory_bytes=4 * 2**30, threads=1, limits=FileLimits())\ntested.warm()\npid ="
        " tested._process.pid\n"
        "threading.Timer(1.5, os.kill, (pid, signal.SIGSTOP)).start()\n"
        f"try:\n    tested.check(Path({str(write_bundle(tmp_path, model=hanging_graph()))!r}), '')\nexcept Exception as"
        " error:\n    print(error)\n"
        "children = Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text().split()\nprint('children',"
        " len(children))\n"
    )
    root = REPOSITORY
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, timeout=90, check=False, capture_output=True, text=True
    )
    assert "did not end within 3 s" in done.stdout and done.stdout.endswith("children 0\n"), done.stdout + done.stderr


def test_a_graph_that_allocates_without_bound_ends_its_own_test_only(tmp_path):
    tested = checker(memory_bytes=2**30)
    with pytest.raises((BundleError, CheckError)):
        tested.check(write_bundle(tmp_path / "big", model=allocating_graph(4)), "")
    assert tested.check(write_bundle(tmp_path / "good"), "")
    tested.close()


def test_a_crash_is_reported_with_its_signal_and_the_next_version_is_tested(tmp_path, monkeypatch):
    """A crash is reported with its signal, and the next version is tested.

    The fork dies as by a fault in ONNX Runtime: its signal is SIGXCPU, because its CPU limit is 0.
    """
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
    monkeypatch.setattr("serving.models.mlflow_rest.SECONDS", 1.5)
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
    assert named.waiting() == [f"model '{OTHER}' is not loaded"]  # the settings name it


# --- while the model answers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def looping(tmp_path_factory) -> LoadedModel:
    """Return a champion with quick golden requests that loops for hours from hour 100 on."""
    folder = write_bundle(tmp_path_factory.mktemp("loops"), model=hanging_graph(late_hour=100))
    return LoadedModel(NAME, "1", "models:/m-1", Bundle.load(folder), datetime.now(UTC))


async def _ask(served: LoadedModel, hour: float) -> float:
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
        with pytest.raises(ProblemError, match="fails on these inputs"):
            await hangs
        return longest, await _ask(looping, 1)

    began = time.monotonic()
    longest, answer = asyncio.run(both())
    assert time.monotonic() - began < 10
    assert longest < 0.5
    assert answer == expected(RAW)  # the same model continues


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


# --- what its golden requests do not show


@pytest.mark.parametrize("operator", sorted(SIZED_BY))
def test_a_graph_with_a_tensor_whose_size_is_a_value_never_runs_in_the_event_loop(operator):
    """Each operator, with its size from the request, from the number of rows, and constant."""
    for place in SIZED_BY[operator]:
        for origin, bounded in (("numeric", False), ("shape", True), ("constant", True)):
            size = {"numeric": ["numeric"], "shape": ["rows"], "constant": ["fixed"]}[origin]
            steps = [
                helper.make_node("Shape", ["numeric"], ["rows"]),
                helper.make_node("Cast", size, ["whole"], to=TensorProto.INT64),
                helper.make_node("Squeeze", ["whole"], ["size"]),
                helper.make_node(operator, ["fixed"] * place + ["size"], ["sized"]),
            ]
            numeric = helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["n", 1])
            body = helper.make_graph(steps, "sized", [numeric], [], [numpy_helper.from_array(np.array([1]), "fixed")])
            assert operators(helper.make_model(body).SerializeToString()).bounded is bounded, (place, origin)


@pytest.mark.parametrize("how", ["subgraph", "function"])
def test_sizes_within_graphs_and_functions_are_not_followed_and_count(how):
    sized = helper.make_node("ConstantOfShape", ["fixed"], ["sized"])
    numeric = helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["n", 1])
    constants = [numpy_helper.from_array(np.array([1]), "fixed"), numpy_helper.from_array(np.array(True), "yes")]
    if how == "subgraph":
        inner = helper.make_graph(
            [sized], "branch", [], [helper.make_tensor_value_info("sized", TensorProto.FLOAT, [1])]
        )
        body = helper.make_graph(
            [helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)],
            "outer",
            [numeric],
            [],
            constants,
        )
        model = helper.make_model(body)
    else:
        function = helper.make_function("own", "make", ["fixed"], ["sized"], [sized], [helper.make_opsetid("", 18)])
        body = helper.make_graph(
            [helper.make_node("make", ["fixed"], ["out"], domain="own")], "outer", [numeric], [], constants
        )
        model = helper.make_model(
            body, functions=[function], opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        )
    assert not operators(model.SerializeToString()).bounded


def test_a_graph_whose_time_is_a_value_of_the_request_runs_in_a_thread(tmp_path):
    assert Bundle.load(write_bundle(tmp_path, model=sized_graph())).graph.seconds == float("inf")


@pytest.mark.parametrize(("power", "quick"), [(1, True), (2, False), (3, False)])
def test_a_graph_whose_time_grows_faster_than_its_rows_runs_in_a_thread(power, quick, tmp_path, monkeypatch):
    """A clock of the test's own: a run of n rows takes 20 microseconds times a power of n."""
    folder = write_bundle(tmp_path)
    predict, now = graph.Graph.predict, [0.0]

    def slower(self, rows):
        now[0] += 2e-5 * len(rows) ** power
        return predict(self, rows)

    monkeypatch.setattr(graph.Graph, "predict", slower)
    monkeypatch.setattr(graph.time, "perf_counter", lambda: now[0])
    seconds = Bundle.load(folder).graph.seconds
    assert seconds == (pytest.approx(2e-5) if quick else float("inf"))


def test_a_run_in_the_event_loop_that_takes_long_is_the_last_one_there(tmp_path, monkeypatch, caplog):
    served = LoadedModel(NAME, "1", "models:/m-1", Bundle.load(write_bundle(tmp_path)), datetime.now(UTC))
    assert served.bundle.graph.seconds < batching.INLINE_SECONDS
    monkeypatch.setattr(graph, "SLOW_SECONDS", 0.0)
    assert asyncio.run(_ask(served, 1)) == expected(RAW)
    assert served.bundle.graph.seconds == float("inf") and "it runs in a thread from now on" in caplog.text
    assert asyncio.run(_ask(served, 1)) == expected(RAW)
    assert served.batcher._thread is not None


def test_the_process_ends_although_a_graph_hangs(tmp_path):
    write_bundle(tmp_path, model=hanging_graph(late_hour=100))
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom serving.models.bundle import Bundle\nfrom"
        f" serving.models.batching import Batcher\ngraph = Bundle.load(Path({str(tmp_path)!r})).graph\nasync def"
        " main():\n    task = asyncio.create_task(Batcher(graph).run([[100., 0, 0, 0, 0]], [['a']]))\n    await"
        " asyncio.sleep(0.5)\nasyncio.run(main())\n"
    )
    root = REPOSITORY
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
    """The fake MLflow answers like MLflow. Otherwise the other tests would prove nothing."""
    for number in range(150):
        mlflow.entries.append(entry(f"model_{number}", "x"))
    mlflow.add(NAME, write_bundle(tmp_path / "first", 1))
    models = follow(mlflow.url, patience=30)
    models.poll()
    assert models.serving(NAME).bundle.predict(INSTANCES[:1])[0] == expected(INSTANCES[0], 1)
    assert (
        json.dumps(models.document("model_1")["error"])
        == "\"the alias 'champion' names the version 'x', which is not a number\""
    )
    assert isinstance(mlflow, HostileMlflow)
