"""Provide the functions that declare entities and views over the feature tables."""

import os
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource
from feast.data_format import DeltaFormat
from feast.types import Float64, String
from feast.value_type import ValueType


def string_entity(name: str, description: str) -> Entity:
    return Entity(name=name, join_keys=[name], value_type=ValueType.STRING, description=description)


def view(
    project: str, name: str, entity: Entity, features: list[str], description: str, ttl: timedelta = timedelta(0)
) -> FeatureView:
    """Return a view of numbers over the Delta table ``<store>/<project>/features/<name>``.

    Args:
        ttl: Values older than this are not used in training, batch scoring and serving. Serving
            compares them with the project's clock. With 0 values never expire, and the project can
            write a row of nulls when a value is too old.
    """
    root = os.environ["AIRLOOP_FEAST_SOURCES"]
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=ttl,
        schema=[
            Field(name=entity.join_key, dtype=String),
            *(Field(name=feature, dtype=Float64) for feature in features),
        ],
        source=FileSource(
            name=f"{project}_{name}",
            path=f"{root}/{project}/features/{name}",
            timestamp_field="event_timestamp",
            file_format=DeltaFormat(),
        ),
        description=description,
        tags={"project": project},
    )
