"""Backup and restore."""

from pathlib import Path
from typing import Annotated

import typer

from include.cli.exits import fail, say, settings_or_exit

app = typer.Typer()


@app.command()
def backup(
    archive: Annotated[Path, typer.Argument(help="The file to write, like airloop-2026-01-31.zip. Nothing is overwritten.")],
) -> None:
    """Save what the loop cannot do without: ledger, Feast's registry, MLflow's database; pointers to the tables and hashes of the models' files.

    The loop may run meanwhile. The data itself is not in it: that is for the file system's or the bucket's own backup. Read by its owner only.
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
    archive: Annotated[Path, typer.Argument(help="What `airloop backup` wrote.")],
    data_from: Annotated[str | None, typer.Option(help="Copy the projects' data from this data root (a folder, s3://bucket/prefix) first.")] = None,
    artifacts_from: Annotated[str | None, typer.Option(help="... and MLflow's artifacts from here: <home>/mlflow/artifacts, or <data root>/_mlflow.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look whether it can be done.")] = False,
) -> None:
    """Restore a backup into empty stores, also of another kind (SQLite to Postgres). Then everything is frozen: look, and `airloop thaw --all`.

    Refused, by name: a store that is not empty, a damaged archive, another version. Killed in the middle, do it again.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from include.data.storage import StorageUnavailable
    from include.operations.archive import ArchiveError
    from include.operations.moving import MovingError
    from include.operations.restore import RestoreError
    from include.operations.restore import restore as bring_back
    from include.operations.rows import RowsError
    from include.settings import SettingsError
    from include.stack.migrations import MigrationError

    refused = (ArchiveError, RestoreError, MovingError, RowsError, MigrationError, SettingsError, StorageUnavailable, SQLAlchemyError)
    try:
        bring_back(settings_or_exit(), archive, data_from=data_from, artifacts_from=artifacts_from, dry_run=dry_run, say=say)
    except refused as error:
        fail(f"not restored:\n{error}")
