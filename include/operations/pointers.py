"""Describe the data that a backup does not contain.

These are the version of each table, and the files of each model version.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, select
from upath import UPath

from include.data import layout, storage, tables
from include.operations.rows import tables as tables_of
from include.projects import all_projects
from include.projects.base import Project
from include.settings import Settings
from include.stack.services import artifacts_root

# MLflow's server maps these URIs to its own root.
PROXIED = "mlflow-artifacts:/"


def table_uris(project: Project) -> dict[str, str]:
    """Return name below the project's folder -> URI for all its tables."""
    sources = {
        f"tables/{name}": layout.table(project, name)
        for name in (*(source.name for source in project.sources), "quarantine")
    }
    views = {f"features/{view}": layout.feature_table(project, view) for view in project.feature_views}
    return {**sources, **views, "predictions": layout.predictions(project)}


def table_pointers() -> dict[str, dict[str, Any]]:
    """Return ``<project>/<table>`` -> identity and current version.

    Tables that were never written are omitted.
    """
    pointers = {}
    for project in all_projects():
        for name, uri in table_uris(project).items():
            if table := tables.open_table(uri):
                pointers[f"{project.name}/{name}"] = {"id": str(table.metadata().id), "version": table.version()}
    return pointers


def compare_tables(pointers: dict[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the faults of the existing tables, and the tables that are ahead of the backup.

    Being ahead is harmless, because every stage continues from its own mark.
    """
    here = table_pointers()
    wrong, ahead = [], []
    for name, pointer in pointers.items():
        if name.partition("/")[0] not in {project.name for project in all_projects()}:
            # This code no longer has the project.
            continue
        now = here.get(name)
        if now is None:
            wrong.append(f"table {name} is not here; the backup knows it at version {pointer['version']}")
        elif now["id"] != pointer["id"]:
            wrong.append(f"table {name} is another one than that of the backup")
        elif now["version"] < pointer["version"]:
            wrong.append(f"table {name} is at version {now['version']}, the backup knows {pointer['version']}")
        elif now["version"] > pointer["version"]:
            ahead.append(f"{name} ({now['version']}, was {pointer['version']})")
    return wrong, ahead


def model_files(connection: Connection, settings: Settings) -> dict[str, dict[str, str]]:
    """Return ``<model>/<version>`` -> file -> SHA-256 for all model versions in MLflow."""
    hashes: dict[str, dict[str, str]] = {}
    for name, version, location in _versions(connection):
        folder = _folder(location, settings)
        hashes[f"{name}/{version}"] = (
            {} if folder is None else {path: hashlib.sha256(content).hexdigest() for path, content in _contents(folder)}
        )
    return hashes


def compare_models(expected: dict[str, dict[str, str]], connection: Connection, settings: Settings) -> list[str]:
    """Return the faults of the existing model files."""
    here = model_files(connection, settings)
    wrong = []
    for version, files in expected.items():
        for path, digest in files.items():
            actual = here.get(version, {}).get(path)
            if actual != digest:
                wrong.append(
                    f"model {version}: {path}"
                    f" {'is not here' if actual is None else 'is another file than that of the backup'}"
                )
    return wrong


def _versions(connection: Connection) -> Iterator[tuple[str, str, str | None]]:
    (table,) = [t for t in tables_of(connection, lambda name: name == "model_versions") if t.name == "model_versions"]
    for row in connection.execute(select(table).order_by(table.c.name, table.c.version)).mappings():
        yield row["name"], str(row["version"]), row.get("storage_location") or row["source"]


def _folder(location: str | None, settings: Settings) -> UPath | None:
    if not location:
        return None
    if location.startswith(PROXIED):
        return storage.path(artifacts_root(settings)) / location.removeprefix(PROXIED).lstrip("/")
    return storage.path(location.removeprefix("file://"))


def _contents(folder: UPath) -> Iterable[tuple[str, bytes]]:
    """Yield (path below the folder, content) for every file. Yield nothing if it does not exist."""
    try:
        below = sorted(folder.fs.find(folder.path))
    except FileNotFoundError:
        return
    for path in below:
        yield path.removeprefix(folder.path).lstrip("/"), folder.fs.cat_file(path)
