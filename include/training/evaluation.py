"""The comparison of candidates, champion and baseline, with its MLflow runs, plots and page."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient

from include.projects.base import Project
from include.reporting import page
from include.training import manifest, metrics
from include.training.bundle import Bundle
from include.training.candidates import BASELINE
from include.training.judging import difference_by_day
from include.training.plots import evaluation_plots
from include.training.tracking import RequestRuns, download_model, log, log_training_set


@dataclass
class Judged:
    """The metrics of all models on the same rows, and the best candidate."""

    best: str
    rows: pd.DataFrame
    predictions: dict[str, np.ndarray]  # candidate -> [n]
    figures: dict[str, dict[str, float]]  # candidate -> metric -> value
    champion: str | None  # models:/<name>/<version>
    champion_prediction: np.ndarray | None
    # None if there is no champion, and empty if it could not be judged.
    champion_figures: dict[str, float] | None
    champion_error: str | None
    difference: dict[str, float] | None  # to the champion, from a bootstrap

    def content(self) -> dict[str, Any]:
        """Return the fields for the manifest."""
        return {
            "candidate": self.best,
            "judged_rows": len(self.rows),
            "candidates": self.figures,
            "challenger": self.figures[self.best],
            "baseline": self.figures[BASELINE.name],
            "champion": self.champion,
            "champion_figures": self.champion_figures,
            "champion_error": self.champion_error,
            "difference": self.difference,
        }

    def by_role(self) -> dict[str, np.ndarray]:
        roles = {"challenger": self.predictions[self.best], "baseline": self.predictions[BASELINE.name]}
        return roles if self.champion_prediction is None else {**roles, "champion": self.champion_prediction}


def judge(project: Project, rows: pd.DataFrame, bundles: dict[str, Bundle], champion: str | None) -> Judged:
    """Compare the models on these rows.

    Predictions come from the ONNX graphs, which are also what serving uses.

    Args:
        rows: rows on which none of the models was fitted.
        bundles: candidate -> bundle, including the baseline.
        champion: ``models:/<name>/<version>``. If its inputs are missing in these rows, it is not
            judged, and the result contains the reason.
    """
    label, days = rows["label"].to_numpy(dtype="float64"), rows["event_timestamp"].dt.strftime("%Y-%m-%d").to_numpy()
    predictions = {name: bundle.predict(rows) for name, bundle in sorted(bundles.items())}
    figures = {name: metrics.figures(project.kind, label, p) for name, p in predictions.items()}
    best = best_of(project, {name: f for name, f in figures.items() if name != BASELINE.name})
    champion_prediction = champion_figures = error = difference = None
    if champion:
        try:
            champion_prediction = Bundle.load(download_model(*champion.removeprefix("models:/").split("/"))).predict(
                rows
            )
            champion_figures = metrics.figures(project.kind, label, champion_prediction)
            difference = difference_by_day(project.metric.name, days, label, predictions[best], champion_prediction)
        except KeyError as missing:
            champion_figures, error = {}, f"the champion cannot be judged on this training set: {missing.args[0]}"
    return Judged(best, rows, predictions, figures, champion, champion_prediction, champion_figures, error, difference)


def best_of(project: Project, figures: dict[str, dict[str, float]]) -> str:
    """Return the candidate with the best metric.

    A candidate without a value is returned only if no candidate has one. The gate then refuses it.

    Raises:
        ValueError: there are no candidates but the baseline.
    """
    if not figures:
        raise ValueError("the baseline is the only candidate: nothing to train")
    sign = 1 if project.metric.higher_is_better else -1

    def merit(name: str) -> float:
        value = figures[name].get(project.metric.name, math.nan)
        return -math.inf if math.isnan(value) else sign * value

    return max(figures, key=merit)


def record(
    project: Project, client: MlflowClient, runs: RequestRuns, fitted: dict[str, dict[str, Any]], judged: Judged,
    content: dict[str, Any], training_set: dict[str, Any], report: str | None,
) -> str:  # fmt: skip
    """Write runs, plots and page. Return the id of the request's run.

    Args:
        fitted: candidate -> manifest of its fit.
        content: the evaluation's manifest.
        training_set: the description of the training set.
        report: folder for the page, or None.
    """
    request_run = runs.request_run()
    for name, made in fitted.items():
        run = runs.candidate_run(name)
        params = {"candidate": name, "fitted_rows": made["fitted_rows"], **made["parameters"]}
        times = {"fit_s": made["fit_s"], "export_s": made["export_s"], "onnx_difference": made["onnx_difference"]}
        log(
            client,
            run,
            params=params,
            metrics={**judged.figures[name], **times},
            tags={"fitted_until": made["fitted_until"]},
            curves=made["history"],
        )
        log_training_set(client, run, project.name, content["training_set"], training_set)
        if made.get("search"):
            _record_search(client, runs, manifest.read(made["search"]))
        client.set_terminated(run)

    others = {f"{name}.{metric}": v for name, figures in judged.figures.items() for metric, v in figures.items()}
    champions = {f"champion.{metric}": v for metric, v in (judged.champion_figures or {}).items()}
    surely = {f"difference.{k}": v for k, v in (judged.difference or {}).items()}
    log(
        client,
        request_run,
        params={
            "candidate": judged.best,
            **fitted[judged.best]["parameters"],
            "champion": judged.champion or "none",
            "refit": project.refit,
        },
        metrics={**judged.figures[judged.best], **others, **champions, **surely, "judged_rows": len(judged.rows)},
        tags={"best_candidate": judged.best, "feature_service": content["feature_service"]},
    )
    log_training_set(client, request_run, project.name, content["training_set"], training_set)

    moments, label = judged.rows["event_timestamp"], judged.rows["label"].to_numpy(dtype="float64")
    plots = evaluation_plots(project.kind, project.metric.name, moments, label, judged.by_role()) if len(label) else {}
    text = evaluation_page(project, judged, content, plots)
    if report:
        page.write_page(report, text)
    client.log_text(request_run, text, "evaluation/index.html")
    for name, png in plots.items():
        _log_bytes(client, request_run, f"{name}.png", png)
    return request_run


def _record_search(client: MlflowClient, runs: RequestRuns, search: dict[str, Any]) -> None:
    """Write a run for each trial, nested below the candidate's run. The winner has a tag."""
    for trial in search["trials"]:
        run = runs.trial_run(search["candidate"], trial["trial"])
        figure = {} if trial["value"] is None else {search["metric"]: trial["value"]}
        tags = {
            "study": search["study"],
            "trial": str(trial["trial"]),
            **({"winner": "yes"} if trial["trial"] == search["winner"] else {}),
        }
        if trial["error"]:
            tags["error"] = trial["error"][:5000]  # MLflow's limit
        log(client, run, params=trial["parameters"], metrics={**figure, "fit_s": trial["fit_s"]}, tags=tags)
        client.set_terminated(run, "FAILED" if trial["error"] else "FINISHED")


