"""Save the loop's databases in one archive: `airloop backup`.

The archive contains the ledger, Feast's registry and MLflow's database, pointers to the tables and
hashes of the models. The loop may run during the backup. Each database is read as of one moment,
the ledger first and the data last. Therefore the rest of the archive contains everything that its
ledger refers to. Work that the ledger does not contain yet looks like the work of a killed run,
from which every stage recovers.
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

# Airflow's own history is not saved: its runs are over, and the ledger has their results. These
# tables may contain entries that people made.
AIRFLOW_TABLES = ("slot_pool", "variable", "connection")


@dataclass(frozen=True)
class Saved:
    """Content of a backup, for display: name -> amount, and the work that was in progress."""

    held: dict[str, str]
    in_progress: list[str]


def backup(settings: Settings, target: Path) -> Saved:
    """Write an archive.

    Raises:
        ArchiveError: The file exists already.
        RowsError: A database does not exist. SQLAlchemy raises its own errors if one does not
            answer.
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
    """Record in the ledger that an archive was made. `airloop doctor` reports its age."""
    now = stamp()
    ledger.decide(
        "*",
        "backup",
        str(target.absolute()),
        verdict="saved",
        reasons=[f"{target.stat().st_size} bytes, by {who()}"],
        cutoff=now,
    )


def _save(writer: archive.Writer, database: Database, connection: Connection) -> dict[str, rows.Content]:
    with writer.member(f"{database.name}.jsonl") as into:
        return rows.save(connection, database.tables(connection), into)


def _in_progress(connection: Connection) -> list[str]:
    """Return the requests that a run works on now. After a restore they are open again."""
    requests = Table("retrain_requests", MetaData(), autoload_with=connection)
    claimed = connection.execute(
        select(requests.c.id, requests.c.project, requests.c.dag_run).where(requests.c.state == "claimed")
    )
    return [f"request {row.id} of {row.project}, by run {row.dag_run}" for row in claimed]


def _save_airflow(writer: archive.Writer, settings: Settings) -> str:
    """Save pools, variables and connections as stored in Airflow's database.

    Secrets are encrypted with this Airflow's Fernet key, which is not saved.
    """
    try:
        with rows.one_moment(settings.airflow_database) as connection, writer.member("airflow.jsonl") as into:
            saved = rows.save(connection, rows.tables(connection, AIRFLOW_TABLES.__contains__), into)
    except rows.RowsError:
        return "nothing: Airflow was never started here"
    counts = {name: saved[name].rows if name in saved else 0 for name in AIRFLOW_TABLES}
    return f"{counts['slot_pool']} pools, {counts['variable']} variables, {counts['connection']} connections"
