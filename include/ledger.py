"""The loop's own durable memory: ingested files, stages done, retrain requests, drift episodes, decisions, the replay's clock.

Airflow's events only say "look here"; what is true stands in these tables, so that a lost, merged or repeated event does no harm.
Every write is one transaction and safe to repeat.
"""

import hashlib
import json
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import JSON, Column, Engine, Index, MetaData, String, Table, create_engine, event, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex, CreateTable

from include.settings import get_settings

METADATA = MetaData()
# Times are ISO strings in UTC with fixed width: they sort as text in every database and read well in any tool.
FILES = Table(
    "ingested_files",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("source", String(40), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("file", String(400), nullable=False),
    Column("status", String(20), nullable=False),  # ingested | refused
    Column("counts", JSON, nullable=False),  # rows, table, quarantine, refused
    Column("reasons", JSON, nullable=False),  # [{rule, count, message}]
    Column("cutoff", String(20), nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
STAGES = Table(
    "stages",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("stage", String(40), primary_key=True),
    Column("cutoff", String(20), primary_key=True),
    Column("dag_run", String(250), nullable=False),
    Column("summary", JSON, nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
REQUESTS = Table(
    "retrain_requests",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("project", String(40), nullable=False),
    Column("cutoff", String(20), nullable=False),
    Column("reason", String(40), nullable=False),  # drift | schedule | person | first_model | ...
    Column("asked_by", String(100), nullable=False),
    Column("episode", String(16)),
    Column("parameters", JSON, nullable=False),
    Column("state", String(20), nullable=False),  # open | claimed | refused | passed | deployed | rolled_back
    Column("dag_run", String(250)),
    Column("outcome", JSON, nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
EPISODES = Table(
    "drift_episodes",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("project", String(40), nullable=False),
    Column("opened", String(20), nullable=False),
    Column("closed", String(20)),
    Column("evidence", JSON, nullable=False),
)
# At most one open episode a project, whoever races: the database refuses the second one.
Index("one_open_episode", EPISODES.c.project, unique=True, sqlite_where=EPISODES.c.closed.is_(None), postgresql_where=EPISODES.c.closed.is_(None))
DECISIONS = Table(
    "decisions",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("what", String(40), primary_key=True),  # monitor | gate | deploy | ...
    Column("subject", String(100), primary_key=True),  # what was decided about: a cutoff, a request, a version
    Column("verdict", String(40), nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("cutoff", String(20), nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
CLOCKS = Table("clocks", METADATA, Column("project", String(40), primary_key=True), Column("now", String(20), nullable=False))


class Request(NamedTuple):
    """A wish to have a model trained."""

    id: str
    project: str
    cutoff: str
    reason: str
    asked_by: str
    episode: str | None
    parameters: dict[str, Any]
    state: str
    dag_run: str | None
    outcome: dict[str, Any]


def iso(moment: datetime | str) -> str:
    """A moment as ``2013-04-01T10:00:00Z``.

    Raises:
        ValueError: it has no time zone, or is no ISO 8601 time.
    """
    parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    if parsed.tzinfo is None:
        raise ValueError(f"'{moment}' has no time zone; write e.g. 2013-04-01T10:00:00Z")
    return parsed.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@cache
def _engine(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        # SQLite begins a transaction as a reader and refuses, at once, to make two of them writers: so each begins as a writer, and waits.
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.begin() as connection:
        for table in METADATA.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
    return engine


def _prepare_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself
    connection.execute("PRAGMA busy_timeout = 30000")


@contextmanager
def _transaction():
    with _engine(get_settings().ledger).begin() as connection:
        yield connection


def _stamp() -> str:
    return iso(datetime.now(UTC))  # the wall clock, for people who read the ledger; no rule compares with it


def _upsert(table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Write one row, replacing it if it is there: two tries, since another process may insert in between."""
    where = [table.c[name] == value for name, value in key.items()]
    for _ in range(2):
        try:
            with _transaction() as connection:
                if connection.execute(update(table).where(*where).values(**values)).rowcount == 0:
                    connection.execute(insert(table).values(**key, **values))
            return
        except IntegrityError:
            continue
    raise RuntimeError(f"could not write {key} to {table.name}")


# --- the clock ---------------------------------------------------------------------------------------------------------------------


def now(project: str) -> datetime:
    """The project's present: the replay's time where its upstream is a replay, else the wall clock."""
    with _transaction() as connection:
        replayed = connection.execute(select(CLOCKS.c.now).where(CLOCKS.c.project == project)).scalar()
    return moment(replayed) if replayed else datetime.now(UTC).replace(microsecond=0)


def set_clock(project: str, time: datetime | str) -> None:
    """Say what time it is for a replayed upstream; from then on scheduled runs of the project live at that time."""
    _upsert(CLOCKS, {"project": project}, {"now": iso(time)})


# --- files -------------------------------------------------------------------------------------------------------------------------


def file_record(project: str, source: str, sha256: str) -> dict[str, Any] | None:
    with _transaction() as connection:
        row = connection.execute(select(FILES).where(FILES.c.project == project, FILES.c.source == source, FILES.c.sha256 == sha256)).mappings().first()
    return dict(row) if row else None


def file_records(project: str) -> list[dict[str, Any]]:
    with _transaction() as connection:
        return [dict(r) for r in connection.execute(select(FILES).where(FILES.c.project == project).order_by(FILES.c.source, FILES.c.file)).mappings()]


def record_file(project: str, source: str, sha256: str, *, file: str, status: str, counts: dict, reasons: list, cutoff: datetime | str) -> None:
    values = {"file": file, "status": status, "counts": counts, "reasons": reasons, "cutoff": iso(cutoff), "recorded_at": _stamp()}
    _upsert(FILES, {"project": project, "source": source, "sha256": sha256}, values)


# --- stages ------------------------------------------------------------------------------------------------------------------------


def record_stage(project: str, stage: str, cutoff: datetime | str, *, dag_run: str, summary: dict[str, Any]) -> None:
    """A stage has done all its work up to this cutoff."""
    _upsert(STAGES, {"project": project, "stage": stage, "cutoff": iso(cutoff)}, {"dag_run": dag_run, "summary": summary, "recorded_at": _stamp()})


def stage_record(project: str, stage: str, cutoff: datetime | str) -> dict[str, Any] | None:
    with _transaction() as connection:
        query = select(STAGES).where(STAGES.c.project == project, STAGES.c.stage == stage, STAGES.c.cutoff == iso(cutoff))
        row = connection.execute(query).mappings().first()
    return dict(row) if row else None


# --- retrain requests --------------------------------------------------------------------------------------------------------------


def request_retraining(
    project: str, *, cutoff: datetime | str, reason: str, asked_by: str, episode: str | None = None, parameters: dict[str, Any] | None = None
) -> Request:
    """Write a request down. Asking again for the same thing (episode, or reason and cutoff and parameters) returns the first one."""
    wanted = parameters or {}
    subject = episode or f"{reason}|{iso(cutoff)}|{json.dumps(wanted, sort_keys=True)}"
    request_id = hashlib.sha256(f"{project}|{subject}".encode()).hexdigest()[:16]
    try:
        with _transaction() as connection:
            connection.execute(
                insert(REQUESTS).values(
                    id=request_id, project=project, cutoff=iso(cutoff), reason=reason, asked_by=asked_by, episode=episode,
                    parameters=wanted, state="open", outcome={}, recorded_at=_stamp(),
                )
            )  # fmt: skip
    except IntegrityError:
        pass  # asked before
    return get_request(request_id)


def get_request(request_id: str) -> Request:
    with _transaction() as connection:
        row = connection.execute(_REQUEST.where(REQUESTS.c.id == request_id)).one()
    return Request(*row)


def requests(project: str) -> list[Request]:
    """All requests of a project, oldest cutoff first."""
    with _transaction() as connection:
        return [Request(*row) for row in connection.execute(_REQUEST.where(REQUESTS.c.project == project).order_by(REQUESTS.c.cutoff, REQUESTS.c.recorded_at))]


def claim_request(project: str, dag_run: str) -> Request | None:
    """The request that this DAG run works on: the one it claimed before (a retry), else the oldest open one, else None.

    A run claims one request at most, and a request is claimed by one run at most.
    """
    with _transaction() as connection:
        mine = connection.execute(_REQUEST.where(REQUESTS.c.project == project, REQUESTS.c.dag_run == dag_run)).first()
        if mine:
            return Request(*mine)
        open_ids = connection.execute(
            select(REQUESTS.c.id).where(REQUESTS.c.project == project, REQUESTS.c.state == "open").order_by(REQUESTS.c.cutoff, REQUESTS.c.recorded_at)
        ).scalars().all()  # fmt: skip
        for request_id in open_ids:
            taken = connection.execute(update(REQUESTS).where(REQUESTS.c.id == request_id, REQUESTS.c.state == "open").values(state="claimed", dag_run=dag_run))
            if taken.rowcount:
                return Request(*connection.execute(_REQUEST.where(REQUESTS.c.id == request_id)).one())
    return None


def settle_request(request_id: str, state: str, **outcome: Any) -> None:
    """Write how a request ended; further facts are added to those already there."""
    known = get_request(request_id).outcome
    with _transaction() as connection:
        connection.execute(update(REQUESTS).where(REQUESTS.c.id == request_id).values(state=state, outcome={**known, **outcome}))


_REQUEST = select(*(REQUESTS.c[name] for name in Request._fields))


# --- drift episodes ----------------------------------------------------------------------------------------------------------------


def open_episode(project: str, *, at: datetime | str, evidence: dict[str, Any]) -> str:
    """The project's open episode; a new one if there is none. Its id depends on project and time only."""
    current = current_episode(project)
    if current:
        return current["id"]
    episode = hashlib.sha256(f"{project}|{iso(at)}".encode()).hexdigest()[:16]
    try:
        with _transaction() as connection:
            connection.execute(insert(EPISODES).values(id=episode, project=project, opened=iso(at), evidence=evidence))
    except IntegrityError:
        current = current_episode(project)  # somebody was faster, or it was opened at this time and is closed already
        return current["id"] if current else episode
    return episode


def current_episode(project: str) -> dict[str, Any] | None:
    with _transaction() as connection:
        row = connection.execute(select(EPISODES).where(EPISODES.c.project == project, EPISODES.c.closed.is_(None))).mappings().first()
    return dict(row) if row else None


def episodes(project: str) -> list[dict[str, Any]]:
    with _transaction() as connection:
        return [dict(r) for r in connection.execute(select(EPISODES).where(EPISODES.c.project == project).order_by(EPISODES.c.opened)).mappings()]


def close_episode(project: str, *, at: datetime | str) -> None:
    with _transaction() as connection:
        connection.execute(update(EPISODES).where(EPISODES.c.project == project, EPISODES.c.closed.is_(None)).values(closed=iso(at)))


# --- decisions ---------------------------------------------------------------------------------------------------------------------


def decide(project: str, what: str, subject: str, *, verdict: str, reasons: list[str], cutoff: datetime | str) -> None:
    """Put a decision and its reasons on record; deciding the same again replaces it."""
    values = {"verdict": verdict, "reasons": reasons, "cutoff": iso(cutoff), "recorded_at": _stamp()}
    _upsert(DECISIONS, {"project": project, "what": what, "subject": subject}, values)


def decisions(project: str, what: str | None = None) -> list[dict[str, Any]]:
    query = select(DECISIONS).where(DECISIONS.c.project == project).order_by(DECISIONS.c.cutoff, DECISIONS.c.recorded_at)
    with _transaction() as connection:
        return [dict(r) for r in connection.execute(query if what is None else query.where(DECISIONS.c.what == what)).mappings()]


def count_files(project: str) -> int:
    with _transaction() as connection:
        return connection.execute(select(func.count()).select_from(FILES).where(FILES.c.project == project)).scalar_one()
