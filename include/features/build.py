"""Build features: compute into a staging folder, validate, publish once, materialize."""

import logging
from datetime import UTC, datetime

import pandas as pd
import pyarrow as pa
from feast import FeatureView

from include.data import age, layout, storage, tables
from include.features import store
from include.features.known import KnownTables
from include.features.times import stored
from include.ledger import iso, moment
from include.projects import file_name
from include.projects.base import DType, Project

WRITER = "build_features"
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
LOG = logging.getLogger(__name__)


def compute(project: Project, cutoff: str) -> dict[str, int]:
    """Compute every view's rows since the last published ones into the staging folder.

    Returns:
        View name -> number of rows.

    Raises:
        ValueError: the project's ``features.compute`` returned other views than it declares, or
            rows beyond the cutoff.
    """
    until = moment(cutoff)
    marks = [_published_until(project, view) for view in project.feature_views]
    since = None if None in marks else min(m for m in marks if m)
    if since and since >= until:
        return dict.fromkeys(project.feature_views, 0)
    known = KnownTables(project, until)
    if not known.current_versions():
        raise ValueError(
            f"project {project.name} has no ingested data yet: drop files into its landing zone and run"
            f" {project.name}__ingest"
        )
    views = project.module("features").compute(known, since=since, cutoff=until)
    if set(views) != set(project.feature_views):
        raise ValueError(
            f"{file_name(project.name, 'features')}: compute() gave {sorted(views)}, the project declares"
            f" feature_views={sorted(project.feature_views)}"
        )
    if text := age.warn(project, cutoff):
        LOG.warning("%s", text)
    folder = layout.staging(project, cutoff)
    for view in store.feature_views(project):
        rows = _table(project, view, views[view.name], until)
        storage.write_parquet(folder / f"{view.name}.parquet", rows)
    return {name: len(rows) for name, rows in views.items()}


def publish(project: Project, cutoff: str) -> dict[str, int | None]:
    """Append the validated rows to the feature tables exactly once, and clear the staging folder.

    Returns:
        View name -> version of its table.
    """
    folder, versions = layout.staging(project, cutoff), {}
    for view in project.feature_views:
        uri, staged = layout.feature_table(project, view), folder / f"{view}.parquet"
        if staged.exists():
            rows = storage.read_parquet(staged)
            mark = _published_until(project, view)
            # Views can be published up to different times if a run was killed between two of them.
            if mark:
                rows = rows.filter(
                    pa.compute.greater(rows["event_timestamp"], pa.scalar(mark, rows["event_timestamp"].type))
                )
            tables.append(uri, rows, writer=WRITER, sequence=int(moment(cutoff).timestamp()))
        versions[view] = tables.table_version(uri)
    storage.remove(folder)
    return versions


