"""The demo's result as one self-contained HTML page."""

import base64
import io
from typing import Any

from include.data.pages import Markup, document, fill, join
from include.projects.base import Project
from include.settings import get_settings

COLOURS = {"served": "#1b7f5c", "first_model": "#c0392b", "baseline": "#8a8f98"}
NAMES = {"served": "served model", "first_model": "first model, never retrained", "baseline": "rule-based baseline"}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2329;max-width:1080px;margin:2.5rem auto;padding:0 1.2rem}
h1{margin:0 0 .2rem;font-size:1.7rem} .lead{color:#56606b;margin:0 0 1.6rem;max-width:46rem}
.figures{display:flex;flex-wrap:wrap;gap:.8rem;margin-bottom:1.6rem} .figure{background:#f4f6f8;border-radius:10px;padding:.8rem 1.1rem;min-width:8.5rem}
.figure b{display:block;font-size:1.5rem} .figure span{color:#56606b;font-size:.85rem}
table{border-collapse:collapse;width:100%;margin:1rem 0 2rem;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{text-align:right;padding:.38rem .6rem;border-bottom:1px solid #e4e8ec;vertical-align:top} th:first-child,td:first-child,td.text,th.text{text-align:left}
th{color:#56606b;font-weight:600} .best{font-weight:700;color:#1b7f5c} img{width:100%;height:auto} small{color:#56606b}
"""  # noqa: E501


def render(project: Project, outcome: dict[str, Any]) -> Markup:
    """Return the page as HTML, with embedded pictures."""
    metric = project.metric.name
    figures = [
        (_number(outcome["auc_served_may_dec"]), f"{metric.upper()} of the served model, May to December"),
        (_number(outcome["auc_first_model_may_dec"]), "of the first model, left alone"),
        (_number(outcome["auc_baseline_may_dec"]), "of the rule-based baseline"),
        (str(outcome["promotions"]), "promotions after the first model"),
        (str(len(outcome["refused"])), "challengers refused by the gate"),
        (f"{outcome['replay_s'] / 60:.1f} min", "replay of the year"),
    ]
    boxes = join(fill('<div class="figure"><b>{}</b><span>{}</span></div>', value, label) for value, label in figures)
    head = fill(
        """<h1>The loop closed: a year of {}</h1>
<p class="lead">{}
Every figure is of predictions as they were served, one hour before departure, scored when the outcome was known.</p>
<div class="figures">{}</div>
""", project.name, project.goal, boxes,
    )  # fmt: skip
    foot = fill(
        """<p><small>Serving answered {} requests of the demo; {} of their answers were compared with the
batch's and are equal. {} files went through validation; planted bad ones:
{}.</small></p>""",
        outcome["serving"]["asked"],
        outcome["serving"]["agreed_with_batch"],
        outcome["files"]["ledger"],
        ", ".join(outcome["files"]["bad"]) or "none",
    )
    return document(
        f"Airloop: {project.name}",
        head,
        _picture(outcome, metric),
        _table(outcome, metric),
        _refused(outcome),
        foot,
        style=STYLE,
    )


def write(project: Project, outcome: dict[str, Any]) -> str:
    """Write <home>/demo/result.html. Return its path."""
    target = get_settings().home / "demo" / "result.html"
    target.write_text(render(project, outcome), encoding="utf-8")
    return str(target)


def _table(outcome: dict[str, Any], metric: str) -> Markup:
    second = next(name for name in outcome["months"][0]["served"] if name != metric)
    head = join(fill("<th>{}<br>{}<th>{}", NAMES[m], metric.upper(), second) for m in COLOURS)
    lines = []
    for month in outcome["months"]:
        best = max(COLOURS, key=lambda model: month[model][metric])
        figures = join(
            fill(
                '<td class="{}">{}<td>{}',
                "best" if model == best else "",
                _number(month[model][metric]),
                _number(month[model][second]),
            )
            for model in COLOURS
        )
        served = "v" + ", v".join(month["model_versions"])
        row = fill("<tr><td>{}<td>{}<td>{:,}{}", month["month"], served, month["rows"], figures)
        lines.append(
            row + fill('<td class="text">{}<td class="text">{}', month["monitor"].get("state", ""), retrained(month))
        )
    columns = fill(
        '<tr><th>month<th>served<th>with outcome{}<th class="text">monitor<th class="text">retrained?</tr>', head
    )
    return fill("<table>{}{}</table>", columns, join(lines, "\n"))


def retrained(month: dict[str, Any]) -> str:
    """Return one line about the training at the end of the month: its outcome and reason."""
    if not month["trainings"]:
        return "no: " + "; ".join(month["monitor"].get("reasons", ["nothing asked for it"]))
    return "; ".join(
        f"{'injected, ' if t.get('injected') else ''}{t['reason']}: version {t.get('version')} {t['state']}"
        for t in month["trainings"]
    )


def _refused(outcome: dict[str, Any]) -> Markup:
    if not outcome["refused"]:
        return Markup()
    items = (
        fill("<li>{}, {}: {}</li>", r["cutoff"][:10], r["injected"] or r["reason"], "; ".join(r["reasons"]))
        for r in outcome["refused"]
    )
    return fill("<h2>Refused by the gate</h2><ul>{}</ul>", join(items))


def _picture(outcome: dict[str, Any], metric: str) -> Markup:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    months = outcome["months"]
    second = next(name for name in months[0]["served"] if name != metric)
    plt.rcParams["text.parse_math"] = False  # a $ in a label is not math
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained")
    for axis, name in zip(axes, (metric, second), strict=True):
        for model, colour in COLOURS.items():
            axis.plot(
                [m["month"][5:] for m in months],
                [m[model][name] for m in months],
                marker="o",
                color=colour,
                label=NAMES[model],
                lw=2.4 if model == "served" else 1.4,
            )
        axis.set_title(
            {"auc": "AUC by month (higher is better)", "brier": "Brier score by month (lower is better)"}.get(
                name, name
            ),
            loc="left",
        )
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
    for position, month in enumerate(months):
        for training in month["trainings"]:
            deployed = training["state"] == "deployed"
            axes[0].axvline(position + 0.5, color="#1b7f5c" if deployed else "#c0392b", ls=":", lw=1.2)
            label = f"v{training.get('version')} {'promoted' if deployed else training['state']}"
            axes[0].annotate(
                label, (position + 0.5, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=8, ha="right"
            )
    axes[0].legend(frameon=False, fontsize=9, loc="upper right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return fill(
        '<img alt="{} and {} by month" src="data:image/png;base64,{}">',
        metric,
        second,
        base64.b64encode(buffer.getvalue()).decode(),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
