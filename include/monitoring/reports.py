"""The reports of the monitor's tasks, written where the task's Report tab looks: ``index.html``, and the figures as JSON beside it."""

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
    """Measure the champion and write its page; gives the evidence, or None if there is no champion."""
    measured = measure_champion(project, cutoff)
    if measured is None:
        return None
    evidence, joined = measured
    folder = layout.report(project, dag_id, run_id, task_id)
    _write(folder, performance_page(project, cutoff, evidence, joined), {"performance.json": json.dumps({"cutoff": cutoff, **evidence}, indent=1)})
    return evidence


def publish_drift(project: Project, cutoff: str, dag_id: str, run_id: str, task_id: str) -> dict[str, Any] | None:
    """Compare the inputs with the champion's reference and write Evidently's page; gives the evidence, or None if there is no champion."""
    compared = drift.report_drift(project, cutoff)
    if compared is None:
        return None
    evidence, found = compared
    summary = json.dumps({"cutoff": cutoff, **evidence, "columns": found.drifted}, indent=1)
    _write(layout.report(project, dag_id, run_id, task_id), found.html, {"report.json": found.json, "summary.json": summary}, found.scripts)
    return evidence


def _write(folder: UPath, page: str, others: dict[str, str], scripts: Sequence[str] = ()) -> None:
    for name, content in others.items():
        storage.write(folder / name, content)
    write_report_page(folder, page, scripts=scripts)
