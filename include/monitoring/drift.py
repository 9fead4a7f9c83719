"""Compare the inputs with those on which the champion was judged, with Evidently's data drift.

It tests each column, does not correct for multiple columns, and does not model seasons. So drift
alone causes a request only if a project's policy says so.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from include.data.pages import document, fill
from include.ledger import moment
from include.monitoring.drift_page import drift_page
from include.monitoring.performance import predictions
from include.projects.base import Project
from include.registry import versions
from include.training.bundle import Bundle
from include.training.inputs import as_categories, as_numbers

SAMPLE = 5000  # rows on either side, because Evidently's page contains raw data
BINS = 1000  # more than Evidently makes
# Its square, and that of its inverse, is still a float64.
LARGEST = 1e150


@dataclass(frozen=True)
class Drift:
    """The result of a comparison.

    ``share`` is the share of the inputs that drifted, or NaN if there is nothing to compare.
    ``drifted`` are their names. ``html`` is Evidently's page, with the hashes of its ``scripts``.
    ``json`` has its values.
    """

    share: float
    drifted: tuple[str, ...]
    html: str
    json: str
    scripts: tuple[str, ...] = ()


def report_drift(project: Project, cutoff: str) -> tuple[dict[str, Any], Drift] | None:
    """Compare the inputs in the window before the cutoff with the champion's reference rows.

    Returns:
        None if there is no champion. Otherwise the evidence for the controller (JSON) and the
            report. The evidence has ``share`` (None if there is nothing to compare), the number of
            ``drifted`` inputs, the number of ``rows`` compared, and the ``version`` of the
            reference.
    """
    champion = versions.champion(project)
    if champion is None:
        return None
    reference = Bundle.load(versions.bundle(project, champion.version)).reference()
    current = current_inputs(project, since=moment(cutoff) - project.retrain.window, cutoff=moment(cutoff))
    drift = compare(reference, current, numeric=project.inputs.numeric, categorical=project.inputs.categorical)
    share = None if pd.isna(drift.share) else round(drift.share, 4)
    return {
        "share": share,
        "drifted": len(drift.drifted),
        "rows": len(current),
        "version": str(champion.version),
    }, drift


def current_inputs(project: Project, *, since: datetime, cutoff: datetime) -> pd.DataFrame:
    """Return a sample of the inputs of predictions in the window, by any version."""
    return _sample(predictions(project, since=since, cutoff=cutoff, columns=project.input_columns))


def compare(
    reference: pd.DataFrame, current: pd.DataFrame, *, numeric: tuple[str, ...], categorical: tuple[str, ...] = ()
) -> Drift:
    """Return Evidently's report on the columns.

    A column with values on one side only has drifted, whatever the test: this is how a dead feed
    shows.
    """
    reference, current = (
        _typed(_sample(reference), numeric, categorical),
        _typed(_sample(current), numeric, categorical),
    )
    columns = [*numeric, *categorical]
    if reference.empty or current.empty:
        nothing = document(
            "Data drift", fill("<p>{}</p>", "Nothing to compare: no reference or no predictions in the window.")
        )
        return Drift(float("nan"), (), nothing, "{}")
    there, here = reference.notna().any(), current.notna().any()
    silent = tuple(c for c in columns if there[c] != here[c])
    compared = [c for c in columns if there[c] and here[c]]

    reference, current = _with_bins(reference, current, [c for c in numeric if c in compared])
    snapshot = _evidently(
        reference, current, [c for c in numeric if c in compared], [c for c in categorical if c in compared]
    )
    figures = snapshot.json()
    drifted = (*silent, *_drifted(figures))
    page = drift_page(snapshot)
    return Drift(len(drifted) / len(columns), drifted, page.html, figures, tuple(page.scripts))


def _evidently(reference: pd.DataFrame, current: pd.DataFrame, numeric: list[str], categorical: list[str]) -> Any:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=numeric, categorical_columns=categorical)
    columns = [*numeric, *categorical]
    ours, theirs = (Dataset.from_pandas(frame[columns], data_definition=definition) for frame in (current, reference))
    with _each_column_drawn_once():
        return Report([DataDriftPreset(columns=columns)], include_tests=True).run(ours, theirs)


@contextmanager
def _each_column_drawn_once() -> Iterator[None]:
    """Disable the first of two drawings of each column.

    Evidently 0.7 draws every column twice, and the preset's page shows the second drawing. The
    first takes a third of the report's time.
    """
    from evidently.metrics.column_statistics import ValueDriftCalculation

    drawn = ValueDriftCalculation._render
    ValueDriftCalculation._render = lambda *_, **__: []
    try:
        yield
    finally:
        ValueDriftCalculation._render = drawn


def _drifted(figures: str) -> list[str]:
    """Return the columns whose test failed.

    A distance must stay below its threshold, a p-value above it. Evidently's test knows which of
    them applies.
    """
    tests = [t for t in json.loads(figures)["tests"] if "column" in t["metric_config"]["params"]]
    return [t["metric_config"]["params"]["column"] for t in tests if t["status"] == "FAIL"]


def _typed(rows: pd.DataFrame, numeric: tuple[str, ...], categorical: tuple[str, ...]) -> pd.DataFrame:
    """Return numbers as float64 and categories as text, like the model's inputs.

    A missing category is a category of its own. An infinite number counts as missing: Evidently
    drops it too, and fails if nothing is left.
    """
    numbers = {c: _finite(as_numbers(rows[c])) for c in numeric}
    return pd.DataFrame({**numbers, **{c: as_categories(rows[c]) for c in categorical}}, index=rows.index)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _with_bins(reference: pd.DataFrame, current: pd.DataFrame, numeric: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both sides with numeric columns that a histogram can represent.

    Numbers close to the limits of float64, and large ones that differ only in their last digits,
    cannot be binned. They are replaced by their ranks among all values that occur. Ranks have the
    same order, and a test of two distributions uses the order.
    """
    reference, current = reference.copy(), current.copy()
    for column in numeric:
        sides = [side[column].dropna().to_numpy() for side in (reference, current)]
        if all(map(_has_bins, (*sides, np.concatenate(sides)))):
            continue
        places = np.unique(np.concatenate(sides))
        for side in (reference, current):
            side[column] = np.where(
                side[column].isna(), np.nan, np.searchsorted(places, side[column]).astype("float64")
            )
    return reference, current


def _has_bins(values: np.ndarray) -> bool:
    try:
        np.histogram_bin_edges(values, bins=BINS)
    except ValueError:
        return False
    spread = float(values.max() / 2 - values.min() / 2)
    return bool(np.abs(values).max() <= LARGEST and (spread == 0 or spread >= 1 / LARGEST))


def _sample(rows: pd.DataFrame) -> pd.DataFrame:
    return rows if len(rows) <= SAMPLE else rows.sample(SAMPLE, random_state=0)
