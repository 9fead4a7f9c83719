"""The performance report: one self-contained HTML page with its plots."""

import io
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from include.data.pages import Markup, document, fill, join
from include.monitoring.performance import by_day, calibration
from include.projects.base import Project

BLUE, GREY, RED = "#2563eb", "#94a3b8", "#dc2626"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#0f172a;background:#fff}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid #e2e8f0;font-variant-numeric:tabular-nums}
svg{max-width:100%;height:auto}p.note{color:#475569}
"""


def performance_page(project: Project, cutoff: str, evidence: dict[str, Any], joined: pd.DataFrame) -> Markup:
    """Return the result of ``measure_champion`` as HTML.

    It has the metrics, the metric by day, mean outcomes and predictions, and calibration.
    """
    name = project.metric.name
    rows = {
        "Champion": f"version {evidence['version']}, trained at cutoff {evidence['champion_cutoff']}",
        "Window": f"predictions of this version from {evidence['since']} to {cutoff}",
        "Predictions": f"{evidence['predictions']:,} on {evidence['days']} days",
        "Outcomes": f"{evidence['labels']:,} are known; the policy wants {project.retrain.min_labels:,}",
        f"{name} (95 % interval)": f"{_text(evidence['metric'])} {_span(evidence['ci'])}",
        f"{name} when it was judged": _text(evidence["reference"]),
        "Bias (95 % interval)": (
            f"{_text(evidence['bias'], sign=True)} {_span(evidence['bias_ci'], sign=True)}: mean prediction minus mean"
            " outcome"
        ),
        **{metric: _text(value) for metric, value in evidence["figures"].items() if metric != name},
    }
    table = join(fill("<tr><th>{}</th><td>{}</td></tr>", k, v) for k, v in rows.items())
    nothing = fill("<p>No outcome is known yet for any prediction of this version in the window.</p>")
    plots = _plots(project, evidence, joined) if len(joined) else nothing
    note = fill(
        '<p class="note">Intervals are from a bootstrap over days (for one day: over its hours): rows of one day share'
        " their luck.</p>"
    )
    head = fill("<h1>{}: performance of the champion</h1><p>{}</p><table>{}</table>", project.name, project.goal, table)
    return document(f"{project.name}: performance at {cutoff}", head, plots, note, style=STYLE)


def _plots(project: Project, evidence: dict[str, Any], joined: pd.DataFrame) -> Markup:
    days, curve = by_day(project.metric, joined), calibration(joined)
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    metric, means, counts, reliability = figure.subplot_mosaic(
        [["metric", "metric"], ["means", "means"], ["counts", "calibration"]]
    ).values()

    errors = [(days["value"] - days["low"]).clip(lower=0), (days["high"] - days["value"]).clip(lower=0)]
    metric.errorbar(
        days["day"], days["value"], yerr=errors, fmt="o", color=BLUE, ecolor=GREY, ms=4, label="by day of prediction"
    )
    if evidence["reference"] is not None:
        metric.axhline(evidence["reference"], color=RED, ls="--", lw=1, label="when the model was judged")
    if evidence["ci"][0] is not None:
        metric.axhspan(*evidence["ci"], color=BLUE, alpha=0.12, label="whole window, 95 %")
    metric.set_title(project.metric.name)
    metric.legend(frameon=False)

    means.plot(days["day"], days["prediction"], color=BLUE, label="mean prediction")
    means.plot(days["day"], days["label"], color=RED, label="mean outcome")
    means.set_title("Predicted and true, by day")
    means.legend(frameon=False)

    counts.bar(days["day"], days["labels"], color=GREY)
    counts.set_title("Predictions with an outcome")

    for axes in (metric, means, counts):
        locator = AutoDateLocator(maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))

    ends = [float(curve[["prediction", "label"]].min().min()), float(curve[["prediction", "label"]].max().max())]
    reliability.plot(ends, ends, color=GREY, lw=1)
    reliability.plot(curve["prediction"], curve["label"], "o-", color=BLUE)
    reliability.set(title="Calibration", xlabel="mean prediction", ylabel="mean outcome")

    picture = io.StringIO()
    # The same rows give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": project.name}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    # Matplotlib escapes the text in its SVG.
    return Markup(picture.getvalue().partition("<!DOCTYPE")[2].partition(">")[2])


def _text(value: float | None, *, sign: bool = False) -> str:
    return "not known" if value is None else f"{value:{'+' if sign else ''}.4f}"


def _span(ends: list[float | None], *, sign: bool = False) -> str:
    return f"[{_text(ends[0], sign=sign)}, {_text(ends[1], sign=sign)}]"
