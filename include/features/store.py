"""All calls of Feast in the loop: register a project's objects, retrieve history, materialize."""

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
from include.projects import feast_module, file_name
from include.projects.base import Project
from include.settings import REPOSITORY, get_settings


@cache
def feature_store() -> FeatureStore:
    """Return the feature store of feature_repo/.

    It has this machine's registry, online store and tables.
    """
    settings = get_settings()
    (settings.home / "feast").mkdir(parents=True, exist_ok=True)
    os.environ.update(settings.feast_environment)
    return FeatureStore(repo_path=str(REPOSITORY / "feature_repo"))


def feature_views(project: Project) -> list[FeatureView]:
    feature_store()  # the modules below read its environment
    return [o for o in _objects(project) if isinstance(o, FeatureView)]


def register(project: Project) -> None:
    """Register the project's entities, views and service from its module. Safe to repeat.

    Raises:
        ValueError: the module and the project name different views.
    """
    declared = {view.name for view in feature_views(project)}
    if declared != set(project.feature_views):
        difference = ", ".join(sorted(declared ^ set(project.feature_views)))
        raise ValueError(
            f"{file_name(project.name, 'feast')} and {file_name(project.name, '__init__')} (feature_views) differ in:"
            f" {difference}"
        )
    clock = {"clock": "replay"} if ledger.is_replay(project.name) else {}
    for service in (o for o in _objects(project) if isinstance(o, FeatureService)):
        # Serving compares the age of features with the project's clock. This tag tells it that the
        # clock is a replay's (serving/features/feast_registry.py).
        service.tags = {**{tag: value for tag, value in (service.tags or {}).items() if tag != "clock"}, **clock}
    for view in feature_views(project):
        # apply() fills in the registry's intervals, but keeps those of an earlier call in this
        # object.
        view.materialization_intervals = []
    feature_store().apply(_objects(project))


def historical_features(project: Project, entities: pd.DataFrame) -> pd.DataFrame:
    """Return the project's features as of each row's ``event_timestamp``.

    Args:
        project: the project of the feature service.
        entities: join keys and ``event_timestamp``. Other columns are kept.

    Returns:
        The same rows with the features and ``feature_time_<view>``, the time of each view's values
            (NaT: none).
    """
    store = feature_store()
    features = store.get_historical_features(
        entity_df=entities, features=store.get_feature_service(project.feature_service)
    ).to_arrow()
    # Feast's to_df() converts integers to floats in columns with missing values.
    return tables.to_pandas(
        features, nullable=[str(name) for name in entities if isinstance(entities[name].dtype, ExtensionDtype)]
    )


def materialize(project: Project, *, since: datetime, cutoff: datetime) -> None:
    """Write the newest values known by the cutoff to the online store."""
    feature_store().materialize(start_date=since, end_date=cutoff, feature_views=list(project.feature_views))


def known_views(project: Project) -> list[FeatureView]:
    """Return the project's views in Feast's registry.

    The list is empty before the first run of ``build_features``.
    """
    return [
        view for view in feature_store().list_feature_views(allow_cache=False) if view.name in project.feature_views
    ]


def empty_online(project: Project) -> None:
    """Delete all data of the project's views from the online store."""
    feast, views = feature_store(), known_views(project)
    shared: dict[str, Any] = {
        "project": feast.project,
        "entities_to_delete": [],
        "entities_to_keep": [],
        "partial": True,
    }
    feast._get_provider().update_infra(tables_to_delete=views, tables_to_keep=[], **shared)
    feast._get_provider().update_infra(tables_to_delete=[], tables_to_keep=views, **shared)


def set_filled_until(project: Project, until: datetime) -> None:
    """Record in the registry that the online store is filled exactly up to ``until``."""
    feast = feature_store()
    for view in known_views(project):
        # Never an empty list, because Feast replaces it with the intervals in its registry.
        view.materialization_intervals = [(datetime(1970, 1, 1, tzinfo=UTC), until)]
        feast.registry.apply_feature_view(view, feast.project)


def _objects(project: Project) -> list[Any]:
    objects: list[Any] = import_module(feast_module(project.name)).OBJECTS
    return objects
