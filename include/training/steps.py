"""The training steps. Each reads references and writes its manifest last.

So everything that a manifest names exists.
"""

import io
import json
import math
import time
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from include.data import layout, storage
from include.projects.base import Candidate, Project
from include.times import iso, moment
from include.training import candidates, judging, metrics, trainers
from include.training import manifest as manifests
from include.training.bundle import Bundle, make_bundle
from include.training.checkpoint import Checkpoints
from include.training.inputs import matrices
from include.training.onnx import check_equal
from include.training.scale import scale_of
from include.training.trainers.base import Model
from include.training.workers import FitRun


def fit(
    project: Project, *, request: str, training_set: str, candidate: str, champion_fitted_until: str | None, parameters: str | None = None,  # noqa: E501
    made_from: dict[str, Any], git_sha: str, manifest: str, report: str | None = None, dag_run: str = "",
) -> None:  # fmt: skip
    """Fit one candidate on the rows known by the split, and save it as a bundle.

    Args:
        parameters: URI of a search's result. By default the candidate's own parameters are used.
    """
    examples, chosen = read_examples(project, training_set), _candidate(project, candidate, parameters)
    split = _split(project, examples, champion_fitted_until)
    rows = judging.fit_rows(examples, split)
    held_out = judging.judged_rows(examples, [split])
    print(
        f"{candidate}: {len(rows)} rows known by {iso(split)} to fit, {len(held_out)} later ones to judge", flush=True
    )
    checkpoints = Checkpoints.from_manifest(manifest, made_from | {"git_sha": git_sha})
    fitted = _fitted_graph(project, chosen, rows, checkpoints, compared_with=held_out if len(held_out) else rows)
    if fitted is None:
        return
    graph, facts = fitted
    folder = layout.training(project, request) / "models" / candidate
    bundle = make_bundle(project, graph, held_out)
    bundle.save(folder)
    _write(
        manifest,
        made_from,
        {
            "step": "fit",
            "project": project.name,
            "request": request,
            "candidate": candidate,
            "parameters": chosen.parameters,
            "search": parameters,
            "bundle": str(folder),
            "fitted_until": iso(split),
            "fitted_rows": len(rows),
            "git_sha": git_sha,
            "dag_run": dag_run,
            **facts,
        },
    )


def trial(
    project: Project, *, request: str, training_set: str, candidate: str, trial: int, champion_fitted_until: str | None, parameters: str,  # noqa: E501
    made_from: dict[str, Any], git_sha: str, manifest: str, report: str | None = None, dag_run: str = "",
) -> None:  # fmt: skip
    """Fit a candidate with proposed parameters on the older part of ``fit``'s rows.

    It is judged on the newer part.

    An error that the parameters cause ends the trial, not the step.
    """
    examples, chosen = read_examples(project, training_set), _candidate(project, candidate, parameters)
    assert chosen.search is not None
    rows = judging.fit_rows(examples, _split(project, examples, champion_fitted_until))
    run = FitRun.from_candidate(chosen, Checkpoints.from_manifest(manifest, made_from | {"git_sha": git_sha}))
    began, figures, error, history = time.monotonic(), {}, None, {}
    try:
        inner = _whole_second(judging.split_at(rows, chosen.search.holdout or project.gate.holdout, None))
        learned, judged = judging.fit_rows(rows, inner), judging.judged_rows(rows, [inner])
        print(
            f"{candidate}, trial {trial}: {len(learned)} rows to fit, {len(judged)} to judge, {chosen.parameters}",
            flush=True,
        )
        model = _fitted(project, chosen, learned, run)
        prediction = np.asarray(
            model.predict(*matrices(judged, project.inputs.numeric, project.inputs.categorical)), dtype="float64"
        )
        figures, history = (
            metrics.figures(project.kind, judged["label"].to_numpy(dtype="float64"), prediction),
            model.history,
        )
    except (ValueError, TypeError, ArithmeticError) as unfit:
        error = f"{type(unfit).__name__}: {unfit}"
    value = figures.get(project.metric.name, math.nan)
    if error is None and not math.isfinite(value):
        error = f"{project.metric.name} is {value}"
    if not run.workers.first:
        return
    print(f"{candidate}, trial {trial}: {error or f'{project.metric.name} {value:.4f}'}", flush=True)
    _write(
        manifest,
        made_from,
        {
            "step": "trial",
            "project": project.name,
            "request": request,
            "candidate": candidate,
            "trial": trial,
            "parameters": chosen.parameters,
            "value": None if error else value,
            "figures": figures,
            "error": error,
            "history": history,
            "fit_s": round(time.monotonic() - began, 2),
            "git_sha": git_sha,
            "dag_run": dag_run,
        },
    )