def materialize(project: Project, cutoff: str) -> str:
    """Write the newest published values to the online store.

    Returns:
        The time up to which the online store is filled (ISO). It is later than the cutoff if a run
            with a later cutoff has already filled it.
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
    """Re-materialize all features, e.g. after the online store lost its data or was replaced.

    Returns:
        The time up to which it is filled (ISO), as before.

    Raises:
        ValueError: nothing was ever materialized.
    """
    views = [store.feature_store().get_feature_view(name) for name in project.feature_views]
    done = [view.most_recent_end_time for view in views]
    if None in done:
        raise ValueError(f"nothing of {project.name} was materialized yet: run {project.name}__build_features")
    until = min(d for d in done if d).astimezone(UTC)
    # Updates the locations of the tables, which may have moved. A new online store gets its tables.
    store.register(project)
    store.materialize(project, since=BEGINNING, cutoff=until)
    return iso(until)


def published_until(project: Project) -> datetime | None:
    """Return the time up to which all views are published.

    Return None if nothing is published of some view.
    """
    marks = [_published_until(project, view) for view in project.feature_views]
    return None if None in marks else min(m for m in marks if m)


def superseded(project: Project, cutoff: str) -> str | None:
    """Return why a run with this cutoff would publish nothing, or None if it must run.

    A run with the cutoff of the last run must run, because it completes unfinished work.
    """
    until = published_until(project)
    if until is None or until <= moment(cutoff):
        return None
    return (
        f"features are published up to {iso(until)} already, and never go back in time: a run for {cutoff} has nothing"
        f" to do. If that cutoff was wrong, `airloop rewind {project.name} --to {cutoff} --reason ...` takes back what"
        " is later"
    )


def later_than(project: Project, until: datetime) -> dict[str, str]:
    """Return features of cutoffs after ``until``.

    They are ``table <view>`` and ``online store <view>`` -> its newest cutoff (ISO).
    """
    cutoffs = {}
    for view in project.feature_views:
        mark = _published_until(project, view)
        if mark and mark > until:
            cutoffs[f"table {view}"] = iso(mark)
    for view in store.known_views(project):
        end = view.most_recent_end_time
        if end and end.astimezone(UTC) > until:
            cutoffs[f"online store {view.name}"] = iso(end)
    return cutoffs


def rewind(project: Project, until: datetime) -> list[str]:
    """Remove the features of cutoffs after ``until``. The next run computes them again.

    Safe to repeat. All views go back to the newest cutoff that was published before the first wrong
    one. The online store is emptied and filled again. Until that is done, look-ups find nothing of
    the project.

    Returns:
        The actions, a sentence each.
    """
    actions: list[str] = []
    if not later_than(project, until):
        return actions
    for view in project.feature_views:
        uri = layout.feature_table(project, view)
        mark = tables.sequence_by(uri, WRITER, int(until.timestamp()))
        deleted, before = tables.rewind(
            uri, writer=WRITER, sequence=mark, column="event_timestamp", after=datetime.fromtimestamp(mark, UTC)
        )
        if before is not None:
            actions.append(
                f"feature view {view}: back to {_text(mark)}, {deleted} rows deleted; version {before} of its table"
                " keeps them"
            )
    left = published_until(project)
    if store.known_views(project):
        store.empty_online(project)
        if left:
            store.materialize(project, since=BEGINNING, cutoff=left)
        # Do this last, so that all of this is repeated after a kill.
        store.set_filled_until(project, left or BEGINNING)
        actions.append(
            f"online store: emptied, and filled again up to {iso(left)}"
            if left
            else "online store: emptied; the next build_features fills it"
        )
    return actions


def _text(mark: int) -> str:
    return iso(datetime.fromtimestamp(mark, UTC)) if mark else "the beginning"


def staged_views(project: Project, cutoff: str) -> dict[str, pd.DataFrame]:
    """Return the rows to validate: view name -> rows. It is empty if they are published already."""
    folder = layout.staging(project, cutoff)
    return {
        view: storage.read_parquet(folder / f"{view}.parquet").to_pandas()
        for view in project.feature_views
        if (folder / f"{view}.parquet").exists()
    }


def _published_until(project: Project, view: str) -> datetime | None:
    mark = tables.last_sequence(layout.feature_table(project, view), WRITER)
    return datetime.fromtimestamp(mark, UTC) if mark else None  # 0: everything was rewound


def _table(project: Project, view: FeatureView, rows: pd.DataFrame, until: datetime) -> pa.Table:
    """Return the rows with exactly the columns that Feast's view declares."""
    features = [feature.name for feature in view.features]
    columns: dict[str, DType] = {
        **dict.fromkeys(view.join_keys, "string"),
        "event_timestamp": "timestamp",
        **dict.fromkeys(features, "float64"),
    }
    missing = [c for c in columns if c not in rows]
    if missing:
        raise ValueError(
            f"{file_name(project.name, 'features')}: view {view.name} lacks {missing}, which"
            f" {file_name(project.name, 'feast')} declares"
        )
    rows = stored(project, rows[list(columns)], f"compute() of view {view.name}")
    late = rows["event_timestamp"] > pd.Timestamp(until)
    if late.any():
        raise ValueError(
            f"view {view.name}: {int(late.sum())} rows have an event_timestamp after the cutoff {iso(until)}: a feature"
            " must be known by then"
        )
    return pa.Table.from_pandas(rows[list(columns)], schema=tables.arrow_schema(columns), preserve_index=False)
