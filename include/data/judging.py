"""Decide the outcome of new files before anything is changed: each row is good, or has a fault."""

from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa

from include.data import blame, feedback, gaps, reading, rules, tables
from include.data.landing import LandedFile
from include.data.printable import error_text, printable
from include.data.quarantine import quarantined
from include.data.reading import FileRefusedError, Reason
from include.data.report import FileOutcome, SourceReport
from include.data.validation import Broken, Validation, validate
from include.projects.base import Project, Source

LONGEST = 4000  # characters of a message

Readable = list[tuple[LandedFile, reading.Rows]]


def judge(project: Project, source: Source, files: list[LandedFile], cutoff: datetime) -> SourceReport:
    """Read and validate new files, and compare them with known data. It changes nothing.

    One checkpoint validates the rows of all files. The first fault found in a row is its reason. A
    file with more faulty rows than the source tolerates is refused as a whole. Rows that only
    repeat known data do not count as faulty there: they are harmless, and some upstreams send all
    their data each day.

    A file whose rows cause an exception in the validation or a rule is refused too, and the others
    are judged without it.
    """
    outcomes, readable = _read(source, files)
    if not readable:
        return SourceReport(sorted(outcomes, key=lambda outcome: outcome.file), None, None, None)

    def attempt(readable: Readable) -> SourceReport:
        return _judge_rows(project, source, readable, cutoff)

    source_report, guilty = blame.without_guilty(attempt, readable)
    outcomes += [_failed(file, len(rows), error) for (file, rows), error in guilty]
    return source_report._replace(files=sorted([*outcomes, *source_report.files], key=lambda outcome: outcome.file))


def _judge_rows(project: Project, source: Source, readable: Readable, cutoff: datetime) -> SourceReport:
    """Return the outcome of the rows of these files.

    Without files the report is empty, but the suite and the rules are still run.
    """
    outcomes: list[FileOutcome] = []
    nothing = tables.to_pandas(tables.arrow_schema(source.columns).empty_table())
    typed = pd.concat([rows.typed for _, rows in readable], ignore_index=True) if readable else nothing
    lengths = [len(rows) for _, rows in readable]
    owner = np.repeat(np.arange(len(readable)), lengths)
    suite = project.module("expectations").source_suite(source.name)
    validation = validate(f"{project.name}.{source.name}", typed, suite)

    faults = _Faults(len(typed))
    for number, (_, rows) in enumerate(readable):
        for fault in rows.faults:
            faults.mark(*fault, among=owner == number)
    rights = feedback.rights(source, [file for file, _ in readable], lengths)
    # Do this before the keys are checked, because it completes them.
    unfound = feedback.find_predictions(project, source, typed, rights)
    for rule_faults in (
        [rules.from_the_future(source, typed, cutoff)],
        [(b.rule, b.detail, _rows_of(b, typed, owner)) for b in validation.broken if not b.warning],
        [rules.wrong_labels(project, source, typed)],
        unfound,
        rules.repeated_keys(source, typed, owner),
        [
            (rule, message, mask & ~rights.corrects)
            for rule, message, mask in rules.known_already(project, source, typed)
        ],
        [rules.dangling(project, source, typed)],
    ):
        for fault in filter(None, rule_faults):
            faults.mark(*fault)
    taken, faults = _take_files(source, typed, owner, faults, lengths, rights.corrects)

    is_good = ~faults.any & np.isin(owner, list(taken))
    corrected = is_good & rights.corrects
    warned = _warnings(project, source, validation, typed, owner, is_good)
    bad = []
    for number, (file, rows) in enumerate(readable):
        mine = owner == number
        faulty = mine & faults.any
        reasons = [
            *_reasons(file, faults.rule[faulty], faults.message[faulty]),
            *(
                Reason(rule, count, f"{file.name}: {text}", "warning")
                for of, rule, count, text in warned
                if of == number
            ),
        ]
        if number not in taken:
            harm = int((faulty & ~np.isin(faults.rule, rules.HARMLESS)).sum())
            message = (
                f"{file.name}: {harm} of {len(rows)} rows are bad, more than the tolerance of {source.tolerance:.0%};"
                " the file is refused whole"
            )
            outcomes.append(_refused(file, len(rows), [Reason("tolerance", harm, message), *reasons]))
            continue
        counts = {
            "rows": len(rows),
            "table": int((mine & ~faulty).sum()),
            "quarantine": int(faulty.sum()),
            "refused": 0,
        }
        outcomes.append(_outcome(file, "ingested", counts, reasons))
        bad.append(quarantined(source.name, file.name, rows, faults.rule[mine], faults.message[mine], cutoff))
    return SourceReport(
        outcomes, validation.page if readable else None,
        reading.to_table(source, typed[is_good & ~corrected]) if (is_good & ~corrected).any() else None,
        pa.concat_tables(bad) if any(map(len, bad)) else None,
        reading.to_table(source, typed[corrected]) if corrected.any() else None,
    )  # fmt: skip


