"""`airloop backup`: the ledger, Feast's registry and MLflow's database in one archive, with pointers to the tables and hashes of the models.

The loop may run meanwhile. Each database is read as of one moment, the ledger first and the data last: so whatever the archive's ledger speaks of is in
the rest of it. What the ledger does not know yet is as after a kill, which every stage takes up.
"""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, MetaData, Table, select

from include import ledger
from include.operations import archive, pointers, rows
from include.operations.databases import Database, databases
from include.operations.freezing import who
from include.operations.versions import installed
from include.settings import Settings, git_sha
from include.times import stamp

# Airflow's own history is not saved: its runs are over, and what they came to stands in the ledger. These a person may have made.
AIRFLOW_TABLES = ("slot_pool", "variable", "connection")


@dataclass(frozen=True)
class Saved:
    """What a backup holds, for people: name -> how much; and what was in progress."""

    held: dict[str, str]
    in_progress: list[str]


def backup(settings: Settings, target: Path) -> Saved:
    """Write an archive.

    Raises:
        ArchiveError: it is there already.
        RowsError: a database is not there; SQLAlchemy's own errors where one does not answer.
    """
    held, in_progress = {}, []
    with archive.writing(target) as writer:
        manifest: dict[str, Any] = {
            "airloop": installed("airloop"),
            "git_sha": git_sha(),
            "made_at": stamp(),
            "made_by": f"{who()}@{socket.gethostname()}",
            "profile": settings.profile,
            "store": settings.store,
            "versions": {name: installed(name) for name in ("mlflow", "feast", "airflow")},
            "databases": {},
        }
        for database in databases(settings):
            with rows.one_moment(database.url) as connection:
                saved = _save(writer, database, connection)
                manifest["databases"][database.name] = {
                    "version": database.version(connection),
                    "tables": {name: [content.rows, content.digest] for name, content in saved.items()},
                }
                held[database.name] = f"{sum(content.rows for content in saved.values())} rows"
                if database.name == "ledger":
                    in_progress = _in_progress(connection)
                if database.name == "mlflow":
                    models = pointers.model_files(connection, settings)
        held["airflow"] = _save_airflow(writer, settings)
        manifest["models"], manifest["tables"] = models, pointers.table_pointers()
        held["models"] = f"hashes of {sum(len(files) for files in models.values())} files of {len(models)} versions"
        held["tables"] = f"versions of {len(manifest['tables'])} tables below {settings.store}"
        writer.finish(manifest)
    return Saved(held, in_progress)


def note_backup(target: Path) -> None:
    """Put it on record that an archive was made; `airloop doctor` tells its age."""
    now = stamp()
    ledger.decide("*", "backup", str(target.absolute()), verdict="saved", reasons=[f"{target.stat().st_size} bytes, by {who()}"], cutoff=now)


def _save(writer: archive.Writer, database: Database, connection: Connection) -> dict[str, rows.Content]:
    with writer.member(f"{database.name}.jsonl") as into:
        return rows.save(connection, database.tables(connection), into)


def _in_progress(connection: Connection) -> list[str]:
    """Requests that a run works on at this moment: after a restore they are open again, as after a kill."""
    requests = Table("retrain_requests", MetaData(), autoload_with=connection)
    claimed = connection.execute(select(requests.c.id, requests.c.project, requests.c.dag_run).where(requests.c.state == "claimed"))
    return [f"request {row.id} of {row.project}, by run {row.dag_run}" for row in claimed]


def _save_airflow(writer: archive.Writer, settings: Settings) -> str:
    """Pools, variables and connections as they stand in its database: secrets encrypted, with the Fernet key of this Airflow, which is not saved."""
    try:
        with rows.one_moment(settings.airflow_database) as connection, writer.member("airflow.jsonl") as into:
            saved = rows.save(connection, rows.tables(connection, AIRFLOW_TABLES.__contains__), into)
    except rows.RowsError:
        return "nothing: Airflow was never started here"
    counts = {name: saved[name].rows if name in saved else 0 for name in AIRFLOW_TABLES}
    return f"{counts['slot_pool']} pools, {counts['variable']} variables, {counts['connection']} connections"
