"""What was done and decided: the replay's clock, files, stages, decisions."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from include.ledger.database import transaction, upsert
from include.ledger.schema import CLOCKS, DECISIONS, FILES, STAGES
from include.times import iso, moment, stamp

# --- the clock ---------------------------------------------------------------------------------------------------------------------


def now(project: str) -> datetime:
    """The project's present: the replay's time where its upstream is a replay, else the wall clock."""
    replayed = _replayed(project)
    return moment(replayed) if replayed else datetime.now(UTC).replace(microsecond=0)


def is_replay(project: str) -> bool:
    """Whether the project lives at the time of its upstream's replay."""
    return _replayed(project) is not None


def _replayed(project: str) -> str | None:
    with transaction() as connection:
        found: str | None = connection.execute(select(CLOCKS.c.now).where(CLOCKS.c.project == project)).scalar()
    return found


def set_clock(project: str, time: datetime | str) -> None:
    """Say what time it is for a replayed upstream; from then on scheduled runs of the project live at that time."""
    upsert(CLOCKS, {"project": project}, {"now": iso(time)})


# --- files -------------------------------------------------------------------------------------------------------------------------


def file_record(project: str, source: str, sha256: str) -> dict[str, Any] | None:
    with transaction() as connection:
        row = connection.execute(select(FILES).where(FILES.c.project == project, FILES.c.source == source, FILES.c.sha256 == sha256)).mappings().first()
    return dict(row) if row else None


def file_records(project: str) -> list[dict[str, Any]]:
    with transaction() as connection:
        return [dict(r) for r in connection.execute(select(FILES).where(FILES.c.project == project).order_by(FILES.c.source, FILES.c.file)).mappings()]


def record_file(project: str, source: str, sha256: str, *, file: str, status: str, counts: dict, reasons: list, cutoff: datetime | str) -> None:
    values = {"file": file, "status": status, "counts": counts, "reasons": reasons, "cutoff": iso(cutoff), "recorded_at": stamp()}
    upsert(FILES, {"project": project, "source": source, "sha256": sha256}, values)


def count_files(project: str) -> int:
    with transaction() as connection:
        return connection.execute(select(func.count()).select_from(FILES).where(FILES.c.project == project)).scalar_one()


# --- stages ------------------------------------------------------------------------------------------------------------------------


def record_stage(project: str, stage: str, cutoff: datetime | str, *, dag_run: str, summary: dict[str, Any]) -> None:
    """A stage has done all its work up to this cutoff."""
    upsert(STAGES, {"project": project, "stage": stage, "cutoff": iso(cutoff)}, {"dag_run": dag_run, "summary": summary, "recorded_at": stamp()})


def stage_record(project: str, stage: str, cutoff: datetime | str) -> dict[str, Any] | None:
    with transaction() as connection:
        query = select(STAGES).where(STAGES.c.project == project, STAGES.c.stage == stage, STAGES.c.cutoff == iso(cutoff))
        row = connection.execute(query).mappings().first()
    return dict(row) if row else None


# --- decisions ---------------------------------------------------------------------------------------------------------------------


def decide(project: str, what: str, subject: str, *, verdict: str, reasons: list[str], cutoff: datetime | str) -> None:
    """Put a decision and its reasons on record; deciding the same again replaces it."""
    values = {"verdict": verdict, "reasons": reasons, "cutoff": iso(cutoff), "recorded_at": stamp()}
    upsert(DECISIONS, {"project": project, "what": what, "subject": subject}, values)


def decisions(project: str, what: str | None = None) -> list[dict[str, Any]]:
    query = select(DECISIONS).where(DECISIONS.c.project == project).order_by(DECISIONS.c.cutoff, DECISIONS.c.recorded_at)
    with transaction() as connection:
        return [dict(r) for r in connection.execute(query if what is None else query.where(DECISIONS.c.what == what)).mappings()]