def _read(source: Source, files: list[LandedFile]) -> tuple[list[FileOutcome], Readable]:
    refused, readable = [], []
    for file in files:
        if file.problem is not None:
            refused.append(_refused(file, 0, [Reason(file.problem.rule, 0, f"{file.name}: {file.problem.message}")]))
            continue
        try:
            rows = reading.read(source, file.name, file.content)
            if file.first is None:
                readable.append((file, rows))
                continue
            count = len(rows)
        except FileRefusedError as refusal:
            if file.first is None:
                refused.append(_refused(file, refusal.reason.count, [refusal.reason]))
                continue
            count = refusal.reason.count
        message = (
            f"{file.name}: the same content came as {file.first} before ({count} rows); a file is ingested once,"
            " nothing is to be done"
        )
        refused.append(_refused(file, count, [Reason("duplicated_file", count, message)]))
    return refused, readable


class _Faults:
    """The first fault found in each row."""

    def __init__(self, rows: int):
        self.rule, self.message = np.full(rows, None, dtype=object), np.full(rows, None, dtype=object)

    @property
    def any(self) -> np.ndarray:
        has_fault: np.ndarray = pd.notna(self.rule)
        return has_fault

    def mark(self, rule: str, message: str, mask: np.ndarray, among: np.ndarray | None = None) -> None:
        """Mark the rows of the mask. With ``among``, the mask covers only those rows."""
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


def _take_files(
    source: Source, typed: pd.DataFrame, owner: np.ndarray, own: _Faults, lengths: list[int], corrects: np.ndarray
) -> tuple[set[int], _Faults]:
    """Return the accepted files, and every row's fault.

    The content of a refused file must not count against the rows of another file.

    Args:
        corrects: bool [rows]. Such a row replaces rows of earlier files, and only a later such row
            replaces it.
    """
    taken = set(range(len(lengths)))
    while True:
        faults = own.copy()
        sound = np.isin(owner, list(taken)) & ~own.any
        plain = sound & ~corrects
        for fault in rules.in_earlier_file(source, typed[plain]):
            faults.mark(*fault, among=plain)
        for fault in rules.corrected_again(source, typed[sound & corrects]):
            faults.mark(*fault, among=sound & corrects)
        harm = np.bincount(owner[faults.any & ~np.isin(faults.rule, rules.HARMLESS)], minlength=len(lengths))
        refused = {number for number in taken if harm[number] > source.tolerance * lengths[number]}
        if not refused:
            return taken, faults
        own.take_over(faults, np.isin(owner, list(refused)))  # why they are refused
        taken -= refused


def _rows_of(broken: Broken, typed: pd.DataFrame, owner: np.ndarray) -> np.ndarray:
    """Return the rows that broke an expectation.

    An expectation about the table as a whole does not name rows. Then it is all rows of the files
    that break it alone.
    """
    if broken.rows:
        mask = np.zeros(len(typed), dtype=bool)
        mask[broken.rows] = True
        return mask
    files = range(owner[-1] + 1 if len(owner) else 0)
    guilty = [
        n for n in files if len(files) > 1 and validate("one_file", typed[owner == n], [broken.expectation]).broken
    ]
    return np.isin(owner, guilty or list(files))


def _warnings(
    project: Project,
    source: Source,
    validation: Validation,
    typed: pd.DataFrame,
    owner: np.ndarray,
    is_good: np.ndarray,
) -> list[tuple[int, str, int, str]]:
    """Return warnings, which do not exclude rows: file number, rule, count, message."""
    warnings = []
    for broken in validation.broken:
        if broken.warning:
            mask = _rows_of(broken, typed, owner)
            warnings += [
                (int(n), broken.rule, int(c), f"{broken.rule}: {c} rows; {broken.detail}")
                for n, c in zip(*np.unique(owner[mask], return_counts=True), strict=True)
            ]
    expected = gaps.expected(project, source)
    if expected and is_good.any():
        warnings += [
            (int(owner[row]), "gap", 1, message)
            for row, message in gaps.among(project, source, expected, typed[is_good])
        ]
    return warnings


def _reasons(file: LandedFile, rule_of: np.ndarray, message_of: np.ndarray) -> list[Reason]:
    table = pd.DataFrame({"rule": rule_of, "message": message_of})
    reasons = []
    for rule, part in table.groupby("rule", sort=False):
        todo = rules.WHAT_TO_DO.get(str(rule), "mend them upstream and send them in a new file")
        reasons.append(
            Reason(
                str(rule),
                len(part),
                f"{file.name}: {rule}: {len(part)} rows; {part['message'].iloc[0].removeprefix(f'{file.name}: ')};"
                f" {todo}",
            )
        )
    return reasons


def _failed(file: LandedFile, rows: int, error: Exception) -> FileOutcome:
    message = (
        f"{file.name}: judging its {rows} rows failed ({error_text(error)}); look at the file, have it sent again in"
        " another form, and report this error"
    )
    return _refused(file, rows, [Reason("failed", rows, message)])


def _refused(file: LandedFile, rows: int, reasons: list[Reason]) -> FileOutcome:
    return _outcome(file, "refused", {"rows": rows, "table": 0, "quarantine": 0, "refused": rows}, reasons)


def _outcome(file: LandedFile, status: str, counts: dict[str, int], reasons: list[Reason]) -> FileOutcome:
    """Return the outcome, with messages that a database can store, limited to ``LONGEST``."""
    plain = [
        reason._replace(rule=printable(reason.rule), message=printable(reason.message)[:LONGEST]) for reason in reasons
    ]
    return FileOutcome(file.name, file.identity, status, counts, [reason._asdict() for reason in plain])