def evaluate(
    project: Project, *, request: str, training_set: str, fits: list[str], champion: str | None, champion_fitted_until: str | None,  # noqa: E501
    made_from: dict[str, Any], git_sha: str, manifest: str, report: str | None = None, dag_run: str = "",
) -> None:  # fmt: skip
    """Judge all models on the same rows and choose the best candidate.

    Runs, metrics and plots are written to MLflow and to a page.
    """
    from include.training import evaluation, tracking

    metrics.check_direction(project.metric)
    examples, description = read_examples(project, training_set), describe(training_set)
    fitted = {made["candidate"]: made for made in map(_read, fits)}
    bundles = {name: Bundle.load(made["bundle"]) for name, made in fitted.items()}
    rows = judging.judged_rows(
        examples, [moment(t) for t in (champion_fitted_until, *(made["fitted_until"] for made in fitted.values())) if t]
    )
    judged = evaluation.judge(project, rows, bundles, champion)
    content = {
        "step": "evaluate",
        "project": project.name,
        "request": request,
        "training_set": training_set,
        "cutoff": description["cutoff"],
        "table_versions": description.get("table_versions", {}),
        "feature_service": description.get("feature_service", project.feature_service),
        "fitted_until": fitted[judged.best]["fitted_until"],
        "bundle": fitted[judged.best]["bundle"],
        "fits": len(fitted),
        "parameters": fitted[judged.best]["parameters"],
        "git_sha": git_sha,
        "dag_run": dag_run,
        **judged.content(),
    }
    client = tracking.tracking_client()
    shared = {"cutoff": description["cutoff"], "git_sha": git_sha, "airflow_run": dag_run, "training_set": training_set}
    shared["table_versions"] = json.dumps(content["table_versions"])
    runs = tracking.RequestRuns(client, project.name, request, shared)
    content["run_id"] = evaluation.record(project, client, runs, fitted, judged, content, description, report)
    _write(manifest, made_from, content)


def refit(
    project: Project, *, request: str, training_set: str, evaluation: str, verdict: str,
    made_from: dict[str, Any], git_sha: str, manifest: str, report: str | None = None, dag_run: str = "",
) -> None:  # fmt: skip
    """Log the model to deploy. A model that the gate refused is logged without a refit."""
    from include.training import tracking

    judged, passed = _read(evaluation), _read(verdict)["passed"]
    chosen = candidates.candidate_of(project, judged["candidate"], judged["parameters"])
    bundle, fitted_until = Bundle.load(judged["bundle"]), judged["fitted_until"]
    facts: dict[str, Any] = {}
    refitted = project.refit and passed
    if refitted:
        examples = read_examples(project, training_set)
        fitted_until = judged["cutoff"]
        rows = judging.fit_rows(examples, moment(fitted_until))
        print(f"{judged['candidate']}: {len(rows)} rows known by {fitted_until} to fit", flush=True)
        checkpoints = Checkpoints.from_manifest(manifest, made_from | {"git_sha": git_sha})
        fitted = _fitted_graph(project, chosen, rows, checkpoints, compared_with=rows)
        if fitted is None:
            return
        graph, facts = fitted
        recent = judging.judged_rows(examples, [moment(judged["fitted_until"])])
        # A fit's predictions on its own rows cannot be a reference.
        bundle = make_bundle(project, graph, recent, reference=bundle.reference())
    bundle = bundle.with_rule(Bundle.load(layout.training(project, request) / "models" / "baseline_rule"))
    bundle.check_golden()
    client = tracking.tracking_client()
    runs = tracking.RequestRuns(client, project.name, request, {})
    run_id = runs.request_run()
    tags = {
        "request": request,
        "candidate": judged["candidate"],
        "fitted_until": fitted_until,
        "cutoff": judged["cutoff"],
    }
    model_id = tracking.log_model(
        client, run_id, bundle, experiment=runs.experiment, tags=tags, params=chosen.parameters
    )
    client.set_terminated(run_id)
    _write(
        manifest,
        made_from,
        {
            "step": "refit",
            "project": project.name,
            "request": request,
            "candidate": judged["candidate"],
            "model_uri": f"models:/{model_id}",
            "run_id": run_id,
            "refitted": refitted,
            "fitted_until": fitted_until,
            "evaluation": evaluation,
            "verdict": verdict,
            "git_sha": git_sha,
            "dag_run": dag_run,
            "bundle_sha256": bundle.hashes(),
            **facts,
        },
    )


