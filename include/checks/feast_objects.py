"""Read the entities, views and services that a project declares, without Feast.

Importing Feast takes seconds. The module runs with stand-ins for Feast's classes, which store their
arguments. A module that fails with the stand-ins runs with Feast itself.
"""

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from include.projects import feast_module, file_of, get_project
from include.settings import get_settings


class View(NamedTuple):
    """A feature view: its join keys, its features, and the path of its table."""

    name: str
    join_keys: tuple[str, ...]
    features: tuple[str, ...]
    path: str


class Declared(NamedTuple):
    """The objects that a module declares. ``services`` maps each service to its views' names."""

    entities: tuple[str, ...]
    views: tuple[View, ...]
    services: dict[str, tuple[str, ...]]


class UnreadableError(ValueError):
    """Raised when a project's feast.py cannot be run."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


class _Kind(type):
    """The type of stand-ins for Feast's classes. Their undefined attributes are their names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(metaclass=_Kind):
    def __init__(self, *arguments: Any, **given: Any) -> None:
        self._arguments, self._given = arguments, given

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_given"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, features: list[str]) -> "_StandIn":
        schema = [field for field in self._given["schema"] if field.name in features]
        return type(self)(**{**self._given, "schema": schema})

    @property
    def join_key(self) -> str:
        key: str = (self._given.get("join_keys") or [self._given["name"]])[0]
        return key


def declared(project: str) -> Declared:
    """Return the objects that the project's ``feast.py`` declares.

    Raises:
        UnreadableError: The module is missing or raises an error.
    """
    # The package itself is imported with the real libraries.
    get_project(project)
    with _modules_aside(project):
        try:
            with _stand_ins():
                return _read(importlib.import_module(feast_module(project)))
        # The stand-ins may be the cause. Try again with Feast itself.
        except (AttributeError, TypeError, KeyError, IndexError, ImportError):
            pass
        except (Exception, SystemExit) as error:
            raise _unreadable(project, error) from error
    with _modules_aside(project):
        try:
            return _read(importlib.import_module(feast_module(project)))
        except (Exception, SystemExit) as error:
            raise _unreadable(project, error) from error


def _read(module: ModuleType) -> Declared:
    of_kind: dict[str, list[Any]] = {"Entity": [], "FeatureView": [], "FeatureService": []}
    for one in module.OBJECTS:
        of_kind.setdefault(type(one).__name__, []).append(one)
    views = tuple(_view(one) for one in of_kind["FeatureView"])
    services = {service.name: tuple(one.name for one in _views_of(service)) for service in of_kind["FeatureService"]}
    return Declared(tuple(entity.name for entity in of_kind["Entity"]), views, services)


def _view(view: Any) -> View:
    if isinstance(view, _StandIn):
        keys = tuple(entity.join_key for entity in view.entities)
        return View(
            view.name, keys, tuple(field.name for field in view.schema if field.name not in keys), str(view.source.path)
        )
    return View(
        view.name,
        tuple(view.join_keys),
        tuple(feature.name for feature in view.features),
        str(getattr(view.batch_source, "path", "")),
    )


def _views_of(service: Any) -> list[Any]:
    return list(service.features if isinstance(service, _StandIn) else service.feature_view_projections)


@contextmanager
def _modules_aside(project: str) -> Iterator[None]:
    """Import the project's module with this installation's paths, and remove it afterwards."""
    ours = {"feature_repo.shared", feast_module(project)}
    aside = {name: sys.modules.pop(name) for name in ours if name in sys.modules}
    before = os.environ.get("AIRLOOP_FEAST_SOURCES")
    os.environ["AIRLOOP_FEAST_SOURCES"] = get_settings().store
    try:
        yield
    finally:
        for name in ours:
            package, _, module = name.rpartition(".")
            sys.modules.pop(name, None)
            getattr(sys.modules.get(package), "__dict__", {}).pop(module, None)
        sys.modules.update(aside)
        if before is None:
            del os.environ["AIRLOOP_FEAST_SOURCES"]
        else:
            os.environ["AIRLOOP_FEAST_SOURCES"] = before


@contextmanager
def _stand_ins() -> Iterator[None]:
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "feast" or name.startswith("feast.")}
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name == "feast" or name.startswith("feast.")]:
            del sys.modules[name]
        sys.modules.update(aside)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == "feast" or name.startswith("feast."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def exec_module(self, module: ModuleType) -> None:
        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return _Kind(name, (_StandIn,), {})

        module.__getattr__ = attribute  # type: ignore[method-assign]


def _unreadable(project: str, error: BaseException) -> UnreadableError:
    if isinstance(error, SyntaxError):
        return UnreadableError(f"{type(error).__name__}: {error.msg}", error.lineno)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(file_of(project, "feast"))
    ]
    return UnreadableError(f"{type(error).__name__}: {error}", lines[-1] if lines else None)
