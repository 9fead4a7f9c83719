"""Run the work of one pass of the loop by direct calls, as the reference for ``bench_loop``.

    python -m bench.loop_steps step NAME STATE
        Run one step in this interpreter, like a line of a shell script.
    python -m bench.loop_steps worker
        Read one state per line, and run all steps of each in this interpreter.
    python -m bench.loop_steps prepare SINCE UNTIL
        Do the work of the upstream: drop the files and set the clock.

Each step does the work of one task of the DAGs. Some tasks only write a row into the ledger or pass
a value on: decide_cutoff, announce_..., claim_request, choose_candidates, the short circuits. They
are part of the step before or after them, because a shell script would not start an interpreter for
them. Steps pass their results on in STATE, a JSON file that contains ``cutoff`` and ``run``.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = "flights"
State = dict[str, Any]


def ingest(source: str) -> Callable[[State], None]:
    def step(state: State) -> None:
        from include.data import ingest, layout

        project = _project()
        report = layout.report(project, f"{PROJECT}__ingest", state["run"], f"ingest_{source}")
        state.setdefault("ingested", []).append(
            ingest.ingest_source(project, project.source(source), state["cutoff"], report)
        )

    return step


def finish_ingest(state: State) -> None:
    from include import ledger
    from include.data.refused import explain_refused

    ledger.record_stage(
        PROJECT, "ingest", state["cutoff"], dag_run=state["run"], summary={"sources": state["ingested"]}
    )
    explain_refused(_project(), state["ingested"])


def compute_features(state: State) -> None:
    from include.features import build

    build.compute(_project(), state["cutoff"])


def validate_features(state: State) -> None:
    from include.features.validate import validate_staged

    validate_staged(
        _project(),
        state["cutoff"],
        dag_id=f"{PROJECT}__build_features",
        run_id=state["run"],
        task_id="validate_features",
    )


def publish_features(state: State) -> None:
    from include.features import build

    state["versions"] = build.publish(_project(), state["cutoff"])


def materialize_features(state: State) -> None:
    from include import ledger
    from include.features import build

    build.materialize(_project(), state["cutoff"])
    ledger.record_stage(
        PROJECT, "build_features", state["cutoff"], dag_run=state["run"], summary={"versions": state["versions"]}
    )


def predict_due(state: State) -> None:
    from include import ledger
    from include.scoring import batch

    scored = batch.predict_due(_project(), state["cutoff"])
    ledger.record_stage(PROJECT, "score", state["cutoff"], dag_run=state["run"], summary=scored)


def measure_performance(state: State) -> None:
    from include.monitoring.reports import publish_performance

    state["performance"] = publish_performance(
        _project(), state["cutoff"], f"{PROJECT}__monitor", state["run"], "measure_performance"
    )


def report_drift(state: State) -> None:
    from include.monitoring.reports import publish_drift

    state["drift"] = publish_drift(_project(), state["cutoff"], f"{PROJECT}__monitor", state["run"], "report_drift")


def decide_retraining(state: State) -> None:
    from include.monitoring import episodes

    episodes.decide_retraining(_project(), state["cutoff"], state["performance"], state["drift"], dag_run=state["run"])


def build_training_set(state: State) -> None:
    from include import ledger
    from include.features.training_set import build
    from include.monitoring import episodes
    from include.registry.requests import fits_of, judging_basis

    project = _project()
    if episodes.unclaimed_request(project) is None:
        ledger.request_retraining(PROJECT, cutoff=state["cutoff"], reason="person", asked_by=state["run"])
    claimed = ledger.claim_request(PROJECT, state["run"])
    assert claimed is not None
    state["request"] = request = claimed._asdict()
    state["basis"] = judging_basis(project, request, build(project, request))
    fits = fits_of(project, request, state["basis"])
    lines = {f"fit_{a['candidate']}": _training_step(state, "fit", a, f"fit-{a['candidate']}") for a in fits}
    manifests = [_manifest(state, f"fit-{a['candidate']}") for a in fits]
    state["lines"] = {
        **lines,
        "evaluate": _training_step(state, "evaluate", {**state["basis"], "fits": manifests}, "evaluate"),
    }


def apply_gate(state: State) -> None:
    from include.data import layout
    from include.registry import requests

    project, evaluation = _project(), _manifest(state, "evaluate")
    verdict = requests.apply_gate(
        project, evaluation, layout.report(project, f"{PROJECT}__train", state["run"], "apply_gate")
    )
    shared = {name: state["basis"][name] for name in ("request", "training_set")}
    state["lines"]["refit"] = _training_step(
        state, "refit", {**shared, "evaluation": evaluation, "verdict": verdict}, "refit"
    )


def register(state: State) -> None:
    from include.registry import requests
    from include.registry.versions import register_judged

    project = _project()
    state["version"] = version = register_judged(project, _manifest(state, "refit"))
    requests.settle(project, state["request"], version, dag_run=state["run"])
    if version["gate"] == "passed":
        requests.record_training(project, version, dag_run=state["run"])


def smoke_test(state: State) -> None:
    from include.rollout import promotion, records

    # Each pass must deploy. So a refused version is deployed as by a person, here as in Airflow.
    refused = state["version"]["gate"] == "refused"
    state["chosen"] = records.chosen_version(
        _project(), [state["version"]], state["version"]["version"] if refused else None
    )
    promotion.smoke_test(_project(), state["chosen"]["version"])


def roll_out(state: State) -> None:
    from include.rollout.report import advance_and_report

    advance_and_report(
        _project(),
        state["chosen"]["version"],
        state["chosen"],
        state["cutoff"],
        f"{PROJECT}__deploy",
        state["run"],
        "roll_out",
    )


def promote(state: State) -> None:
    from include.rollout import promotion

    chosen = state["chosen"]
    promotion.promote(
        _project(), chosen["version"], dag_run=state["run"], cutoff=state["cutoff"], by_person=chosen["by_person"]
    )


def wait_for_serving(state: State) -> None:
    from include.rollout import promotion

    promotion.wait_for_serving(_project(), state["chosen"]["version"])


def finish_deploy(state: State) -> None:
    from include.rollout import promotion, records

    promotion.confirm(_project(), state["chosen"]["version"], state["run"])
    records.record_end(
        _project(), state["chosen"], "deployed", "serving serves it", cutoff=state["cutoff"], dag_run=state["run"]
    )


def steps() -> dict[str, Callable[[State], None] | None]:
    """Return the steps by name, in the order of a pass.

    The value is None for a training step. Its command line is in ``state["lines"]`` when it runs.
    """
    project = _project()
    # Sources that others refer to are ingested first.
    first = [s.name for s in project.sources if not s.references]
    then = [s.name for s in project.sources if s.references]
    fits = [f"fit_{name}" for name in (*(c.name for c in project.candidates), "baseline_rule")]
    return {
        **{f"ingest_{name}": ingest(name) for name in (*first, *then[:-1])},
        f"ingest_{then[-1]}": _both(ingest(then[-1]), finish_ingest),
        **_named(compute_features, validate_features, publish_features, materialize_features),
        **_named(predict_due, measure_performance, report_drift, decide_retraining, build_training_set),
        **dict.fromkeys([*fits, "evaluate"]),
        **_named(apply_gate),
        "refit": None,
        **_named(register, smoke_test, roll_out, promote),
        "wait_for_serving": _both(wait_for_serving, finish_deploy),
    }


def run_all(state: State) -> dict[str, float]:
    """Run all steps in this interpreter and return the seconds of each."""
    from include.training.__main__ import main as training

    taken = {}
    for name, step in steps().items():
        began = time.perf_counter()
        step(state) if step else training(state["lines"][name])
        taken[name] = time.perf_counter() - began
    return taken


def import_everything() -> None:
    """Import every module that a step needs: third-party libraries and our own packages."""
    from importlib import import_module

    third_party = (
        "pandas",
        "pyarrow.dataset",
        "deltalake",
        "duckdb",
        "sklearn.ensemble",
        "onnxruntime",
        "onnx",
        "skl2onnx",
        "torch",
        "mlflow",
        "matplotlib.pyplot",
    )
    ours = (
        "data.ingest",
        "data.refused",
        "features.build",
        "features.validate",
        "features.training_set",
        "scoring.batch",
        "monitoring.reports",
    )
    rooms = (
        "monitoring.episodes",
        "training.steps",
        "training.evaluation",
        "training.tracking",
        "registry.requests",
        "registry.versions",
        "rollout.records",
    )
    for name in (
        *third_party,
        "great_expectations",
        "feast",
        "evidently",
        *(f"include.{room}" for room in (*ours, *rooms)),
    ):
        import_module(name)


def prepare(since: str, until: str) -> None:
    """Drop the files published in (since, until] and set the project's clock."""
    from include import ledger
    from include.data import feed

    feed.drop(_project(), since=ledger.moment(since), until=ledger.moment(until))
    ledger.set_clock(PROJECT, until)


