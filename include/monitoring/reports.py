"""Write the reports of the monitor's tasks: ``index.html``, and the values as JSON next to it.

The task's Report tab shows them.
"""

import json
from collections.abc import Sequence
from typing import Any

from upath import UPath

from include.data import layout, storage
from include.data.pages import write_report_page
from include.monitoring import drift
from include.monitoring.page import performance_page
from include.monitoring.performance import measure_champion
from include.projects.base import Project


def publish_performance(project: Project, cutoff: str, dag_id: str, run_id: str, task_id: str) -> dict[str, Any] | None:
    """Measure the champion and write its page.

    Return the evidence, or None if there is no champion.
    """
    measured = measure_champion(project, cutoff)
    if measured is None:
        return None
    evidence, joined = measured
    folder = layout.report(project, dag_id, run_id, task_id)
    _write(
        folder,
        performance_page(project, cutoff, evidence, joined),
        {"performance.json": json.dumps({"cutoff": cutoff, **evidence}, indent=1)},
    )
    return evidence


def publish_drift(project: Project, cutoff: str, dag_id: str, run_id: str, task_id: str) -> dict[str, Any] | None:
    """Compare the inputs with the champion's reference and write Evidently's page.

    Return the evidence, or None if there is no champion.
    """
    result = drift.report_drift(project, cutoff)
    if result is None:
        return None
    evidence, comparison = result
    summary = json.dumps({"cutoff": cutoff, **evidence, "columns": comparison.drifted}, indent=1)
    _write(
        layout.report(project, dag_id, run_id, task_id),
        comparison.html,
        {"report.json": comparison.json, "summary.json": summary},
        comparison.scripts,
    )
    return evidence


def _write(folder: UPath, page: str, others: dict[str, str], scripts: Sequence[str] = ()) -> None:
    for name, content in others.items():
        storage.write(folder / name, content)
    write_report_page(folder, page, scripts=scripts)
