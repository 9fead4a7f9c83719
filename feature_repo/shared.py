"""What the projects' modules share: where feature tables lie, and how a view over one is declared."""

import os
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource
from feast.data_format import DeltaFormat
from feast.types import Float64, String
from feast.value_type import ValueType


def string_entity(name: str, description: str) -> Entity:
    return Entity(name=name, join_keys=[name], value_type=ValueType.STRING, description=description)


def view(project: str, name: str, entity: Entity, features: list[str], description: str, ttl: timedelta = timedelta(0)) -> FeatureView:
    """A view of numbers over the Delta table ``<store>/<project>/features/<name>``.

    Args:
        ttl: values older than this are not used: neither in training and batch, nor in serving, which goes by the project's clock. 0: they live for
            ever, and the project itself may write a row of nulls when a value is too old.
    """
    root = os.environ["AIRLOOP_FEAST_SOURCES"]
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=ttl,
        schema=[Field(name=entity.join_key, dtype=String), *(Field(name=feature, dtype=Float64) for feature in features)],
        source=FileSource(name=f"{project}_{name}", path=f"{root}/{project}/features/{name}", timestamp_field="event_timestamp", file_format=DeltaFormat()),
        description=description,
        tags={"project": project},
    )
