"""Define the checks of ``check_demo``.

Each check compares logged data with the raw data, and returns a verdict with values.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bench import demo_store, raw_flights
from bench.demo_store import KEY, Version
from bench.raw_flights import Known, Raw

MINUTE = np.timedelta64(1, "m")
# The demo's bad files contain rows of real flights with this added to the flight number. Some of
# these rows are valid.
PLANTED = 100_000
EXACT = 1e-6
WANTED_AUC, WANTED_PROMOTIONS = 0.760, 4
REQUEST = ("hour", "minute", "weekday", "distance", "scheduled_minutes")


@dataclass(frozen=True)
class Check:
    """A verdict: the name of the check, whether it holds, a description and values."""

    name: str
    holds: bool
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)


def joined(log: pd.DataFrame, raw: Raw) -> pd.DataFrame:
    """Return the log, with the columns of the raw flight added to each prediction.

    The added columns have the prefix ``raw_``. They are missing if the flight does not exist.
    """
    columns = ["predicted_at", "origin", "dest", "route", "tailnum", *REQUEST, "month", "late"]
    truth = raw.flights[[*KEY, *columns]].rename(columns={c: f"raw_{c}" for c in columns})
    return log.merge(truth, on=KEY, how="left", validate="many_to_one")


def complete(rows: pd.DataFrame, raw: Raw, first_cutoff: np.datetime64) -> Check:
    """Check that every flight of April to December has exactly one prediction.

    Flights that were due before the first model are excepted.
    """
    due = raw.flights.loc[raw.flights["month"] >= 4, [*KEY, "month", "predicted_at"]]
    counted = rows.groupby(KEY, observed=True).size().rename("times").reset_index()
    due = due.merge(counted, on=KEY, how="left").fillna({"times": 0})
    missing, last = due[due["times"] == 0], rows["cutoff"].max()
    early, late = missing["predicted_at"] <= first_cutoff, missing["predicted_at"] > last
    strange = rows[rows["raw_month"].isna()]
    planted = (
        strange.assign(flight=strange["flight"] - PLANTED).merge(raw.flights[KEY], on=KEY) if len(strange) else strange
    )
    figures = {
        "flights": len(due),
        "predicted_once": int((due["times"] == 1).sum()),
        "predicted_more_than_once": int((due["times"] > 1).sum()),
        "missing_due_before_first_model": int(early.sum()),
        "missing_due_after_last_run": int(late.sum()),
        "missing_unexplained": int((~early & ~late).sum()),
        "planted_by_the_demo": len(planted),
        "not_in_raw_data": len(strange) - len(planted),
    }
    bad = ("predicted_more_than_once", "missing_due_after_last_run", "missing_unexplained", "not_in_raw_data")
    detail = (
        f"{figures['predicted_once']:,} of {len(due):,} flights once; {int(early.sum())} were due before the first"
        f" model ({first_cutoff})"
    )
    detail += "".join(
        f"; {figures[name]:,} {name.replace('_', ' ')}" for name in (*bad, "planted_by_the_demo") if figures[name]
    )
    unexplained = missing[~early & ~late].head(3)[KEY].astype(str).agg(" ".join, axis=1)
    return Check(
        "every flight has one prediction",
        not any(figures[name] for name in bad),
        detail + "".join(f" [{key}]" for key in unexplained),
        figures,
    )


def an_hour_before(rows: pd.DataFrame) -> Check:
    wrong = int((rows["predicted_at"] != rows["scheduled_departure"] - raw_flights.LEAD).sum())
    return Check(
        "predicted 60 minutes before scheduled departure",
        wrong == 0,
        f"{wrong:,} of {len(rows):,} at another time",
        {"wrong": wrong},
    )


def claimed_times(rows: pd.DataFrame) -> Check:
    """Check the logged feature times.

    No value used may be later than the prediction, and no prediction later than the run's cutoff.
    """
    columns = [c for c in rows if c.startswith("feature_time_")]
    later = {c: int((rows[c] > rows["predicted_at"]).sum()) for c in columns}
    before = int((rows["predicted_at"] > rows["cutoff"]).sum())
    holds = bool(columns) and not any(later.values()) and before == 0
    detail = (
        f"{sum(later.values()):,} later values in {len(columns)} columns; {before:,} predictions of things not yet due"
    )
    return Check("no feature time after the prediction", holds, detail, {"later": later, "not_yet_due": before})


def models_in_time(rows: pd.DataFrame, versions: dict[str, Version]) -> Check:
    """Check that each version's cutoff is not after its predictions, and that it passed the gate.

    The tag ``cutoff`` is read from MLflow's own database.
    """
    used = sorted(rows["model_version"].unique(), key=int)
    unknown = [v for v in used if v not in versions or "cutoff" not in versions[v].tags]
    refused = [v for v in used if v not in unknown and versions[v].tags.get("gate") != "passed"]
    early = {
        v: int((rows.loc[rows["model_version"] == v, "predicted_at"] < versions[v].cutoff).sum())
        for v in used
        if v not in unknown
    }
    detail = ", ".join(f"v{v} (cutoff {versions[v].tags['cutoff'][:10]}): {early[v]} before it" for v in early)
    detail += f"; not in the registry: {unknown}" if unknown else ""
    detail += f"; not let through by the gate: {refused}" if refused else ""
    return Check(
        "each model's cutoff before its predictions",
        not (unknown or refused or any(early.values())),
        detail,
        {"before_cutoff": early, "versions": used},
    )


def learnt_in_time(store, versions: Iterable[Version], raw: Raw) -> Check:
    """Check the labels in the training set of each served version against the raw data.

    Every label must be correct and known by the version's cutoff.
    """
    figures, truth = {}, raw.flights[[*KEY, "landed_at", "late"]]
    for version in versions:
        rows = demo_store.training_rows(store, version)
        if rows is None:
            figures[version.number] = {"rows": 0}
            continue
        both = rows.merge(truth, on=KEY, how="left")
        unknown = both["landed_at"].isna() | (both["landed_at"] > version.cutoff)
        figures[version.number] = {
            "rows": len(rows),
            "not_known_by_cutoff": int(unknown.sum()),
            "wrong": int((both["label"] != both["late"].astype("float64")).sum()),
        }
    holds = bool(figures) and all(
        f["rows"] and not f["not_known_by_cutoff"] and not f["wrong"] for f in figures.values()
    )
    details = (
        f"v{v}: {f['rows']:,} rows"
        + (f", {f['not_known_by_cutoff']} unknown then, {f['wrong']} wrong" if f["rows"] else "")
        for v, f in figures.items()
    )
    return Check("models learnt from labels known by their cutoff", holds, "; ".join(details), figures)


def request_features(rows: pd.DataFrame, raw: Raw) -> Check:
    """Check that the schedule and plane features of all predictions equal the raw data."""
    real = rows[rows["raw_month"].notna()]
    wrong = {
        name: int((~same(real[name], real[f"raw_{name}"])).sum()) for name in (*REQUEST, "origin", "dest", "route")
    }
    wrong["tailnum"] = int(((real["tailnum"] != real["raw_tailnum"]) & (real["tailnum"] != "")).sum())
    unassigned = int(((real["tailnum"] == "") & (real["raw_tailnum"] != "")).sum())
    for name, column in (("plane_year", "year"), ("plane_seats", "seats")):
        wrong[name] = int((~same(real[name], real["tailnum"].map(raw.planes[column]))).sum())
    wrong = {name: count for name, count in wrong.items() if count}
    detail = (
        f"{len(real):,} predictions, "
        + (f"different: {wrong}" if wrong else "all equal")
        + f"; {unassigned:,} without the plane that flew (not assigned in time)"
    )
    return Check(
        "schedule and plane as in the raw data",
        not wrong,
        detail,
        {"different": wrong, "plane_not_assigned": unassigned},
    )


def recomputed(rows: pd.DataFrame, raw: Raw, size: int, seed: int) -> list[Check]:
    """Recompute the features of a random sample in three ways.

    1. From raw data without everything that became known after the prediction time. The logged
       features must equal the recomputed ones.
    2. From raw data in which all later values are absurd. The features must not change, so neither
       side reads later values.
    3. As of an hour later, as a control. The features must differ in most rows, so a leak of an
    hour
       would be detected.
    """
    real = rows[rows["raw_month"].notna()]
    sample = real.sample(n=min(size, len(real)), random_state=seed)
    wrong: dict[str, int] = {}
    wrong_rows, poisoned, leaks, names = 0, 0, 0, []
    for row in sample.to_dict("records"):
        flight = {name: row[name] for name in ("origin", "carrier", "dest", "route")}
        at = np.datetime64(row["predicted_at"], "us")
        honest = raw_flights.features(Known(raw, by=at), flight, at)
        names = list(honest)
        logged = np.array([row[name] for name in names], dtype="float64")
        values = np.array(list(honest.values()))
        different = ~same(logged, values)
        wrong_rows += bool(different.any())
        for position in np.flatnonzero(different):
            wrong[names[position]] = wrong.get(names[position], 0) + 1
        poisoned += not same(values, _values(raw_flights.features(Known(raw, by=at, nonsense=True), flight, at))).all()
        later = at + np.timedelta64(1, "h")
        leaks += not same(values, _values(raw_flights.features(Known(raw, by=later), flight, later))).all()
    number = len(sample)
    enough, shape = number > 0, {"sample": number, "seed": seed, "features": len(names)}
    return [
        Check(
            "features equal those recomputed from the raw data of an hour before",
            enough and wrong_rows == 0,
            f"{wrong_rows:,} of {number:,} predictions differ in {len(names)} features"
            + (f": {wrong}" if wrong else ""),
            shape | {"rows_different": wrong_rows, "different": wrong},
        ),
        Check(
            "nothing known later changes them",
            enough and poisoned == 0,
            f"{poisoned:,} of {number:,} change when all that is nonsense",
            shape | {"changed": poisoned},
        ),
        Check(
            "control: a leak of one hour would be seen",
            enough and leaks > 0.9 * number,
            f"{leaks:,} of {number:,} differ when taken an hour later",
            shape | {"changed": leaks},
        ),
    ]


def answered(rows: pd.DataFrame, versions: dict[str, Version]) -> Check:
    """Check that each logged prediction is the output of its version's ONNX graph.

    The inputs are the logged ones.
    """
    worst = {}
    for number, part in rows.groupby("model_version"):
        worst[str(number)] = float(np.abs(demo_store.ask(versions[str(number)], part) - part["prediction"]).max())
    detail = ", ".join(f"v{v}: {difference:.1e}" for v, difference in worst.items())
    return Check(
        "predictions are the models' own",
        bool(worst) and max(worst.values()) <= 1e-5,
        f"largest difference {detail}",
        {"largest_difference": worst},
    )


def months_of(rows: pd.DataFrame, by: pd.Series) -> list[dict[str, Any]]:
    """Return rows with an outcome, AUC and Brier score of the served and first model, by month."""
    labelled = rows["raw_late"].notna()
    return [{"month": str(month), **figures(part)} for month, part in rows[labelled].groupby(by[labelled])]


def figures(rows: pd.DataFrame) -> dict[str, Any]:
    late = rows["raw_late"].astype(bool).to_numpy()
    scores: dict[str, Any] = {"rows": len(rows), "positive_share": float(late.mean()) if len(rows) else None}
    for name, column in (("served", "prediction"), ("first_model", "first_model")):
        if column in rows:
            scores[name] = {
                "auc": raw_flights.auc(late, rows[column]),
                "brier": float(((rows[column] - late) ** 2).mean()),
            }
    return scores


def agrees(result: dict[str, Any], months: list[dict[str, Any]], pooled: dict[str, Any]) -> Check:
    """Check that data/demo/result.json contains the same values for each month.

    It uses UTC months of the prediction time.
    """
    mine = {month["month"]: month for month in months}
    off = [f"{name}: missing on one side" for name in {m["month"] for m in result["months"]} ^ mine.keys()]
    for theirs in result["months"]:
        ours = mine.get(theirs["month"])
        if not ours:
            continue
        if theirs["rows"] != ours["rows"]:
            off.append(f"{theirs['month']}: {theirs['rows']} rows, here {ours['rows']}")
        for model in ("served", "first_model"):
            for figure in ("auc", "brier"):
                if (
                    model in ours
                    and figure in theirs.get(model, {})
                    and not abs(theirs[model][figure] - ours[model][figure]) <= EXACT
                ):
                    off.append(
                        f"{theirs['month']} {model} {figure}: {theirs[model][figure]:.6f}, here"
                        f" {ours[model][figure]:.6f}"
                    )
    for model in ("served", "first_model"):
        their_auc = result.get(f"auc_{model}_may_dec")
        if model in pooled and not (their_auc is not None and abs(their_auc - pooled[model]["auc"]) <= EXACT):
            off.append(f"May to December {model}: {their_auc}, here {pooled[model]['auc']:.6f}")
    return Check(
        "result.json says the same",
        not off,
        "; ".join(off) or f"{len(mine)} months and the pooled figures, to {EXACT}",
        {"off": off},
    )


def reached(pooled: dict[str, Any], months: int, promotions: int, reported_promotions: int | None) -> Check:
    """Check the demo's target values for May to December.

    The check fails if a month is missing, because the targets apply only to the whole period.
    """
    auc, more = pooled["served"]["auc"], max(promotions, reported_promotions or 0)
    holds = bool(months == 8 and auc >= WANTED_AUC and more <= WANTED_PROMOTIONS)
    detail = (
        f"AUC {auc:.4f} of {pooled['rows']:,} flights (wanted {WANTED_AUC}), {more} promotions after the first model"
        f" (at most {WANTED_PROMOTIONS})"
    )
    detail += "" if months == 8 else f"; only {months} of 8 months are there"
    return Check(
        "served models as good as wanted",
        holds,
        detail,
        {"auc": auc, "promotions_seen": promotions, "promotions_told": reported_promotions},
    )


def same(left, right) -> np.ndarray:
    """Return elementwise equality, for numbers to ``EXACT``. Two missing values are equal."""
    a, b = np.asarray(left), np.asarray(right)
    if a.dtype == object or b.dtype == object:
        return np.asarray(a == b) | (pd.isna(a) & pd.isna(b))
    a, b = a.astype("float64"), b.astype("float64")
    return (np.abs(a - b) <= EXACT) | (np.isnan(a) & np.isnan(b))


def _values(features: dict[str, float]) -> np.ndarray:
    return np.array(list(features.values()))
