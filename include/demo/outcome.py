"""The results of the replay: the served model by month, with two others for comparison.

These are the first model without retraining, and the rule-based baseline.
"""

import json
from dataclasses import asdict
from typing import Any

import pandas as pd

from include import ledger
from include.data import layout, tables
from include.demo.replay import StepRecord
from include.features.known import KnownTables
from include.projects.base import Project
from include.registry import versions
from include.settings import get_settings
from include.training import metrics
from include.training.bundle import Bundle

STEPS_BEGIN_AT = pd.Timedelta(hours=10)  # see replay.year


def scored(project: Project) -> pd.DataFrame:
    """Return every batch prediction with an outcome, and the predictions of two other models.

    The others predict from the same inputs.

    Returns:
        ``predicted_at``, ``month`` (the replay's: from 10:00 UTC on the first), ``label``,
            ``served``, ``first_model``, ``baseline``, ``model_version``.
    """
    table = tables.open_table(layout.predictions(project))
    if table is None:
        raise ValueError(f"project {project.name} has no predictions yet")
    log = table.to_pandas()
    now = ledger.now(project.name)
    outcome = project.module("features").labels(
        KnownTables(project, now), since=log["predicted_at"].min() - pd.Timedelta(seconds=1), until=now
    )
    rows = log.merge(outcome, on=list(project.example_key))
    first, baseline = (
        Bundle.load(folder) for folder in (versions.bundle(project, "1"), versions.baseline_bundle(project, "1"))
    )
    return pd.DataFrame(
        {
            "predicted_at": rows["predicted_at"],
            "month": (rows["predicted_at"] - STEPS_BEGIN_AT).dt.strftime("%Y-%m"),
            "label": rows["label"],
            "served": rows["prediction"],
            "first_model": first.predict(rows),
            "baseline": baseline.predict(rows),
            "model_version": rows["model_version"],
        }
    )


MODELS = ("served", "first_model", "baseline")


def result(project: Project, records: list[StepRecord], setup_s: float | None, replay_s: float) -> dict[str, Any]:
    """Return all results of the demo, as written to result.json."""
    rows = scored(project)
    names = metrics.metrics_of(project.kind)[:2]
    by_cutoff = {record.cutoff[:7]: record for record in records}
    months = []
    for month, part in ((str(m), p) for m, p in rows.groupby("month")):
        following = str(pd.Period(month, "M") + 1)
        record = by_cutoff.get(following) or by_cutoff.get(month)
        months.append(
            {
                "month": month,
                "rows": len(part),
                "positive_share": float(part["label"].mean()),
                "model_versions": [str(v) for v in sorted(part["model_version"].astype(int).unique())],
                **{
                    model: {n: float(metrics.metric_function(n)(part["label"], part[model])) for n in names}
                    for model in MODELS
                },
                "monitor": record.monitor if record else {},
                "trainings": record.trainings if record else [],
            }
        )
    later = rows[rows["month"].between("2013-05", "2013-12")]
    trainings = [training for record in records for training in record.trainings]
    promoted = [t for t in trainings if t["state"] == "deployed"]
    auc = metrics.metric_function(project.metric.name)
    return {
        "setup_s": setup_s,
        "replay_s": round(replay_s, 1),
        "months": months,
        "auc_served_may_dec": float(auc(later["label"], later["served"])) if len(later) else None,
        "auc_first_model_may_dec": float(auc(later["label"], later["first_model"])) if len(later) else None,
        "auc_baseline_may_dec": float(auc(later["label"], later["baseline"])) if len(later) else None,
        "requests": len(ledger.requests(project.name)),
        "fits": sum(int(t.get("fits", 0)) for t in trainings),
        "promotions": max(0, len(promoted) - 1),
        "refused": [
            {k: t.get(k) for k in ("request", "version", "cutoff", "reason", "injected", "reasons")}
            for t in trainings
            if t["state"] == "refused"
        ],
        "serving": {
            "asked": sum(r.serving_asked for r in records),
            "agreed_with_batch": sum(r.serving_agreed or 0 for r in records),
        },
        "files": {
            "dropped": sum(r.files for r in records),
            "ledger": ledger.count_files(project.name),
            "bad": [kind for r in records for kind in r.bad_files],
        },
        "steps": [{k: v for k, v in asdict(r).items() if k != "serving_answers"} for r in records],
    }


def write(outcome: dict[str, Any]) -> str:
    """Write <home>/demo/result.json. Return its path."""
    target = get_settings().home / "demo" / "result.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(outcome, indent=1))
    return str(target)
