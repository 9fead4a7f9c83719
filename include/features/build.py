"""Features from the validated tables: computed into a staging folder, validated there, published once, materialized."""

from datetime import UTC, datetime

import pandas as pd
import pyarrow as pa

from include.data import layout, storage, tables
from include.features import store
from include.features.known import KnownTables
from include.ledger import iso, moment
from include.projects.base import DType, Project

WRITER = "build_features"
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def compute(project: Project, cutoff: str) -> dict[str, int]:
    """Compute every view's rows since the last published ones into the staging folder.

    Returns:
        View name -> number of rows.

    Raises:
        ValueError: the project's ``features.compute`` gave other views than it declares, or rows beyond the cutoff.
    """
    until = moment(cutoff)
    marks = [_published_until(project, view) for view in project.feature_views]
    since = None if None in marks else min(m for m in marks if m)
    if since and since >= until:
        return dict.fromkeys(project.feature_views, 0)
    known = KnownTables(project, until)
    if not known.current_versions():
        raise ValueError(f"project {project.name} has no ingested data yet: drop files into its landing zone and run {project.name}__ingest")
    views = project.module("features").compute(known, since=since, cutoff=until)
    if set(views) != set(project.feature_views):
        raise ValueError(
            f"include/projects/{project.name}/features.py: compute() gave {sorted(views)}, the project declares feature_views={sorted(project.feature_views)}"
        )
    folder = layout.staging(project, cutoff)
    for view in store.feature_views(project):
        rows = _table(project, view, views[view.name], until)
        storage.write_parquet(folder / f"{view.name}.parquet", rows)
    return {name: len(rows) for name, rows in views.items()}


def publish(project: Project, cutoff: str) -> dict[str, int | None]:
    """Append the validated rows to the feature tables, each exactly once, and clear the staging folder.

    Returns:
        View name -> version of its table.
    """
    folder, versions = layout.staging(project, cutoff), {}
    for view in project.feature_views:
        uri, staged = layout.feature_table(project, view), folder / f"{view}.parquet"
        if staged.exists():
            rows = storage.read_parquet(staged)
            mark = _published_until(project, view)
            if mark:  # views can differ in how far they are published, if a run was killed between two of them
                rows = rows.filter(pa.compute.greater(rows["event_timestamp"], pa.scalar(mark, rows["event_timestamp"].type)))
            tables.append(uri, rows, writer=WRITER, sequence=int(moment(cutoff).timestamp()))
        versions[view] = tables.table_version(uri)
    storage.remove(folder)
    return versions


def materialize(project: Project, cutoff: str) -> str:
    """Bring the newest published values into the online store.

    Returns:
        Until when the online store is filled (ISO); later than the cutoff if a later run was there before.
    """
    store.register(project)
    views = [store.feature_store().get_feature_view(name) for name in project.feature_views]
    done = [view.most_recent_end_time for view in views]
    since = None if None in done else min(d for d in done if d).astimezone(UTC)
    if since and since >= moment(cutoff):
        return iso(since)
    store.materialize(project, since=since or BEGINNING, cutoff=moment(cutoff))
    return cutoff


def materialize_anew(project: Project) -> str:
    """Fill the online store with everything that was ever brought into it: for one that has lost its data, or is another one now.

    Returns:
        Until when it is filled (ISO): as before.

    Raises:
        ValueError: nothing was ever materialized.
    """
    views = [store.feature_store().get_feature_view(name) for name in project.feature_views]
    done = [view.most_recent_end_time for view in views]
    if None in done:
        raise ValueError(f"nothing of {project.name} was materialized yet: run {project.name}__build_features")
    until = min(d for d in done if d).astimezone(UTC)
    store.register(project)  # with the places that the tables have now, should they have moved; and a new online store gets its tables
    store.materialize(project, since=BEGINNING, cutoff=until)
    return iso(until)


def staged_views(project: Project, cutoff: str) -> dict[str, pd.DataFrame]:
    """What waits to be validated: view name -> rows; empty if it was published before."""
    folder = layout.staging(project, cutoff)
    return {view: storage.read_parquet(folder / f"{view}.parquet").to_pandas() for view in project.feature_views if (folder / f"{view}.parquet").exists()}


def _published_until(project: Project, view: str) -> datetime | None:
    mark = tables.last_sequence(layout.feature_table(project, view), WRITER)
    return None if mark is None else datetime.fromtimestamp(mark, UTC)


def _table(project: Project, view, rows: pd.DataFrame, until: datetime) -> pa.Table:
    """The rows with exactly the columns that Feast's view declares."""
    features = [feature.name for feature in view.features]
    columns: dict[str, DType] = {**dict.fromkeys(view.join_keys, "string"), "event_timestamp": "timestamp", **dict.fromkeys(features, "float64")}
    missing = [c for c in columns if c not in rows]
    if missing:
        raise ValueError(f"include/projects/{project.name}/features.py: view {view.name} lacks {missing}, which feature_repo/{project.name}.py declares")
    late = rows["event_timestamp"] > pd.Timestamp(until)
    if late.any():
        raise ValueError(f"view {view.name}: {int(late.sum())} rows have an event_timestamp after the cutoff {iso(until)}: a feature must be known by then")
    return pa.Table.from_pandas(rows[list(columns)], schema=tables.arrow_schema(columns), preserve_index=False)