def evaluation_page(project: Project, judged: Judged, content: dict[str, Any], plots: dict[str, bytes]) -> str:
    names = metrics.metrics_of(project.kind)
    rows = [
        (f"{name}{' (best candidate)' if name == judged.best else ''}", *(judged.figures[name][m] for m in names))
        for name in judged.figures
    ]
    if judged.champion_figures is not None:
        rows.append((f"champion {judged.champion}", *(judged.champion_figures.get(m, math.nan) for m in names)))
    known = f"{len(judged.rows)} rows that none of them was fitted on, with outcomes known by {content['cutoff']}"
    sections = [
        page.paragraph(f"{known}; candidates fitted until {content['fitted_until']}."),
        page.table(["model", *names], rows),
    ]
    if judged.champion_error:
        sections.append(page.paragraph(judged.champion_error, "no"))
    if judged.difference:
        d = judged.difference
        interval = f"95 % interval {d['low']:+.4f} to {d['high']:+.4f} (paired bootstrap over {d['days']} days)"
        sections.append(
            page.paragraph(f"{project.metric.name}: best candidate minus champion {d['difference']:+.4f}, {interval}.")
        )
    versions = ", ".join(f"{k} v{v}" for k, v in sorted(content["table_versions"].items()))
    made_from = f"Training set {content['training_set']} ({versions or 'no table versions'})"
    sections.append(page.paragraph(f"{made_from}, request {content['request']}, run {content['dag_run']}."))
    return page.page(
        f"{project.name}: candidates, champion and baseline on the same rows", *sections, page.images(plots)
    )


def _log_bytes(client: MlflowClient, run_id: str, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        client.log_artifact(run_id, str(path), "evaluation")
