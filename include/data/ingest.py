"""Ingest one source of a project: from new files in the landing zone to the table or quarantine.

The outcome is decided first and written as a plan (a folder under ``ingest/``). Then the plan is
carried out in idempotent steps. A killed run leaves either no plan, and nothing has changed, or a
plan. The next run completes that plan before it looks for new files. So every row ends in exactly
one place: rows of a file = rows in the table + rows in quarantine + rows refused.
"""

import json
import logging
from typing import Any

from upath import UPath

from include import ledger
from include.data import feedback, gaps, landing, layout, report, storage, tables
from include.data.judging import judge
from include.data.report import FileOutcome, SourceReport
from include.projects.base import Project, Source

WRITER, CORRECTIONS = "ingest", "ingest/corrections"
LOG = logging.getLogger(__name__)


def ingest_source(project: Project, source: Source, cutoff: str, report_folder: UPath | None = None) -> dict[str, Any]:
    """Ingest the new files of a source.

    Args:
        report_folder: folder of this run's report (``index.html``, the Data Docs page, the outcome
            of each file), or None. A run that is retried with the same folder also reports the
            outcomes of its earlier tries.

    Returns:
        ``source``, ``files``, ``rows``, ``table``, ``quarantine``, ``refused`` (rows),
            ``refused_files`` (up to five names), ``version`` of the table and ``report`` (its
            folder).
    """
    plan = layout.project_root(project) / WRITER / source.name
    done = report.outcomes(report_folder)
    done = _finish(project, source, plan, report_folder, done)  # left by a killed run
    files = landing.new_files(project, source)
    if source.predictions:
        files, waiting = feedback.due(source, files, ledger.moment(cutoff))
        if waiting:
            name, why = next(iter(waiting.items()))
            LOG.warning("%s: %s files wait for the next run; %s: %s", source.name, len(waiting), name, why)
    if files:
        source_report = judge(project, source, files, ledger.moment(cutoff))
        if report_folder is not None and source_report.page:
            report.write_data_docs(report_folder, source_report.page)
        _write_plan(project, source, plan, source_report, cutoff)
        done = _finish(project, source, plan, report_folder, done)
    silent = gaps.until_now(project, source, ledger.moment(cutoff))
    for message in silent:
        LOG.warning("%s", message)
    if report_folder is not None:
        report.write_page(report_folder, project, source, done, silent)
    refused = [o.file for o in done if o.status == "refused"]
    return {
        "source": source.name,
        "files": len(done),
        **report.totals(done),
        "refused_files": refused[:5],
        "version": tables.table_version(layout.table(project, source.name)),
        "report": report_folder and str(report_folder),
    }


def _write_plan(project: Project, source: Source, plan: UPath, source_report: SourceReport, cutoff: str) -> None:
    uri, quarantine = layout.table(project, source.name), layout.table(project, "quarantine")
    if source_report.good is not None:
        storage.write_parquet(plan / "good.parquet", source_report.good)
    if source_report.corrected is not None:
        storage.write_parquet(plan / "corrected.parquet", source_report.corrected)
    if source_report.bad is not None:
        storage.write_parquet(plan / "bad.parquet", source_report.bad)
    content = {
        "cutoff": cutoff,
        "sequence": (tables.last_sequence(uri, WRITER) or 0) + 1,
        "quarantine_sequence": (tables.last_sequence(quarantine, f"{WRITER}/{source.name}") or 0) + 1,
        "good": source_report.good is not None,
        "bad": source_report.bad is not None,
        "corrected": source_report.corrected is not None,
        "correction_sequence": (tables.last_sequence(uri, CORRECTIONS) or 0) + 1,
        "files": [outcome._asdict() for outcome in source_report.files],
    }
    # From here on the plan will be carried out.
    storage.write(plan / "plan.json", json.dumps(content))


def _finish(
    project: Project, source: Source, plan: UPath, report_folder: UPath | None, done: list[FileOutcome]
) -> list[FileOutcome]:
    """Carry the plan out, if there is one, and log the outcomes. Each step is idempotent.

    Returns:
        The outcomes from before, and the new ones.
    """
    if not (plan / "plan.json").exists():
        return done
    content = json.loads((plan / "plan.json").read_text())
    outcomes = [FileOutcome(**file) for file in content["files"]]
    if content["good"]:
        rows = storage.read_parquet(plan / "good.parquet")
        tables.append(layout.table(project, source.name), rows, writer=WRITER, sequence=content["sequence"])
    if content.get("corrected"):
        rows = storage.read_parquet(plan / "corrected.parquet")
        tables.replace(
            layout.table(project, source.name),
            rows,
            key=source.key,
            writer=CORRECTIONS,
            sequence=content["correction_sequence"],
        )
    if content["bad"]:
        rows = storage.read_parquet(plan / "bad.parquet")
        tables.append(
            layout.table(project, "quarantine"),
            rows,
            writer=f"{WRITER}/{source.name}",
            sequence=content["quarantine_sequence"],
        )
    for outcome in outcomes:
        if outcome.status == "refused":
            landing.keep_refused(project, source, outcome.file, json.dumps(outcome.reasons, indent=1))
        ledger.record_file(
            project.name,
            source.name,
            outcome.sha256,
            file=outcome.file,
            status=outcome.status,
            counts=outcome.counts,
            reasons=outcome.reasons,
            cutoff=content["cutoff"],
        )
        for reason in outcome.reasons:
            LOG.warning(
                "%s %s, rule %s, %s rows: %s",
                source.name,
                "warning" if reason["severity"] == "warning" else outcome.status,
                reason["rule"],
                reason["count"],
                reason["message"],
            )
    done = report.add_outcomes(report_folder, done, outcomes)
    # Remove the plan first, because the other files are meaningless without it.
    for name in ("plan.json", "good.parquet", "corrected.parquet", "bad.parquet"):
        (plan / name).unlink(missing_ok=True)
    return done
