"""One source of a project: from new files in the landing zone to its table, the quarantine, or the refused.

What will happen is decided first and written down as a plan (a folder under ``ingest/``); then the plan is carried out in steps
that may be repeated. A run that was killed leaves either no plan, and nothing happened, or a plan, which the next run carries
out to its end before it looks for new files. So every row ends in exactly one place:
rows of a file = rows in the table + rows in quarantine + rows refused.
"""

import hashlib
import json
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from include import ledger
from include.data import layout, reading, rules, tables
from include.data.reading import FileRefused, Reason
from include.data.report import FileOutcome, SourceReport, write_report
from include.data.validation import Validation, validate
from include.projects.base import Project, Source

WRITER = "ingest"
QUARANTINE = {"source": "string", "file": "string", "row": "int64", "rule": "string", "message": "string", "row_json": "string", "cutoff": "timestamp"}


class LandedFile(NamedTuple):
    path: UPath
    name: str
    sha256: str
    content: bytes


def ingest_source(project: Project, source: Source, cutoff: str, report: UPath | None = None) -> dict[str, Any]:
    """Bring the new files of a source in.

    Args:
        report: folder for the report (``index.html`` and the Data Docs page), or None.

    Returns:
        ``files``, ``rows``, ``table``, ``quarantine``, ``refused`` (rows), ``refused_files`` (names), ``version`` of the table.
    """
    plan = _plan_folder(project, source)
    found: SourceReport | None = None
    if not (plan / "plan.json").exists():
        files = new_files(project, source)
        if files:
            found = _decide(project, source, files, ledger.moment(cutoff))
            _write_plan(project, source, plan, found, cutoff)
    carried_out = _carry_out(project, source, plan) if (plan / "plan.json").exists() else []
    summary = _summary(project, source, carried_out)
    if report is not None:
        write_report(report, project, source, found or SourceReport(carried_out, None, None, None), summary)
    for outcome in carried_out:
        for reason in outcome.reasons:
            print(f"{outcome.status}: {reason['message']}", flush=True)
    return summary


