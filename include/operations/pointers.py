"""What a backup says of the data that it does not hold: which table was at which version, and which files a model version consists of."""

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

PROXIED = "mlflow-artifacts:/"  # MLflow's server hands these on to its own root


def table_uris(project: Project) -> dict[str, str]:
    """Name below the project's folder -> URI, of all its tables."""
    sources = {f"tables/{name}": layout.table(project, name) for name in (*(source.name for source in project.sources), "quarantine")}
    views = {f"features/{view}": layout.feature_table(project, view) for view in project.feature_views}
    return {**sources, **views, "predictions": layout.predictions(project)}


def table_pointers() -> dict[str, dict[str, Any]]:
    """``<project>/<table>`` -> its identity and version now; tables that were never written are left out."""
    found = {}
    for project in all_projects():
        for name, uri in table_uris(project).items():
            if table := tables.open_table(uri):
                found[f"{project.name}/{name}"] = {"id": str(table.metadata().id), "version": table.version()}
    return found


def compare_tables(pointers: dict[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """What is wrong with the tables that are here, and which are ahead (which does no harm: every stage goes on from its own mark)."""
    here = table_pointers()
    wrong, ahead = [], []
    for name, said in pointers.items():
        if name.partition("/")[0] not in {project.name for project in all_projects()}:
            continue  # a project that this code has no more
        now = here.get(name)
        if now is None:
            wrong.append(f"table {name} is not here; the backup knows it at version {said['version']}")
        elif now["id"] != said["id"]:
            wrong.append(f"table {name} is another one than that of the backup")
        elif now["version"] < said["version"]:
            wrong.append(f"table {name} is at version {now['version']}, the backup knows {said['version']}")
        elif now["version"] > said["version"]:
            ahead.append(f"{name} ({now['version']}, was {said['version']})")
    return wrong, ahead


def model_files(connection: Connection, settings: Settings) -> dict[str, dict[str, str]]:
    """``<model>/<version>`` -> file -> SHA-256, of all model versions in MLflow's database."""
    found: dict[str, dict[str, str]] = {}
    for name, version, location in _versions(connection):
        folder = _folder(location, settings)
        found[f"{name}/{version}"] = {} if folder is None else {path: hashlib.sha256(content).hexdigest() for path, content in _contents(folder)}
    return found


def compare_models(expected: dict[str, dict[str, str]], connection: Connection, settings: Settings) -> list[str]:
    """What is wrong with the models' files that are here."""
    here = model_files(connection, settings)
    wrong = []
    for version, files in expected.items():
        for path, digest in files.items():
            found = here.get(version, {}).get(path)
            if found != digest:
                wrong.append(f"model {version}: {path} {'is not here' if found is None else 'is another file than that of the backup'}")
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
    """(path below the folder, content) of every file below it; none if there is no such folder."""
    try:
        below = sorted(folder.fs.find(folder.path))
    except FileNotFoundError:
        return
    for path in below:
        yield path.removeprefix(folder.path).lstrip("/"), folder.fs.cat_file(path)