def _project():
    from include.projects import get_project

    return get_project(PROJECT)


def _both(first: Callable[[State], Any], second: Callable[[State], Any]) -> Callable[[State], None]:
    def step(state: State) -> None:
        first(state)
        second(state)

    return step


def _manifest(state: State, name: str) -> str:
    from include.data import layout

    return str(layout.training(_project(), state["request"]["id"]) / f"{name}.json")


def _training_step(state: State, command: str, arguments: dict[str, Any], name: str) -> list[str]:
    """Return the arguments of ``python -m include.training``, as the task builds them."""
    from include.data import layout

    options = {**arguments, "project": PROJECT, "manifest": _manifest(state, name), "dag_run": state["run"]}
    options["report"] = str(layout.report(_project(), f"{PROJECT}__train", state["run"], name))
    line = [command]
    for key, value in options.items():
        if value is not None:
            line += [f"--{key.replace('_', '-')}", *([value] if isinstance(value, str) else value)]
    return line


def _named(*functions: Callable[[State], None]) -> dict[str, Callable[[State], None]]:
    return {function.__name__: function for function in functions}


def main(arguments: list[str]) -> None:
    command, *rest = arguments
    if command == "prepare":
        prepare(*rest)
    elif command == "step":
        name, file = rest
        state, step = json.loads(Path(file).read_text()), steps()[name]
        # Training steps run as `python -m include.training ...` instead.
        assert step is not None
        step(state)
        Path(file).write_text(json.dumps(state))
    elif command == "worker":
        # The steps' own output goes to stderr, so that stdout contains only the answers.
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        import_everything()
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            state = json.loads(line)
            began = time.perf_counter()
            taken = run_all(state)
            print(
                json.dumps({"seconds": time.perf_counter() - began, "steps": taken, "version": state["version"]}),
                file=answers,
                flush=True,
            )
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
