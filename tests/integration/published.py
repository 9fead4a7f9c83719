"""Publish features of one made-up entity, as the DAG build_features does."""

import pyarrow as pa

from include import ledger
from include.data import layout, tables
from include.projects import get_project

FLIGHTS = get_project("flights")


def publish(cutoff: str, value: float, *, online: bool) -> None:
    """Publish one row of each view with this value in all features.

    With ``online``, also write the rows to the online store.
    """
    from include.features import build, store

    moment = ledger.moment(cutoff)
    for view in store.feature_views(FLIGHTS):
        columns = {
            **dict.fromkeys(view.join_keys, "string"),
            "event_timestamp": "timestamp",
            **{f.name: "float64" for f in view.features},
        }
        row = {
            **dict.fromkeys(view.join_keys, "X"),
            "event_timestamp": moment,
            **{f.name: value for f in view.features},
        }
        made = pa.Table.from_pylist([row], schema=tables.arrow_schema(columns))
        tables.append(
            layout.feature_table(FLIGHTS, view.name), made, writer=build.WRITER, sequence=int(moment.timestamp())
        )
    if online:
        build.materialize(FLIGHTS, cutoff)
