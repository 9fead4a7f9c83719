"""Copy data and models to another place, and set aside files that a restored registry lacks."""

import json
import re
from collections.abc import Callable
from typing import Any

from upath import UPath

from include.data import layout, storage
from include.projects import all_projects
from include.projects.base import Project
from include.settings import Settings
from include.stack.services import artifacts_root

ASIDE = "_set_aside"
REQUEST = re.compile(r"[0-9a-f]{16}")
Say = Callable[[str], None]


class MovingError(ValueError):
    """Raised when the data cannot be copied. The message contains the reason."""


def bring(
    manifest: dict[str, Any], settings: Settings, *, data_from: str | None, artifacts_from: str | None, say: Say
) -> None:
    """Copy the projects' data and MLflow's artifacts from their previous place.

    An interrupted copy is continued. Nothing is overwritten.

    Raises:
        MovingError: A file with that name and another size exists, or the source is empty.
    """
    if data_from:
        named = {name.partition("/")[0] for name in manifest["tables"]}
        for project in [one for one in all_projects() if one.name in named]:
            source = storage.path(data_from) / project.name
            say(
                f"{project.name}: {_copy(source, layout.project_root(project), manifest['store'], settings.store)}"
                f" files brought from {source}"
            )
    if artifacts_from:
        source = storage.path(artifacts_from)
        say(f"models: {_copy(source, storage.path(artifacts_root(settings)), '', '')} files brought from {source}")


def _copy(source: UPath, target: UPath, before: str, now: str) -> int:
    """Copy every file below a folder and return the number of files.

    In the manifests of training steps, the old data root is replaced by the new one.
    """
    try:
        files = source.fs.find(source.path, detail=True)
    except FileNotFoundError:
        files = {}
    if not files:
        raise MovingError(f"there is nothing in {source}")
    here = {}
    if target.exists():
        here = {
            path.removeprefix(target.path).lstrip("/"): entry["size"]
            for path, entry in target.fs.find(target.path, detail=True).items()
        }
    # The log of a Delta table defines its content. Its data is copied first, so that a concurrent
    # reader sees an older but complete version.
    for path in sorted(files, key=lambda name: ("/_delta_log/" in name, name)):
        # The file was being written when the old installation stopped.
        if path.endswith(".partial"):
            continue
        name = path.removeprefix(source.path).lstrip("/")
        content = source.fs.cat_file(path) if name not in here or _is_manifest(name) else None
        if content is not None and _is_manifest(name):
            content = content.replace(json.dumps(before)[1:-1].encode(), json.dumps(now)[1:-1].encode())
        size = files[path]["size"] if content is None else len(content)
        if name in here:
            if here[name] != size:
                raise MovingError(
                    f"{target / name} exists already, with other content than {path}: a restore overwrites nothing"
                )
            continue
        assert content is not None
        storage.write(target / name, content)
    return len(files)


def _is_manifest(name: str) -> bool:
    return name.startswith("training/") and name.endswith(".json")


def set_aside(project: Project, finished: set[str], stamp: str) -> list[str]:
    """Move the artifacts of unfinished requests to another folder.

    Their manifests may name runs and models that a restored MLflow does not have.

    Args:
        finished: Requests whose folders stay.
    """
    folder = layout.training(project, ASIDE).parent
    moved = []
    for name in sorted(_folders(folder)):
        if REQUEST.fullmatch(name) and name not in finished:
            target = folder / ASIDE / stamp / name
            if not storage.is_object_store(str(target)):
                target.parent.mkdir(parents=True, exist_ok=True)
            folder.fs.mv((folder / name).path, target.path, recursive=True)
            moved.append(f"what request {name} had made is now in {target}")
    return moved


def _folders(folder: UPath) -> list[str]:
    try:
        return [
            entry["name"].rstrip("/").rpartition("/")[2]
            for entry in folder.fs.ls(folder.path, detail=True)
            if entry["type"] == "directory"
        ]
    except FileNotFoundError:
        return []
