"""Restore an archive into empty stores of the same or another kind: `airloop restore`.

For example, SQLite can be restored into Postgres. Each database is loaded in one transaction and
compared with the archive. A database that already has exactly this content is skipped. Therefore a
killed restore can be run again, and a restore that would overwrite data is refused before it
begins. At the end everything is frozen, until a person has checked the result and thaws it.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from include import ledger
from include.ledger import EVERYTHING
from include.operations import archive, moving, pointers, rows
from include.operations.backup import AIRFLOW_TABLES
from include.operations.databases import Database, databases, newest_ledger, prepare, version_of_new_tables
from include.operations.freezing import who
from include.operations.versions import installed
from include.projects import all_projects
from include.settings import Settings
from include.times import stamp

Say = Callable[[str], None]


class RestoreError(ValueError):
    """Raised when the archive cannot be restored here. The message lists all problems.

    Nothing was changed.
    """

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass
class Plan:
    """The work of a restore, after all possible problems were checked."""

    todo: list[Database] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    ahead: list[str] = field(default_factory=list)


def restore(
    settings: Settings,
    source: Path,
    *,
    data_from: str | None = None,
    artifacts_from: str | None = None,
    dry_run: bool = False,
    say: Say = print,
) -> None:
    """Restore an archive.

    Args:
        data_from: Another data root. Its projects are copied to this data root first.
        artifacts_from: The folder of another MLflow's artifacts, which is copied too.
        dry_run: Only check whether the restore is possible.
        say: Called with a line for each step.

    Raises:
        ArchiveError: The archive is damaged, or too new.
        RestoreError: A store is not empty, has another version, or lacks data that the archive
            refers to.
    """
    with archive.reading(source) as reader:
        manifest = reader.manifest
        say(f"{source}: whole; made {manifest['made_at']} by {manifest['made_by']} (profile {manifest['profile']})")
        plan = _plan(settings, manifest, dry_run=dry_run)
        if not dry_run:
            moving.bring(manifest, settings, data_from=data_from, artifacts_from=artifacts_from, say=say)
        if not dry_run or not (data_from or artifacts_from):
            plan.ahead = _look_at_data(settings, manifest)
        for line in plan.ahead:
            say(f"ahead of the backup, which does no harm: {line}")
        if dry_run:
            say(
                "it can be restored:"
                f" {', '.join(database.name for database in plan.todo) or 'everything is restored already'}"
            )
            return
        for name in plan.done:
            say(f"{name}: holds it already")
        # The ledger comes last: while it is empty, the restore is not complete.
        for database in reversed(plan.todo):
            if database.name == "ledger" and (problems := _check_models(settings, manifest)):
                raise RestoreError(problems)
            _load(reader, manifest, database, settings)
            say(f"{database.name}: restored")
        ledger.migrate(settings.ledger)
        say(_freeze(source))
        say(_restore_airflow(reader, manifest, settings))
    for line in _open_again():
        say(line)
    for line in _materialize():
        say(line)


# --- Checks before any change


def _plan(settings: Settings, manifest: dict[str, Any], *, dry_run: bool) -> Plan:
    plan, problems = Plan(), []
    if manifest["databases"]["ledger"]["version"] > newest_ledger():
        problems.append(
            f"the archive's ledger is at version {manifest['databases']['ledger']['version']}, this code knows"
            f" {newest_ledger()}: it was made by Airloop {manifest['airloop']} ({manifest['git_sha'][:12]}), use that"
            " or a newer one"
        )
    for database in databases(settings):
        try:
            state = _state(database, manifest, settings, dry_run=dry_run)
        except (SQLAlchemyError, rows.RowsError) as error:
            problems.append(f"{database.setting}: {_line(error)}")
            continue
        if state == "done":
            plan.done.append(database.name)
        elif state == "empty":
            plan.todo.append(database)
        else:
            problems.append(state)
    if problems:
        raise RestoreError(problems)
    return plan


def _state(database: Database, manifest: dict[str, Any], settings: Settings, *, dry_run: bool) -> str:
    """Return ``empty`` or ``done``, or else a description of the problem.

    A dry run creates no tables. It compares the version that they would have.
    """
    record = manifest["databases"][database.name]
    prepared = "" if database.url.startswith("sqlite") and not _exists(database.url) else _version(database)
    if database.name == "ledger" and prepared == "":
        return "empty"
    missing = prepared == ""
    if missing and dry_run:
        prepared = version_of_new_tables(database, settings)
    elif missing:
        # Empty tables do not contain any user data.
        prepare(database, settings, record["version"])
        prepared = _version(database)
    if database.name == "mlflow" and prepared != record["version"]:
        return (
            f"MLflow's tables are at {prepared} here (mlflow {installed('mlflow')}), the archive's at"
            f" {record['version']} (mlflow {manifest['versions']['mlflow']}): restore with that version of MLflow, and"
            " upgrade then"
        )
    if missing and dry_run:
        return "empty"
    with rows.one_moment(database.url) as connection:
        if _holds(database, connection, record):
            return "done"
        if used := database.in_use(connection):
            return (
                f"{database.setting}: the {database.name} is not empty, there are rows in {', '.join(used)}. A restore"
                " overwrites nothing: name an empty one"
            )
    return "empty"


def _holds(database: Database, connection: Any, record: dict[str, Any]) -> bool:
    contents = rows.contents(connection, database.tables(connection))
    # The restore itself writes to some of the ledger's tables after loading.
    if database.name == "ledger":
        ours = {"freezes", "decisions", "retrain_requests"}
        same = {name: [c.rows, c.digest] for name, c in contents.items() if name not in ours} == {
            n: c for n, c in record["tables"].items() if n not in ours
        }
        return same and bool(contents) and _was_restored(connection)
    # The registry's rows have changed since, by materialization.
    if database.name == "feast":
        return contents.keys() == record["tables"].keys() and {n: c.rows for n, c in contents.items()} == {
            n: c[0] for n, c in record["tables"].items()
        }
    unchanged: bool = {name: [c.rows, c.digest] for name, c in contents.items()} == record["tables"]
    return unchanged


def _was_restored(connection: Any) -> bool:
    count = connection.execute(text("SELECT count(*) FROM decisions WHERE project = '*' AND what = 'restore'")).scalar()
    return bool(count)


def _version(database: Database) -> str:
    with rows.one_moment(database.url) as connection:
        return database.version(connection)


def _exists(url: str) -> bool:
    return Path(url.removeprefix("sqlite:///").partition("?")[0]).exists()


def _look_at_data(settings: Settings, manifest: dict[str, Any]) -> list[str]:
    wrong, ahead = pointers.compare_tables(manifest["tables"])
    if wrong:
        where = (
            f"below {settings.store}. The backup was made over {manifest['store']}: mend AIRLOOP_DATA_ROOT, or bring"
            " the data with --data-from"
        )
        raise RestoreError([f"{line} ({where})" for line in wrong])
    return ahead


def _check_models(settings: Settings, manifest: dict[str, Any]) -> list[str]:
    (mlflow,) = (database for database in databases(settings) if database.name == "mlflow")
    with rows.one_moment(mlflow.url) as connection:
        wrong = pointers.compare_models(manifest["models"], connection, settings)
    return [f"{line}: bring MLflow's artifacts with --artifacts-from, and do it again" for line in wrong]


# --- The databases


def _load(reader: archive.Reader, manifest: dict[str, Any], database: Database, settings: Settings) -> None:
    record = manifest["databases"][database.name]
    if database.name == "ledger":
        prepare(database, settings, record["version"])
    expected = {name: rows.Content(*content) for name, content in record["tables"].items()}
    with (
        rows.closing_engine(database.url) as engine,
        engine.begin() as connection,
        reader.member(f"{database.name}.jsonl") as lines,
    ):
        if used := database.in_use(connection):
            raise RestoreError(
                [
                    f"{database.setting}: since this restore began, rows came into {', '.join(used)}: stop the process"
                    " that writes there"
                ]
            )
        rows.load(connection, database.tables(connection), lines, expected)
        if database.name == "ledger":
            why = json.dumps([f"made {manifest['made_at']} by {manifest['made_by']}"])
            note = {"why": why, "at": manifest["made_at"], "now": stamp()}
            into = "decisions (project, what, subject, verdict, reasons, cutoff, recorded_at)"
            connection.execute(
                text(f"INSERT INTO {into} VALUES ('*', 'restore', :at, 'restored', :why, :at, :now)"), note
            )


def _restore_airflow(reader: archive.Reader, manifest: dict[str, Any], settings: Settings) -> str:
    from include.operations.airflow_rows import restore_airflow

    if "airflow.jsonl" not in manifest["members"]:
        return "airflow: the archive has nothing of it"
    with reader.member("airflow.jsonl") as lines:
        return restore_airflow(settings, lines, AIRFLOW_TABLES)


# --- Continue the loop


def _freeze(source: Path) -> str:
    made = ledger.freeze(EVERYTHING, by=who(), why=f"restored from {source.name}: see `airloop doctor`, then thaw")
    return str(made)


def _open_again() -> list[str]:
    """Reopen the work that was in progress.

    Its runs are not in this Airflow, and its files may refer to objects that MLflow does not have.
    """
    messages = []
    now = stamp().replace("-", "").replace(":", "")
    for project in all_projects():
        known = {request.id: request for request in ledger.requests(project.name)}
        for request in known.values():
            if request.state == "claimed" and ledger.release_request(request.id, request.dag_run or ""):
                messages.append(f"{project.name}: request {request.id} was being worked on; it is open again")
            if request.state == "deploying" or (request.state == "passed" and "deploy" not in request.outcome):
                ledger.settle_request(
                    request.id, "passed", deploy="frozen", deploy_reason="a backup was restored before it was deployed"
                )
                messages.append(
                    f"{project.name}: version {request.outcome.get('version')} had passed the gate; it is deployed"
                    " after the thaw"
                )
        finished = {request.id for request in known.values() if request.state not in {"open", "claimed"}}
        messages += [f"{project.name}: {line}" for line in moving.set_aside(project, finished, now)]
    return messages


def _materialize() -> list[str]:
    """Fill the online store, which the backup does not contain."""
    from feast.errors import FeastObjectNotFoundException

    from include.features.build import materialize_anew

    messages = []
    for project in all_projects():
        # The project never had features.
        with suppress(FeastObjectNotFoundException, ValueError):
            messages.append(f"{project.name}: the online store is filled up to {materialize_anew(project)}")
    return messages


def _line(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]
