"""Produce every kind of Airloop page with its real producer and a text in every text field."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import great_expectations.expectations as gxe
import numpy as np
import pandas as pd

from include import ledger
from include.data import report
from include.data.validation import validate
from include.projects import get_project
from include.projects.rollout import RolloutPolicy, Step
from tests.integration.rollout_page.browsing import CUTOFF

FLIGHTS = get_project("flights")


def project_of(text: str):
    """Return a project with this text in all of its text fields."""
    fields = {
        "goal": text,
        "success": text,
        "owner": text,
        "name": text,
        "metric": FLIGHTS.metric.model_copy(update={"name": text}),
    }
    return FLIGHTS.model_copy(update=fields)


def data_docs(text: str):
    """Validate columns, cells, sets, patterns and notes that contain the text."""
    rows = pd.DataFrame(
        {f"cell{text}": [text, f"{text}2", "ok", None] * 3, f"figure{text}": [1.0, 2.0, 3.0, 4.0] * 3, "n": range(12)}
    )
    cell, figure = rows.columns[:2]
    suite = [
        gxe.ExpectColumnValuesToBeInSet(column=cell, value_set=["ok", text]),
        gxe.ExpectColumnValuesToNotBeNull(column=cell),
        gxe.ExpectColumnDistinctValuesToBeInSet(column=cell, value_set=[text]),
        gxe.ExpectColumnValuesToMatchRegex(column=cell, regex=f"^ok{text}"),
        gxe.ExpectColumnValuesToBeBetween(column=figure, min_value=3, notes=f"**a note** {text}"),
        gxe.ExpectTableColumnsToMatchSet(column_set=["z", text]),
        gxe.ExpectTableColumnsToMatchOrderedList(column_list=[text, "n"]),
        gxe.ExpectColumnMostCommonValueToBeInSet(column=cell, value_set=[text]),
        gxe.ExpectColumnMaxToBeBetween(column="n", max_value=3),
        gxe.ExpectColumnValuesToBeUnique(column=cell),
        gxe.ExpectColumnValueLengthsToBeBetween(column=cell, max_value=2),
        gxe.ExpectTableRowCountToBeBetween(min_value=100),
        gxe.ExpectColumnPairValuesToBeEqual(column_A=cell, column_B=figure),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=[cell, figure]),
        gxe.ExpectColumnValuesToNotMatchRegexList(column=cell, regex_list=["k", "<"]),
        gxe.ExpectColumnValuesToBeOfType(column=cell, type_="int"),
        gxe.ExpectColumnDistinctValuesToContainSet(column=cell, value_set=[text, "q"]),
    ]
    return validate(f"flights.{text}", rows, suite)


def ingest(text: str, folder) -> None:
    validation = data_docs(text)
    reasons = [
        {"rule": text, "count": 1, "message": f"{text}: {broken.message}", "severity": "warning"}
        for broken in validation.broken
    ]
    counts = {"rows": 1, "table": 0, "quarantine": 0, "refused": 1}
    outcome = report.FileOutcome(
        f"{text}.csv",
        "0",
        "refused",
        counts,
        [*reasons, {"rule": "r", "count": 1, "message": text, "severity": "critical"}],
    )
    report.write_data_docs(folder, validation.page)
    source = FLIGHTS.source("schedule").model_copy(update={"name": text})
    report.write_page(folder, project_of(text), source, [outcome], [text])


def features(text: str, folder) -> None:
    import pytest

    from include.features import validate as of

    rows = pd.DataFrame({f"cell{text}": [text, "ok"]})
    module = SimpleNamespace(
        feature_suite=lambda view: [gxe.ExpectColumnValuesToBeInSet(column=rows.columns[0], value_set=["ok"])]
    )
    project = SimpleNamespace(name=text, sources=(), module=lambda part: module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of.build, "staged_views", lambda *_: {text: rows})
        patch.setattr(of.layout, "report", lambda *_: folder)
        with pytest.raises(of.InvalidFeaturesError):
            of.validate_staged(project, CUTOFF, dag_id="d", run_id="r", task_id="t")


def drift(text: str, folder) -> None:
    from include.data.pages import write_report_page
    from include.monitoring.drift import compare

    known = pd.DataFrame(
        {"n": range(200), f"n{text}": range(200), f"c{text}": [text, "ok", f"{text}2", "__proto__"] * 50}
    )
    comparison = compare(
        known,
        known.assign(n=known["n"] * 3, **{f"c{text}": text}),
        numeric=("n", f"n{text}"),
        categorical=(f"c{text}",),
    )
    write_report_page(folder, comparison.html, scripts=comparison.scripts)


def performance(text: str, folder) -> None:
    from include.data.pages import write_report_page
    from include.monitoring.page import performance_page

    evidence = {
        "version": text,
        "champion_cutoff": text,
        "since": text,
        "predictions": 1,
        "labels": 1,
        "days": 1,
        "metric": 0.7,
        "ci": [0.6, 0.8],
        "reference": 0.7,
        "bias": 0.0,
        "bias_ci": [0.0, 0.0],
        "figures": {text: 0.5},
    }
    times = pd.date_range("2013-01-01", periods=60, freq="6h", tz="UTC")
    joined = pd.DataFrame({"predicted_at": times, "prediction": np.linspace(0, 1, 60), "label": [0.0, 1.0] * 30})
    project = project_of(text).model_copy(update={"metric": FLIGHTS.metric})
    write_report_page(folder, performance_page(project, text, evidence, joined.assign(event_timestamp=times)))


def evaluation(text: str, folder) -> None:
    from include.reporting import page
    from include.training.evaluation import evaluation_page

    judged = SimpleNamespace(
        best=text,
        figures={text: {"auc": 0.7, "brier": 0.1, "log_loss": 0.1, "accuracy": 0.5}},
        champion_figures=None,
        champion=text,
        champion_error=text,
        difference={"low": 0.0, "high": 0.1, "difference": 0.1, "days": 3},
        rows=[1],
    )
    content = {
        "cutoff": text,
        "fitted_until": text,
        "table_versions": {text: 1},
        "training_set": text,
        "request": text,
        "dag_run": text,
    }
    with_any_metric = {"figures": {text: dict.fromkeys(("auc", "brier"), 0.5)}}
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("include.training.evaluation.metrics.metrics_of", lambda kind: ("auc", "brier"))
        judged.__dict__.update(with_any_metric)
        page.write_page(folder, evaluation_page(project_of(text), judged, content, {text: b"png"}))


def rollout(text: str, folder) -> None:
    """Produce the rollout's report. The registry must hold versions with hostile tags.

    See ``hostile_registry``.
    """
    from include.rollout.report import write_report

    project = FLIGHTS.model_copy(update={"rollout": RolloutPolicy(steps=(Step(weight=0.1, looks=2),))})
    write_report(project, "2", "run 2", folder)


def frozen(text: str, folder) -> None:
    import pytest

    from include.dag_kit.requests import tell_frozen

    ledger.request_retraining("flights", reason="person", cutoff=CUTOFF, asked_by=text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("include.data.layout.report", lambda *_: folder)
        tell_frozen("flights", f"frozen by {text}", SimpleNamespace(run_id="r", dag_id="d", task_id="t"))


def demo(text: str, folder) -> None:
    from include.data.pages import write_report_page
    from include.demo.page import render

    figures = {model: {"auc": 0.7, "brier": 0.1} for model in ("served", "first_model", "baseline")}
    training = {"reason": text, "version": text, "state": text, "injected": text}
    month = {
        "month": f"2013-05{text}",
        "rows": 3,
        "model_versions": [text],
        "monitor": {"state": text, "reasons": [text]},
        "trainings": [training],
        **figures,
    }
    refused = {"cutoff": text, "injected": None, "reason": text, "reasons": [text]}
    outcome = {
        "auc_served_may_dec": 0.7,
        "auc_first_model_may_dec": 0.7,
        "auc_baseline_may_dec": 0.7,
        "promotions": 1,
        "refused": [refused],
        "replay_s": 1.0,
        "months": [month],
        "serving": {"asked": 1, "agreed_with_batch": text},
        "files": {"ledger": text, "bad": [text]},
    }
    write_report_page(folder, render(project_of(text).model_copy(update={"metric": FLIGHTS.metric}), outcome))


def hostile_registry(text: str) -> None:
    """Put the text into the tags of flights' versions and into the ledger's decisions and freeze.

    Requires the fixture ``deployed``.
    """
    from include.registry.client import registry_client

    client = registry_client()
    for version in ("1", "2", "3"):
        for tag in (
            "gate",
            "cutoff",
            "candidate",
            "judged_rows",
            "judged_against",
            f"metric.{text[:20]}",
            "airflow_run",
        ):
            client.set_model_version_tag(
                "flights", version, "".join(c if c.isalnum() or c in "-_. /" else "_" for c in tag), text
            )
        client.set_model_version_tag("flights", version, "gate_reasons", json.dumps([text]))
    document = json.loads(client.get_registered_model("flights").tags["rollout"])
    client.set_registered_model_tag("flights", "rollout", json.dumps(document | {"reason": text}))
    ledger.freeze("flights", by=text, why=text)
    ledger.decide("flights", "deploy", f"version 2, {text}, {text}", verdict=text, reasons=[text], cutoff=CUTOFF)
    ledger.decide(
        "flights",
        "rollout",
        f"version 2, {text}, step 1",
        verdict=text,
        reasons=[f"{text}: {text}: {text}"],
        cutoff=CUTOFF,
    )


PRODUCERS: dict[str, Callable] = {
    "ingest": ingest,
    "features": features,
    "drift": drift,
    "performance": performance,
    "evaluation": evaluation,
    "rollout": rollout,
    "frozen": frozen,
    "demo": demo,
}
