"""Backup and restore."""

from pathlib import Path
from typing import Annotated

import typer

from include.cli.exits import fail, say, settings_or_exit

app = typer.Typer()


@app.command()
def backup(
    archive: Annotated[
        Path,
        typer.Argument(help="File to write, for example airloop-2026-01-31.zip. An existing file is not overwritten."),
    ],
) -> None:
    """Save the ledger, Feast's registry and MLflow's database to an archive.

    The archive also contains pointers to the tables and hashes of the model files. It does not
    contain the data itself: back that up with the file system's or the bucket's own tools. The loop
    may run during the backup. Only the owner of the archive can read it.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from include.operations.archive import ArchiveError
    from include.operations.backup import backup as save
    from include.operations.backup import note_backup
    from include.operations.rows import RowsError
    from include.settings import SettingsError

    try:
        saved = save(settings_or_exit(), archive)
    except (ArchiveError, RowsError, SettingsError, SQLAlchemyError) as error:
        fail(f"no backup was made: {error}")
    note_backup(archive)
    for name, held in saved.held.items():
        say(f"{name}: {held}")
    for line in saved.in_progress:
        say(f"in progress, and open again after a restore: {line}")
    say(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


@app.command()
def restore(
    archive: Annotated[Path, typer.Argument(help="Archive that `airloop backup` wrote.")],
    data_from: Annotated[
        str | None,
        typer.Option(help="First copy the projects' data from this data root (a folder or s3://bucket/prefix)."),
    ] = None,
    artifacts_from: Annotated[
        str | None,
        typer.Option(help="First copy MLflow's artifacts from here: <home>/mlflow/artifacts or <data root>/_mlflow."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check whether the restore is possible, and change nothing.")
    ] = False,
) -> None:
    """Restore a backup into empty stores, which may be of another kind (SQLite to Postgres).

    Afterwards everything is frozen: check the result, then run `airloop thaw --all`.

    The command names the cause if it refuses: a store that is not empty, a damaged archive, or an
    archive of another version. If it is killed, run it again.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from include.data.storage import StorageUnavailableError
    from include.operations.archive import ArchiveError
    from include.operations.moving import MovingError
    from include.operations.restore import RestoreError
    from include.operations.restore import restore as bring_back
    from include.operations.rows import RowsError
    from include.settings import SettingsError
    from include.stack.stores.migrations import MigrationError

    refused = (
        ArchiveError,
        RestoreError,
        MovingError,
        RowsError,
        MigrationError,
        SettingsError,
        StorageUnavailableError,
        SQLAlchemyError,
    )
    try:
        bring_back(
            settings_or_exit(), archive, data_from=data_from, artifacts_from=artifacts_from, dry_run=dry_run, say=say
        )
    except refused as error:
        fail(f"not restored:\n{error}")
