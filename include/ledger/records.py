"""Records of work and decisions: the replay's clock, runs' cutoffs, files, stages, decisions."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from include import times
from include.ledger.database import transaction, upsert
from include.ledger.schema import CLOCKS, DECISIONS, FILES, RUN_CUTOFFS, STAGES
from include.times import iso, moment, stamp

CLOCK_SKEW = timedelta(minutes=5)  # between the clocks of two machines

# --- the clock --------------------------------------------------------------------------------


def now(project: str) -> datetime:
    """Return the project's present: the time of its replay, else the wall clock."""
    replayed = _replayed(project)
    return moment(replayed) if replayed else times.utc_now().replace(microsecond=0)


class FutureCutoffError(ValueError):
    """Raised when a cutoff is after the project's present.

    A stage with such a cutoff would treat every later run as outdated until that time has come.
    """


def check_cutoff(project: str, cutoff: datetime | str) -> str:
    """Return a cutoff as ISO text (UTC).

    Raises:
        FutureCutoffError: it is later than the project's present.
    """
    present = now(project)
    if moment(iso(cutoff)) > present + CLOCK_SKEW:
        whose = "the time of its replay" if is_replay(project) else "the time of day"
        raise FutureCutoffError(
            f"cutoff {iso(cutoff)} is later than the present of {project}, {iso(present)} ({whose}): give one up to"
            " that, or none"
        )
    return iso(cutoff)


def is_replay(project: str) -> bool:
    """Return whether the project uses the time of its upstream's replay."""
    return _replayed(project) is not None


def _replayed(project: str) -> str | None:
    with transaction() as connection:
        replayed: str | None = connection.execute(select(CLOCKS.c.now).where(CLOCKS.c.project == project)).scalar()
    return replayed


def set_clock(project: str, time: datetime | str) -> None:
    """Set the time of a replayed upstream. From then on, scheduled runs of the project use it."""
    upsert(CLOCKS, {"project": project}, {"now": iso(time)})


def run_cutoff(project: str, dag_id: str, run_id: str, cutoff: datetime | str) -> str:
    """Return the cutoff of a DAG run as ISO text.

    It is ``cutoff``, or the one that an earlier try of the run has stored. A run that is cleared
    later keeps its cutoff.

    Args:
        cutoff: the cutoff to use if the run does not have one yet.
    """
    key = f"{dag_id}, {run_id}"
    query = select(RUN_CUTOFFS.c.cutoff).where(RUN_CUTOFFS.c.project == project, RUN_CUTOFFS.c.dag_run == key)
    try:
        with transaction() as connection:
            if (known := connection.execute(query).scalar()) is not None:
                return str(known)
            connection.execute(insert(RUN_CUTOFFS).values(project=project, dag_run=key, cutoff=iso(cutoff)))
    except IntegrityError:  # another try of this run was faster
        with transaction() as connection:
            return str(connection.execute(query).scalar_one())
    return iso(cutoff)


# --- files ------------------------------------------------------------------------------------


def file_record(project: str, source: str, sha256: str) -> dict[str, Any] | None:
    with transaction() as connection:
        row = (
            connection.execute(
                select(FILES).where(FILES.c.project == project, FILES.c.source == source, FILES.c.sha256 == sha256)
            )
            .mappings()
            .first()
        )
    return dict(row) if row else None


def file_records(project: str) -> list[dict[str, Any]]:
    with transaction() as connection:
        return [
            dict(r)
            for r in connection.execute(
                select(FILES).where(FILES.c.project == project).order_by(FILES.c.source, FILES.c.file)
            ).mappings()
        ]


def record_file(
    project: str,
    source: str,
    sha256: str,
    *,
    file: str,
    status: str,
    counts: dict[str, Any],
    reasons: list[Any],
    cutoff: datetime | str,
) -> None:
    values = {
        "file": file,
        "status": status,
        "counts": counts,
        "reasons": reasons,
        "cutoff": iso(cutoff),
        "recorded_at": stamp(),
    }
    upsert(FILES, {"project": project, "source": source, "sha256": sha256}, values)


def count_files(project: str) -> int:
    with transaction() as connection:
        count: int = connection.execute(
            select(func.count()).select_from(FILES).where(FILES.c.project == project)
        ).scalar_one()
        return count


# --- stages -----------------------------------------------------------------------------------


def record_stage(project: str, stage: str, cutoff: datetime | str, *, dag_run: str, summary: dict[str, Any]) -> None:
    """Record that a stage has done all its work up to this cutoff."""
    upsert(
        STAGES,
        {"project": project, "stage": stage, "cutoff": iso(cutoff)},
        {"dag_run": dag_run, "summary": summary, "recorded_at": stamp()},
    )


def stage_record(project: str, stage: str, cutoff: datetime | str) -> dict[str, Any] | None:
    with transaction() as connection:
        query = select(STAGES).where(
            STAGES.c.project == project, STAGES.c.stage == stage, STAGES.c.cutoff == iso(cutoff)
        )
        row = connection.execute(query).mappings().first()
    return dict(row) if row else None


def last_cutoffs(project: str) -> dict[str, dict[str, Any]]:
    """Return the record of each stage's newest cutoff. A stage that has never ended is left out."""
    with transaction() as connection:
        query = select(STAGES).where(STAGES.c.project == project).order_by(STAGES.c.cutoff)
        return {str(row["stage"]): dict(row) for row in connection.execute(query).mappings()}


# --- decisions --------------------------------------------------------------------------------


def decide(project: str, what: str, subject: str, *, verdict: str, reasons: list[str], cutoff: datetime | str) -> None:
    """Record a decision and its reasons. Recording the same decision again replaces it."""
    values = {"verdict": verdict, "reasons": reasons, "cutoff": iso(cutoff), "recorded_at": stamp()}
    upsert(DECISIONS, {"project": project, "what": what, "subject": subject}, values)


def decisions(project: str, what: str | None = None) -> list[dict[str, Any]]:
    query = (
        select(DECISIONS).where(DECISIONS.c.project == project).order_by(DECISIONS.c.cutoff, DECISIONS.c.recorded_at)
    )
    with transaction() as connection:
        return [
            dict(r)
            for r in connection.execute(query if what is None else query.where(DECISIONS.c.what == what)).mappings()
        ]