def read_examples(project: Project, training_set: str) -> pd.DataFrame:
    """Return the labelled rows with the columns that a fit needs. Times are UTC.

    Raises:
        ValueError: a row's outcome became known after the training set's cutoff, or is missing.
    """
    columns = [*dict.fromkeys([*project.input_columns, "event_timestamp", "label", "label_known_at"])]
    rows = pd.read_parquet(io.BytesIO(storage.path(training_set).read_bytes()), columns=columns)
    cutoff = pd.Timestamp(describe(training_set)["cutoff"])
    if rows["label"].isna().any() or not (rows["label_known_at"] <= cutoff).all():
        raise ValueError(f"training set {training_set} holds rows without an outcome known by its cutoff {cutoff}")
    return rows.sort_values("event_timestamp", kind="stable", ignore_index=True)


def describe(training_set: str) -> dict[str, Any]:
    """Return the description of a training set.

    It has ``cutoff``, ``table_versions``, ``feature_service``, ``rows`` and ``sha256``.
    """
    description: dict[str, Any] = json.loads(storage.path(training_set).with_suffix(".json").read_text())
    return description


def _fitted_graph(
    project: Project, candidate: Candidate, rows: pd.DataFrame, checkpoints: Checkpoints, compared_with: pd.DataFrame
) -> tuple[bytes, dict[str, Any]] | None:  # fmt: skip
    """Return the candidate's graph and facts about its fit, or None in all but the first worker."""
    began, name, run = time.monotonic(), candidate.name, FitRun.from_candidate(candidate, checkpoints)
    model = _fitted(project, candidate, rows, run)
    if not run.workers.first:
        return None
    fitted = time.monotonic()
    graph = model.to_onnx().SerializeToString(deterministic=True)
    numeric, categorical = matrices(compared_with.tail(20_000), project.inputs.numeric, project.inputs.categorical)
    if categorical.size:
        categorical[:: max(2, len(categorical) // 10), :] = "a category that no fit has seen"
    native = np.asarray(model.predict(numeric, categorical))
    difference = check_equal(graph, native, numeric, categorical, scale=scale_of(project.kind, native))
    seconds = {"fit_s": round(fitted - began, 2), "export_s": round(time.monotonic() - fitted, 2)}
    print(
        f"{name}: fitted in {seconds['fit_s']} s, exported in {seconds['export_s']} s, largest difference"
        f" {difference:.1e}",
        flush=True,
    )
    return graph, {"history": model.history, "onnx_difference": difference, "workers": run.workers.size, **seconds}


def _fitted(project: Project, candidate: Candidate, rows: pd.DataFrame, run: FitRun) -> Model:
    numeric, categorical = matrices(rows, project.inputs.numeric, project.inputs.categorical)
    return trainers.train(project, candidate, numeric, categorical, rows["label"].to_numpy(dtype="float64"), run)


def _candidate(project: Project, name: str, parameters: str | None) -> Candidate:
    return candidates.candidate_of(project, name, _read(parameters)["parameters"] if parameters else None)


def _split(project: Project, examples: pd.DataFrame, champion_fitted_until: str | None) -> datetime:
    """Return the time that separates the rows to fit from those on which candidates are judged."""
    return _whole_second(
        judging.split_at(
            examples, project.gate.holdout, moment(champion_fitted_until) if champion_fitted_until else None
        )
    )


def _whole_second(time: pd.Timestamp) -> datetime:
    """Round a time up to whole seconds, which manifests and tags use.

    Rounding up ensures that no fitted row is judged.
    """
    rounded: datetime = time.ceil("s").to_pydatetime()
    return rounded


def _read(uri: str) -> dict[str, Any]:
    return manifests.read(uri)


def _write(uri: str, made_from: dict[str, Any], content: dict[str, Any]) -> None:
    manifests.write(uri, {"schema": 1, "made_from": manifests.fingerprint(made_from), **content})
