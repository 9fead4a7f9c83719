"""Tests of the benchmarks: their imports, their results and their calculations."""

import ast
import json
import platform

import pytest

from bench import bench_parse, result

BENCH, DAGS = result.REPOSITORY / "bench", result.REPOSITORY / "dags"
TASKS = result.REPOSITORY / "include" / "dag_kit" / "tasks"
# Tasks that only pass on a value or write a line into the ledger. They are part of an adjacent step
# when the work is called directly.
BOOKKEEPING = {
    "announce_tables",
    "fail_on_refused_files",
    "find_request",
    "request_retraining",
    "find_champion",
    "choose_candidates",
    "settle_request",
    "passed_the_gate",
    "announce_challenger",
    "announce_predictions",
    "choose_version",
    "announce_champion",
    "rollback",
}
# Tasks of projects with a search or with several compute classes. The measured project flights has
# neither.
OTHERS = {"plan_trials", "choose_refit"}
# Cleanup of a cluster, and of overdue requests.
TIDYING = {"delete_abandoned_pods", "sweep_overdue", "wake_train", "wake_deploy"}


@pytest.mark.parametrize("name", ["check_demo", "demo_checks", "demo_store", "raw_flights", "result"])
def test_the_check_of_the_demo_imports_nothing_of_the_system(name):
    imported = set()
    for node in ast.walk(ast.parse((BENCH / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert "bench" in imported or name in ("raw_flights", "demo_store", "result")
    assert not imported & {"include", "serving", "feature_repo", "airflow", "dags"}


def test_every_task_that_does_work_is_a_step_of_the_loop_benchmark():
    from bench.loop_steps import steps

    names = set()
    for file in (*DAGS.glob("*.py"), *TASKS.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(decorator).startswith("task") for decorator in node.decorator_list
            ):
                names.add(node.name)
    known = {name.partition("_")[0] if name.startswith("fit_") else name for name in steps()} | {"ingest_source"}
    assert len(names) > 15
    assert names - BOOKKEEPING - OTHERS - TIDYING - known == set(), (
        "a task of a DAG is not measured: add it to bench/loop_steps.py"
    )
    assert known - names == {
        "fit",
        "evaluate",
        "refit",
        "roll_out",
        *(n for n in known if n.startswith("ingest_") and n != "ingest_source"),
    }


def test_a_result_says_where_and_with_what_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(result, "RESULTS", tmp_path)
    record = json.loads(result.write("x", {"ratio": 1.5}, ["pytest", "no-such-package"]).read_text())
    assert record["ratio"] == 1.5
    assert record["machine"]["cores"] >= 1
    assert record["versions"] == {
        "python": platform.python_version(),
        "pytest": pytest.__version__,
        "no-such-package": None,
    }


@pytest.mark.parametrize("secret", [str(result.REPOSITORY), f"at {platform.node()} "], ids=["folder", "host name"])
def test_a_result_that_names_this_machine_is_not_written(tmp_path, monkeypatch, secret):
    monkeypatch.setattr(result, "RESULTS", tmp_path)
    monkeypatch.setattr(platform, "node", lambda: "some-host")
    with pytest.raises(ValueError, match="would tell of this machine"):
        result.write(
            "x",
            {"where": secret.replace(platform.node(), "some-host") if "host" in secret else f"{secret} some-host"},
            [],
        )
    assert not list(tmp_path.iterdir())


def test_a_file_and_its_peer_take_turns_and_the_ratio_is_that_of_medians(tmp_path):
    ours, peer, order = tmp_path / "ours.py", tmp_path / "peer.py", []
    times = {ours: iter([3.0, 9.0, 3.0]), peer: iter([2.0, 2.0, 8.0])}

    def run(file):
        order.append(file)
        return bench_parse.Sample(next(times[file]), 1.0)

    comparison = bench_parse.compare(ours, peer, 3, run)
    assert comparison["ratio"] == 1.5
    assert order == [peer, ours, ours, peer, peer, ours]


def test_a_file_that_does_not_parse_is_not_timed(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("raise ValueError('no')")
    with pytest.raises(RuntimeError, match=r"bad.py does not parse"):
        bench_parse.run_file(bad, bench_parse.environment_of(tmp_path))


def test_the_loop_is_reckoned_by_medians_over_the_passes():
    from bench.bench_loop import summary

    def one(airflow, fresh, warm):
        steps = {"steps": {"a": 1.0}}
        return {
            "until": "x",
            "airflow": {"seconds": airflow, "stages": {}, "task_seconds": {}, "tasks": 20},
            "fresh": {"seconds": fresh, **steps},
            "warm": {"seconds": warm, **steps},
        }

    figures = summary([one(30, 60, 20), one(90, 50, 20), one(32, 64, 19)])
    assert (figures["ratio_fresh"], figures["ratio_warm"], figures["excess_s_per_task"]) == (
        round(32 / 60, 3),
        1.6,
        0.6,
    )
