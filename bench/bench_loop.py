"""Measure Airflow's overhead: one pass of all stages through Airflow, and by direct calls.

    python bench/bench_loop.py [--passes 3]

Three homes under a temporary directory process the same weeks of real flights. Each has its own
tables, MLflow and serving. In ``airflow`` the work goes through Airflow. In ``fresh`` each step is
a new interpreter, as in a shell script. In ``warm`` one interpreter with all imports does all
steps.

The homes take turns. While another home works, Airflow's processes are suspended, so that their
polling does not affect the measurement. A first pass over January to mid February makes a first
model and is not counted. Then each pass is one more week: files to validate, features, scores,
monitoring, three fits, and an evaluated and registered model. The pass ends when serving has loaded
that model.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from bench import result
from bench.loop_homes import Home, Warm, halted
from bench.loop_steps import PROJECT, steps
from include import ledger
from include.projects.base import STAGES
from include.settings import get_settings
from include.stack import lifecycle
from include.stack.api import AirflowApi

BEGINNING, HISTORY_UNTIL, WEEK = (
    datetime(2012, 12, 30, tzinfo=UTC),
    datetime(2013, 2, 15, 10, tzinfo=UTC),
    timedelta(days=7),
)
AIM_FRESH, AIM_WARM = 1.0, 1.5
STAGE_TIMEOUT_S = 900.0
PACKAGES = ("apache-airflow", "mlflow", "feast", "great-expectations", "evidently", "scikit-learn", "torch", "pandas")
HOW = (
    "wall time of a pass, medians; fresh: an interpreter for each step, one after the other; warm: one interpreter with"
    " everything imported; Airflow's own processes are halted while the others work. Airflow runs what it can side by"
    " side, and each training step as a child process."
)


def fresh_pass(home: Home, state: dict, folder: Path) -> dict:
    """Run every step in a new interpreter. Return ``seconds`` and the seconds of each step."""
    file, taken, began = folder / "state.json", {}, time.perf_counter()
    file.write_text(json.dumps(state))
    for name, step in steps().items():
        step_began = time.perf_counter()
        if step:
            home.run("-m", "bench.loop_steps", "step", name, str(file))
        else:
            home.run("-m", "include.training", *json.loads(file.read_text())["lines"][name])
        taken[name] = time.perf_counter() - step_began
    return {"seconds": time.perf_counter() - began, "steps": taken}


def airflow_pass(api: AirflowApi, cutoff: str) -> dict:
    """Run all stages through Airflow, from the trigger of ingest until deploy has finished."""
    began, stages, since = time.perf_counter(), {}, datetime.now(UTC)
    api.trigger(f"{PROJECT}__ingest", {"cutoff": cutoff})
    for stage in ("ingest", "build_features", "score", "monitor"):
        stages[stage], summary = _await(api, stage, lambda stage=stage: ledger.stage_record(PROJECT, stage, cutoff))
    if not summary["summary"].get("asked"):
        api.trigger(f"{PROJECT}__train", {"cutoff": cutoff, "reason": "person"})
    stages["train"], request = _await(api, "train", lambda: _judged_request(cutoff))
    # Each pass must deploy. A challenger that passed the gate is deployed automatically.
    if request.state == "refused":
        api.trigger(f"{PROJECT}__deploy", {"cutoff": cutoff, "version": str(request.outcome["version"])})
    stages["deploy"], _ = _await(api, "deploy", lambda: ledger.stage_record(PROJECT, "deploy", cutoff))
    seconds = time.perf_counter() - began
    tasks: dict[str, list[float]] = {}
    for run in _runs_since(api, since):
        for task in api.task_instances(run["dag_id"], run["dag_run_id"]):
            if task["state"] == "success":
                tasks.setdefault(f"{run['dag_id'].partition('__')[2]}.{task['task_id']}", []).append(
                    task["duration"] or 0.0
                )
    return {
        "seconds": seconds,
        "stages": stages,
        "tasks": sum(map(len, tasks.values())),
        "task_seconds": {name: sum(t) for name, t in tasks.items()},
    }


def _judged_request(cutoff: str) -> ledger.Request | None:
    return next(
        (r for r in ledger.requests(PROJECT) if r.cutoff == cutoff and r.state not in ("open", "claimed")), None
    )


def _await(api: AirflowApi, stage: str, done) -> tuple[float, object]:
    """Wait until ``done()`` returns a true value. Return the seconds and that value."""
    began = looked = time.perf_counter()
    while not (value := done()):
        now = time.perf_counter()
        if now - looked > 3:
            looked = now
            failed = [r["dag_run_id"] for r in api.runs(f"{PROJECT}__{stage}", limit=1) if r["state"] == "failed"]
            if failed or now - began > STAGE_TIMEOUT_S:
                raise RuntimeError(f"{PROJECT}__{stage} did not come to its end: {failed}")
        time.sleep(0.1)
    return time.perf_counter() - began, value


def _runs_since(api: AirflowApi, since: datetime) -> list[dict]:
    """Wait until all runs that began since then have ended, and return them.

    After ``STAGE_TIMEOUT_S`` seconds return them although some are still active.
    """
    deadline = time.monotonic() + STAGE_TIMEOUT_S
    while True:
        runs = [
            r
            for r in api.runs(limit=50)
            if datetime.fromisoformat(r["queued_at"] or r["run_after"]) >= since - timedelta(seconds=1)
        ]
        if all(r["state"] in ("success", "failed") for r in runs) or time.monotonic() > deadline:
            return runs
        time.sleep(0.5)


def measure(root: Path, passes: int, console: Console) -> list[dict]:
    """Run all passes in all homes and return the measured ones.

    Raises:
        RuntimeError: The homes did not do the same work.
    """
    homes = {name: Home(root, name) for name in ("airflow", "fresh", "warm")}
    # This process reads the ledger of the home `airflow`.
    os.environ.update(homes["airflow"].settings.environment())
    get_settings.cache_clear()
    api, measured, (since, until) = AirflowApi.from_settings(homes["airflow"].settings), [], (BEGINNING, HISTORY_UNTIL)
    with ExitStack() as ends:
        ends.callback(lifecycle.down, homes["airflow"].settings)
        lifecycle.up(homes["airflow"].settings, lambda name, state: console.print(f"  {name}: {state}", style="dim"))
        api.wait_for_dags([f"{PROJECT}__{stage}" for stage in STAGES], timeout=120)
        for name in ("fresh", "warm"):
            ends.callback(homes[name].stop)
            homes[name].start_without_airflow()
        warm = ends.enter_context(closing(Warm(homes["warm"], root / "warm.log")))

        def run(name: str, state: dict, counted: bool) -> dict:
            if name == "airflow":
                return airflow_pass(api, state["cutoff"])
            with halted(homes["airflow"]):
                if name == "warm":
                    return warm.run(state)
                if counted:
                    return fresh_pass(homes["fresh"], state, root)
                # The first pass is not counted, so it uses one interpreter, which is faster.
                with closing(Warm(homes["fresh"], root / "first.log")) as first:
                    return first.run(state)

        for number in range(passes + 1):
            for home in homes.values():
                home.run("-m", "bench.loop_steps", "prepare", ledger.iso(since), ledger.iso(until))
            figures = {"until": ledger.iso(until)}
            for name in [*homes][number % 3 :] + [*homes][: number % 3]:
                figures[name] = run(
                    name, {"cutoff": figures["until"], "run": f"direct-{figures['until']}"}, counted=number > 0
                )
                console.print(
                    f"pass {number} until {until:%Y-%m-%d}, {name}: {figures[name]['seconds']:.1f} s"
                    + ("" if number else " (not counted)")
                )
            prints = {name: home.fingerprint() for name, home in homes.items()}
            if len({repr(made) for made in prints.values()}) != 1:
                raise RuntimeError(f"they did not do the same work: {prints}")
            if number:
                measured.append(figures)
            since, until = until, until + WEEK
    return measured


def summary(passes: list[dict]) -> dict:
    """Return the medians over the passes, the two ratios, and the time of each step."""

    def median(name: str, part: str | None = None) -> dict | float:
        if part is None:
            return round(statistics.median(p[name]["seconds"] for p in passes), 2)
        keys = dict.fromkeys(key for p in passes for key in p[name][part])
        return {key: round(statistics.median(p[name][part].get(key, 0.0) for p in passes), 2) for key in keys}

    airflow, fresh, warm = (median(name) for name in ("airflow", "fresh", "warm"))
    tasks = statistics.median(p["airflow"]["tasks"] for p in passes)
    return {
        "ratio_fresh": round(airflow / fresh, 3),
        "ratio_warm": round(airflow / warm, 3),
        "excess_s_per_task": round((airflow - warm) / tasks, 3),
        "tasks": tasks,
        "airflow_s": airflow,
        "fresh_s": fresh,
        "warm_s": warm,
        "fresh_interpreters": len(passes[0]["fresh"]["steps"]),
        "airflow_stages_s": median("airflow", "stages"),
        "airflow_tasks_s": median("airflow", "task_seconds"),
        "fresh_steps_s": median("fresh", "steps"),
        "warm_steps_s": median("warm", "steps"),
        "passes": [
            {
                "until": p["until"],
                **{f"{name}_s": round(p[name]["seconds"], 2) for name in ("airflow", "fresh", "warm")},
            }
            for p in passes
        ],
    }


def table(figures: dict) -> Table:
    made = Table(
        title=f"One pass of all stages: {figures['airflow_s']:.1f} s through Airflow ({figures['tasks']:.0f} tasks)"
    )
    for heading in ("beside", "seconds", "ratio", "aim"):
        made.add_column(heading, justify="left" if heading == "beside" else "right")
    each = f"a fresh interpreter for each of {figures['fresh_interpreters']} steps"
    made.add_row(each, f"{figures['fresh_s']:.1f}", f"{figures['ratio_fresh']:.2f}", f"below {AIM_FRESH:g}")
    made.add_row(
        "one interpreter, everything imported",
        f"{figures['warm_s']:.1f}",
        f"{figures['ratio_warm']:.2f}",
        f"{AIM_WARM:g}",
    )
    made.add_row("excess a task over that", f"{figures['excess_s_per_task']:.2f}", "", "")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3, help="measured passes, a week each (default: 3)")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    # SIGTERM must end the processes that the benchmark started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as folder:
        figures = summary(measure(Path(folder), arguments.passes, console))
    console.print(table(figures))
    if not arguments.no_write:
        aims = {"aim_fresh": AIM_FRESH, "aim_warm": AIM_WARM}
        result.write("loop", {"how": HOW, **aims, **figures}, PACKAGES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
