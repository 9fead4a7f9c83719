"""Every call of Feast that the loop makes: register a project's objects, retrieve history, materialize."""

import os
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from typing import Any

import pandas as pd
from feast import FeatureService, FeatureStore, FeatureView
from pandas.api.extensions import ExtensionDtype

from include import ledger
from include.data import tables
from include.projects.base import Project
from include.settings import REPOSITORY, get_settings


@cache
def feature_store() -> FeatureStore:
    """The feature store of feature_repo/, with this machine's registry, online store and tables."""
    settings = get_settings()
    (settings.home / "feast").mkdir(parents=True, exist_ok=True)
    os.environ.update(settings.feast_environment)
    return FeatureStore(repo_path=str(REPOSITORY / "feature_repo"))


def feature_views(project: Project) -> list[FeatureView]:
    feature_store()  # the modules below read its environment
    return [o for o in _objects(project) if isinstance(o, FeatureView)]


def register(project: Project) -> None:
    """Make the registry hold the project's entities, views and service as its module says; safe to repeat.

    Raises:
        ValueError: the module and the project name different views.
    """
    declared = {view.name for view in feature_views(project)}
    if declared != set(project.feature_views):
        difference = ", ".join(sorted(declared ^ set(project.feature_views)))
        raise ValueError(f"feature_repo/{project.name}.py and include/projects/{project.name}/__init__.py (feature_views) differ in: {difference}")
    clock = {"clock": "replay"} if ledger.is_replay(project.name) else {}
    for service in (o for o in _objects(project) if isinstance(o, FeatureService)):
        # Serving compares the age of features with the project's clock: of a replay it is told here (serving/feast_registry.py).
        service.tags = {**{tag: value for tag, value in (service.tags or {}).items() if tag != "clock"}, **clock}
    for view in feature_views(project):
        view.materialization_intervals = []  # apply() fills in what the registry knows, but keeps what an earlier call left in this object
    feature_store().apply(_objects(project))


def historical_features(project: Project, entities: pd.DataFrame) -> pd.DataFrame:
    """The project's features as of each row's ``event_timestamp``.

    Args:
        project: whose feature service is asked.
        entities: join keys and ``event_timestamp``; other columns are kept.

    Returns:
        The same rows with the features and ``feature_time_<view>``, the time of each view's values (NaT: none).
    """
    store = feature_store()
    found = store.get_historical_features(entity_df=entities, features=store.get_feature_service(project.feature_service)).to_arrow()
    # Feast's to_df() makes floats of integers beside a missing one.
    return tables.to_pandas(found, nullable=[str(name) for name in entities if isinstance(entities[name].dtype, ExtensionDtype)])


def materialize(project: Project, *, since: datetime, cutoff: datetime) -> None:
    """Bring the newest values known by the cutoff into the online store."""
    feature_store().materialize(start_date=since, end_date=cutoff, feature_views=list(project.feature_views))


def known_views(project: Project) -> list[FeatureView]:
    """The project's views as Feast's registry has them; none before the first run of ``build_features``."""
    return [view for view in feature_store().list_feature_views(allow_cache=False) if view.name in project.feature_views]


def empty_online(project: Project) -> None:
    """Take everything of the project's views out of the online store."""
    feast, views = feature_store(), known_views(project)
    shared: dict[str, Any] = {"project": feast.project, "entities_to_delete": [], "entities_to_keep": [], "partial": True}
    feast._get_provider().update_infra(tables_to_delete=views, tables_to_keep=[], **shared)
    feast._get_provider().update_infra(tables_to_delete=[], tables_to_keep=views, **shared)


def set_filled_until(project: Project, until: datetime) -> None:
    """Have the registry say that the online store was filled up to ``until``, and no further."""
    feast = feature_store()
    for view in known_views(project):
        # Never an empty list: Feast fills that in with what its registry knows.
        view.materialization_intervals = [(datetime(1970, 1, 1, tzinfo=UTC), until)]
        feast.registry.apply_feature_view(view, feast.project)


def _objects(project: Project) -> list:
    return import_module(f"feature_repo.{project.name}").OBJECTS
