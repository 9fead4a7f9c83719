"""Made-up training sets with the flights project's columns.

The outcome depends on some columns, and from a given day on others.
"""

import hashlib
import json

import numpy as np
import pandas as pd
from upath import UPath

from include.data import layout
from include.ledger import moment
from include.projects.base import Project

START = pd.Timestamp("2013-01-01", tz="UTC")


def examples(project: Project, *, days: int, a_day: int, turns_on: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Return ``days`` x ``a_day`` rows with outcomes known three hours after the prediction time.

    Until day ``turns_on`` the outcome follows the baseline's column and ``temp``, from then on the
    opposite of ``temp``. An earlier model is then wrong.
    """
    generator = np.random.default_rng(seed)
    n = days * a_day
    rows = pd.DataFrame({c: generator.normal(size=n) for c in project.inputs.numeric})
    for column, values in zip(project.inputs.categorical, (["EWR", "JFK", "LGA"], ["UA", "DL", "B6"]), strict=False):
        rows[column] = generator.choice(values, n)
    rows["event_timestamp"] = START + pd.to_timedelta(np.arange(n) * (24 * 60 / a_day), unit="min").round("s")
    rows["event_timestamp"] = rows["event_timestamp"].astype("datetime64[us, UTC]")
    rows["label_known_at"] = rows["event_timestamp"] + pd.Timedelta(hours=3)
    direction = (
        1.0 if turns_on is None else np.where(rows["event_timestamp"] < START + pd.Timedelta(days=turns_on), 1.0, -1.0)
    )
    signal = rows[project.baseline_rule] + 1.5 * direction * rows["temp"] + generator.normal(0, 1, n)
    rows["label"] = (signal > 0.5).astype("float64") if project.kind == "binary" else 10 + 5 * signal
    rows.loc[generator.uniform(size=n) < 0.2, [project.baseline_rule, "dewp"]] = np.nan
    return rows


def write(project: Project, request: dict, rows: pd.DataFrame) -> str:
    """Write the rows known by the request's cutoff and return the URI.

    This is what ``include.features.training_set.build`` does.
    """
    cutoff, wanted = moment(request["cutoff"]), request.get("parameters") or {}
    known = rows[rows["label_known_at"] <= pd.Timestamp(cutoff)]
    if wanted.get("last_days"):
        known = known[known["event_timestamp"] > pd.Timestamp(cutoff) - pd.Timedelta(days=wanted["last_days"])]
    target: UPath = layout.training(project, request["id"]) / "training_set-made-up.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    known.to_parquet(str(target))
    description = {
        "cutoff": request["cutoff"],
        "table_versions": {"actuals": 3, "schedule": 2},
        "feature_service": project.feature_service,
        "rows": len(known),
    }
    target.with_suffix(".json").write_text(
        json.dumps({**description, "sha256": hashlib.sha256(target.read_bytes()).hexdigest()})
    )
    return str(target)