def new_files(project: Project, source: Source) -> list[LandedFile]:
    """Files in the landing zone that the ledger does not know, by content; in the order of their names."""
    folder = layout.landing(project, source)
    if not folder.exists():
        return []
    known = {(r["sha256"], r["file"]) for r in ledger.file_records(project.name) if r["source"] == source.name}
    found = []
    for path in sorted((p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")), key=lambda p: p.name):
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if (sha256, path.name) not in known and (_duplicate_id(path.name, sha256), path.name) not in known:
            found.append(LandedFile(path, path.name, sha256, content))
    return found


# --- decide --------------------------------------------------------------------------------------------------------------------------


def _decide(project: Project, source: Source, files: list[LandedFile], cutoff: datetime) -> SourceReport:
    outcomes: list[FileOutcome] = []
    readable: list[tuple[LandedFile, reading.Rows]] = []
    ingested = {r["sha256"]: r["file"] for r in ledger.file_records(project.name) if r["source"] == source.name}
    for file in files:
        if file.sha256 in ingested:
            rows = _count_rows(source, file)
            message = f"{file.name}: the same content came as {ingested[file.sha256]} before ({rows} rows); a file is ingested once"
            outcomes.append(_refused(file, rows, [Reason("duplicated_file", rows, message)], sha256=_duplicate_id(file.name, file.sha256)))
            continue
        ingested[file.sha256] = file.name
        try:
            readable.append((file, reading.read(source, file.name, file.content)))
        except FileRefused as refusal:
            outcomes.append(_refused(file, refusal.reason.count, [refusal.reason]))
    if not readable:
        return SourceReport(outcomes, None, None, None)

    typed = pd.concat([rows.typed for _, rows in readable], ignore_index=True)
    owner = np.repeat(np.arange(len(readable)), [len(rows) for _, rows in readable])
    validation = validate(f"{project.name}.{source.name}", typed, project.module("expectations").source_suite(source.name))
    faults = _Faults(len(typed))
    for number, (_, rows) in enumerate(readable):
        for fault in rows.faults:
            faults.mark(*fault, among=owner == number)
    for found in (
        [rules.from_the_future(source, typed, cutoff)],
        # A rule about the table as a whole has no rows: then none of it can be trusted.
        [(b.rule, b.message, np.isin(np.arange(len(typed)), b.rows) if b.rows else np.ones(len(typed), bool)) for b in validation.broken if not b.warning],
        rules.repeated_keys(source, typed, owner),
        rules.known_already(project, source, typed),
        [rules.dangling(project, source, typed)],
    ):
        for fault in filter(None, found):
            faults.mark(*fault)
    taken, faults = _take_files(source, typed, owner, faults, [len(rows) for _, rows in readable])

    good, bad = [], []
    for number, (file, rows) in enumerate(readable):
        mine = owner == number
        faulty = mine & faults.any
        reasons = _reasons(file, faults.rule[faulty], faults.message[faulty])
        if number not in taken:
            share = f"{file.name}: {int(faulty.sum())} of {len(rows)} rows are bad, more than the tolerance of {source.tolerance:.0%}; the file is refused whole"
            outcomes.append(_refused(file, len(rows), [Reason("tolerance", int(faulty.sum()), share), *reasons]))
            continue
        counts = {"rows": len(rows), "table": int((mine & ~faulty).sum()), "quarantine": int(faulty.sum()), "refused": 0}
        outcomes.append(FileOutcome(file.name, file.sha256, "ingested", counts, [r._asdict() for r in reasons]))
        good.append(typed[mine & ~faulty])
        bad.append(_quarantined(source, file, rows, faults.rule[mine], faults.message[mine], cutoff))
    return SourceReport(
        sorted(outcomes, key=lambda o: o.file), validation,
        reading.to_table(source, pd.concat(good)) if good else None, pd.concat(bad, ignore_index=True) if bad else None,
        _warnings(project, source, validation, pd.concat(good) if good else typed.iloc[:0]),
    )  # fmt: skip


class _Faults:
    """The reason against each row: the first fault that is found of it."""

    def __init__(self, rows: int):
        self.rule, self.message = np.full(rows, None, dtype=object), np.full(rows, None, dtype=object)

    @property
    def any(self) -> np.ndarray:
        return pd.notna(self.rule)

    def mark(self, rule: str, message: str, mask: np.ndarray, among: np.ndarray | None = None) -> None:
        """Mark the rows of the mask; with ``among``, the mask is over those rows only."""
        whole = mask
        if among is not None:
            whole = np.zeros(len(self.rule), dtype=bool)
            whole[np.flatnonzero(among)[mask]] = True
        new = whole & ~self.any
        self.rule[new], self.message[new] = rule, message

    def take_over(self, other: "_Faults", rows: np.ndarray) -> None:
        self.rule[rows], self.message[rows] = other.rule[rows], other.message[rows]

    def copy(self) -> "_Faults":
        twin = _Faults(0)
        twin.rule, twin.message = self.rule.copy(), self.message.copy()
        return twin


def _take_files(source: Source, typed: pd.DataFrame, owner: np.ndarray, own: _Faults, lengths: list[int]) -> tuple[set[int], _Faults]:
    """Which files are taken, and every row's fault: what a refused file says must not speak against the rows of another one."""
    taken = set(range(len(lengths)))
    while True:
        faults = own.copy()
        sound = np.isin(owner, list(taken)) & ~own.any
        for fault in rules.in_earlier_file(source, typed[sound]):
            faults.mark(*fault, among=sound)
        counts = np.bincount(owner[faults.any], minlength=len(lengths))
        refused = {number for number in taken if counts[number] > source.tolerance * lengths[number]}
        if not refused:
            return taken, faults
        own.take_over(faults, np.isin(owner, list(refused)))  # why they are refused
        taken -= refused


def _warnings(project: Project, source: Source, validation: Validation, rows: pd.DataFrame) -> list[str]:
    """What is reported and keeps no row out: expectations of severity ``warning``, and gaps longer than the project expects."""
    found = [f"{source.name}: {broken.message}" for broken in validation.broken if broken.warning]
    gaps = getattr(project.module("expectations"), "GAPS", {}).get(source.name)
    if gaps and len(rows):
        for group, times in rows.sort_values(gaps.time).groupby(gaps.group)[gaps.time]:
            steps = times.diff()
            for position in np.flatnonzero((steps > gaps.longest).to_numpy()):
                found.append(f"{source.name}: gap({gaps.time}): nothing for {gaps.group}={group} from {times.iloc[position - 1]:%Y-%m-%d %H:%M} to {times.iloc[position]:%Y-%m-%d %H:%M}, longer than {gaps.longest}")
    return found


def _reasons(file: LandedFile, rule_of: np.ndarray, message_of: np.ndarray) -> list[Reason]:
    table = pd.DataFrame({"rule": rule_of, "message": message_of})
    return [
        Reason(str(rule), len(part), f"{file.name}: {rule}: {len(part)} rows; {part['message'].iloc[0].removeprefix(f'{file.name}: ')}")
        for rule, part in table.groupby("rule", sort=False)
    ]


def _quarantined(source: Source, file: LandedFile, rows: reading.Rows, rule_of: np.ndarray, message_of: np.ndarray, cutoff: datetime) -> pd.DataFrame:
    faulty = np.flatnonzero(pd.notna(rule_of))
    return pd.DataFrame({
        "source": source.name, "file": file.name, "row": faulty, "rule": rule_of[faulty], "message": message_of[faulty],
        "row_json": [json.dumps(r, default=str) for r in rows.raw.iloc[faulty].to_dict("records")], "cutoff": pd.Timestamp(cutoff),
    })  # fmt: skip


def _refused(file: LandedFile, rows: int, reasons: list[Reason], sha256: str | None = None) -> FileOutcome:
    counts = {"rows": rows, "table": 0, "quarantine": 0, "refused": rows}
    return FileOutcome(file.name, sha256 or file.sha256, "refused", counts, [r._asdict() for r in reasons])


def _count_rows(source: Source, file: LandedFile) -> int:
    try:
        return len(reading.read(source, file.name, file.content))
    except FileRefused as refusal:
        return refusal.reason.count


def _duplicate_id(name: str, sha256: str) -> str:
    """A second file of the same content has a record of its own in the ledger."""
    return hashlib.sha256(f"{name}|{sha256}".encode()).hexdigest()


# --- write the plan down, carry it out -------------------------------------------------------------------------------------------------


def _plan_folder(project: Project, source: Source) -> UPath:
    return layout.project_root(project) / "ingest" / source.name


def _write_plan(project: Project, source: Source, plan: UPath, found: SourceReport, cutoff: str) -> None:
    plan.mkdir(parents=True, exist_ok=True)
    uri, quarantine = layout.table(project, source.name), layout.table(project, "quarantine")
    if found.good is not None:
        pq.write_table(found.good, str(plan / "good.parquet"))
    if found.bad is not None:
        pq.write_table(pa.Table.from_pandas(found.bad, schema=tables.arrow_schema(QUARANTINE), preserve_index=False), str(plan / "bad.parquet"))
    content = {
        "cutoff": cutoff,
        "sequence": (tables.last_sequence(uri, WRITER) or 0) + 1,
        "quarantine_sequence": (tables.last_sequence(quarantine, f"{WRITER}/{source.name}") or 0) + 1,
        "good": found.good is not None and found.good.num_rows > 0,
        "bad": found.bad is not None and len(found.bad) > 0,
        "files": [outcome._asdict() for outcome in found.files],
    }
    partial = plan / "plan.partial"
    partial.write_text(json.dumps(content))
    partial.rename(plan / "plan.json")  # from here on it will be carried out


def _carry_out(project: Project, source: Source, plan: UPath) -> list[FileOutcome]:
    content = json.loads((plan / "plan.json").read_text())
    outcomes = [FileOutcome(**file) for file in content["files"]]
    if content["good"]:
        tables.append(layout.table(project, source.name), pq.read_table(str(plan / "good.parquet")), writer=WRITER, sequence=content["sequence"])
    if content["bad"]:
        rows = pq.read_table(str(plan / "bad.parquet"))
        tables.append(layout.table(project, "quarantine"), rows, writer=f"{WRITER}/{source.name}", sequence=content["quarantine_sequence"])
    for outcome in outcomes:
        if outcome.status == "refused":
            _keep_refused(project, source, outcome)
        ledger.record_file(
            project.name, source.name, outcome.sha256,
            file=outcome.file, status=outcome.status, counts=outcome.counts, reasons=outcome.reasons, cutoff=content["cutoff"],
        )  # fmt: skip
    for name in ("plan.json", "good.parquet", "bad.parquet"):  # the plan first: without it the rest means nothing
        (plan / name).unlink(missing_ok=True)
    return outcomes


def _keep_refused(project: Project, source: Source, outcome: FileOutcome) -> None:
    """A copy of the file and why: the landing zone belongs to the upstream, which may clear it."""
    folder = layout.refused(project, source)
    folder.mkdir(parents=True, exist_ok=True)
    landed = layout.landing(project, source) / outcome.file
    if landed.exists():
        (folder / outcome.file).write_bytes(landed.read_bytes())
    (folder / f"{outcome.file}.reason.json").write_text(json.dumps(outcome.reasons, indent=1))


def _summary(project: Project, source: Source, outcomes: list[FileOutcome]) -> dict[str, Any]:
    totals = {what: sum(o.counts[what] for o in outcomes) for what in ("rows", "table", "quarantine", "refused")}
    refused = [o.file for o in outcomes if o.status == "refused"]
    return {"source": source.name, "files": len(outcomes), **totals, "refused_files": refused[:20], "version": tables.table_version(layout.table(project, source.name))}
