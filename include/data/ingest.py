"""One source of a project: from new files in the landing zone to its table, the quarantine, or the refused.

What will happen is decided first and written down as a plan (a folder under ``ingest/``); then the plan is carried out in steps
that may be repeated. A run that was killed leaves either no plan, and nothing happened, or a plan, which the next run carries
out to its end before it looks for new files. So every row ends in exactly one place:
rows of a file = rows in the table + rows in quarantine + rows refused.
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
    """Bring the new files of a source in.

    Args:
        report_folder: of this run (``index.html``, the Data Docs page, what became of the files), or None. A run that is tried again
            with the same folder tells of everything that its earlier tries did.

    Returns:
        ``source``, ``files``, ``rows``, ``table``, ``quarantine``, ``refused`` (rows), ``refused_files`` (up to five names), ``version`` of
        the table and ``report`` (its folder).
    """
    plan = layout.project_root(project) / WRITER / source.name
    done = report.outcomes(report_folder)
    done = _finish(project, source, plan, report_folder, done)  # what a killed run left
    files = landing.new_files(project, source)
    if source.predictions:
        files, waiting = feedback.due(source, files, ledger.moment(cutoff))
        if waiting:
            name, why = next(iter(waiting.items()))
            LOG.warning("%s: %s files wait for the next run; %s: %s", source.name, len(waiting), name, why)
    if files:
        found = judge(project, source, files, ledger.moment(cutoff))
        if report_folder is not None and found.page:
            report.write_data_docs(report_folder, found.page)
        _write_plan(project, source, plan, found, cutoff)
        done = _finish(project, source, plan, report_folder, done)
    silent = gaps.until_now(project, source, ledger.moment(cutoff))
    for message in silent:
        LOG.warning("%s", message)
    if report_folder is not None:
        report.write_page(report_folder, project, source, done, silent)
    refused = [o.file for o in done if o.status == "refused"]
    return {
        "source": source.name, "files": len(done), **report.totals(done), "refused_files": refused[:5],
        "version": tables.table_version(layout.table(project, source.name)), "report": report_folder and str(report_folder),
    }  # fmt: skip


def _write_plan(project: Project, source: Source, plan: UPath, found: SourceReport, cutoff: str) -> None:
    uri, quarantine = layout.table(project, source.name), layout.table(project, "quarantine")
    if found.good is not None:
        storage.write_parquet(plan / "good.parquet", found.good)
    if found.corrected is not None:
        storage.write_parquet(plan / "corrected.parquet", found.corrected)
    if found.bad is not None:
        storage.write_parquet(plan / "bad.parquet", found.bad)
    content = {
        "cutoff": cutoff,
        "sequence": (tables.last_sequence(uri, WRITER) or 0) + 1,
        "quarantine_sequence": (tables.last_sequence(quarantine, f"{WRITER}/{source.name}") or 0) + 1,
        "good": found.good is not None,
        "bad": found.bad is not None,
        "corrected": found.corrected is not None,
        "correction_sequence": (tables.last_sequence(uri, CORRECTIONS) or 0) + 1,
        "files": [outcome._asdict() for outcome in found.files],
    }
    storage.write(plan / "plan.json", json.dumps(content))  # from here on it will be carried out


def _finish(project: Project, source: Source, plan: UPath, report_folder: UPath | None, done: list[FileOutcome]) -> list[FileOutcome]:
    """Carry the plan out, if there is one, and say so; each step changes nothing when it is done a second time.

    Returns:
        What was done before, and now.
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
        tables.replace(layout.table(project, source.name), rows, key=source.key, writer=CORRECTIONS, sequence=content["correction_sequence"])
    if content["bad"]:
        rows = storage.read_parquet(plan / "bad.parquet")
        tables.append(layout.table(project, "quarantine"), rows, writer=f"{WRITER}/{source.name}", sequence=content["quarantine_sequence"])
    for outcome in outcomes:
        if outcome.status == "refused":
            landing.keep_refused(project, source, outcome.file, json.dumps(outcome.reasons, indent=1))
        ledger.record_file(
            project.name, source.name, outcome.sha256,
            file=outcome.file, status=outcome.status, counts=outcome.counts, reasons=outcome.reasons, cutoff=content["cutoff"],
        )  # fmt: skip
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
    for name in ("plan.json", "good.parquet", "corrected.parquet", "bad.parquet"):  # the plan first: without it the rest means nothing
        (plan / name).unlink(missing_ok=True)
    return done
