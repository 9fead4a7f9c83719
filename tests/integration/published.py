"""Features of one made-up entity, published as the DAG build_features does."""

import pyarrow as pa

from include import ledger
from include.data import layout, tables
from include.projects import get_project

FLIGHTS = get_project("flights")


def publish(cutoff: str, value: float, *, online: bool) -> None:
    """A row of each view, all of whose features are that value; with ``online`` in the online store, too."""
    from include.features import build, store

    moment = ledger.moment(cutoff)
    for view in store.feature_views(FLIGHTS):
        columns = {**dict.fromkeys(view.join_keys, "string"), "event_timestamp": "timestamp", **{f.name: "float64" for f in view.features}}
        row = {**dict.fromkeys(view.join_keys, "X"), "event_timestamp": moment, **{f.name: value for f in view.features}}
        made = pa.Table.from_pylist([row], schema=tables.arrow_schema(columns))
        tables.append(layout.feature_table(FLIGHTS, view.name), made, writer=build.WRITER, sequence=int(moment.timestamp()))
    if online:
        build.materialize(FLIGHTS, cutoff)
