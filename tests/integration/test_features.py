"""Features through Feast: history equals online, rows are published once, time never goes back."""

import time

import pandas as pd
import pyarrow as pa
import pytest
from feast.errors import FeatureViewNotFoundException

from include import ledger
from include.data import layout, tables
from include.features import build, store, training_set
from include.features.known import KnownTables
from include.ledger import moment
from include.projects.flights import features as flight_features
from include.projects.flights import project
from include.projects.lookup import LookupPolicy
from include.scoring.policy import complete
from include.settings import REPOSITORY, get_settings
from include.training.bundle import contract_of
from serving.features.lookup import FeatureLookup
from tests.homes import forget_home
from tests.serving.features.test_lookup import look_up
from tests.stores import on_both_stores
from tests.unit.features.test_flights_features import Tables, frames  # noqa: F401  (the same made-up flights)
from tests.waiting import wait_for

FIRST, SECOND = "2013-01-20T10:00:00Z", "2013-02-10T10:00:00Z"


@pytest.fixture
def ingested(tmp_path, stores, frames):  # noqa: F811
    """Return a home whose tables hold the made-up flights."""
    variables = pytest.MonkeyPatch()
    for name, value in {"AIRLOOP_HOME": str(tmp_path), **stores.variables}.items():
        variables.setenv(name, value)
    forget_home()
    for name, rows in frames.items():
        source = project.source(name)
        tables.append(
            layout.table(project, name),
            pa.Table.from_pandas(rows, schema=tables.arrow_schema(source.columns), preserve_index=False),
            writer="test",
            sequence=1,
        )
    yield frames
    variables.undo()
    forget_home()


def run(cutoff):
    build.compute(project, cutoff)
    versions = build.publish(project, cutoff)
    assert build.materialize(project, cutoff) == cutoff
    return versions


def rows_of(view):
    return tables.open_table(layout.feature_table(project, view)).to_pandas()


def test_integers_beside_a_missing_one_pass_through_feast_exactly(ingested):
    run(FIRST)
    now = moment(FIRST)
    due = flight_features.examples(KnownTables(project, now), since=None, until=now, cutoff=now).head(3)
    due = due.assign(
        order=pd.array([1582218195625938945, None, 2**63 - 1], dtype="Int64"),
        paid=pd.array([True, None, False], dtype="boolean"),
    )
    history = store.historical_features(project, due)
    assert history["order"].tolist() == [1582218195625938945, pd.NA, 2**63 - 1]
    assert history["paid"].tolist() == [True, pd.NA, False]


@on_both_stores
def test_history_equals_a_plain_asof_join_and_online_equals_history(ingested):
    run(FIRST)
    run(SECOND)
    now = moment(SECOND)
    due = flight_features.examples(KnownTables(project, now), since=None, until=now, cutoff=now)
    history = store.historical_features(project, due)
    pd.testing.assert_frame_equal(history[due.columns], due, check_dtype=False)

    computed = flight_features.compute(Tables(ingested, pd.Timestamp(SECOND)), since=None, cutoff=now)
    expected = due.sort_values("event_timestamp", kind="stable")
    for view in store.feature_views(project):
        rows = computed[view.name].sort_values("event_timestamp").astype({"event_timestamp": "datetime64[us, UTC]"})
        expected = pd.merge_asof(expected, rows, on="event_timestamp", by=list(view.join_keys))
    inputs = [*project.inputs.numeric]
    # Ensures that the comparison is not empty.
    assert history[inputs].notna().any().sum() > 25
    pd.testing.assert_frame_equal(history[inputs], expected[inputs], check_dtype=False)

    asked = due.tail(40).assign(event_timestamp=pd.Timestamp(SECOND))
    at_cutoff = store.historical_features(project, asked)
    feast = store.feature_store()
    online = feast.get_online_features(
        features=feast.get_feature_service(project.feature_service),
        entity_rows=asked[list(project.entities)].to_dict("records"),
    ).to_df()
    names = [f.name for view in store.feature_views(project) for f in view.features]
    pd.testing.assert_frame_equal(
        at_cutoff[names].reset_index(drop=True), online[names].astype("float64"), check_dtype=False
    )


@on_both_stores
def test_serving_reads_what_materialize_wrote(ingested, monkeypatch):
    """Serving reads what materialize wrote.

    Each side uses its own feature_store.yaml. On real stores, serving's user can only read the
    registry.
    """
    from include.stack.environment import serving_environment

    run(FIRST)
    run(SECOND)
    now = moment(SECOND)
    due = flight_features.examples(KnownTables(project, now), since=None, until=now, cutoff=now).tail(40)
    feast = store.feature_store()
    keys = due[list(project.entities)].to_dict("records")
    written = feast.get_online_features(
        features=feast.get_feature_service(project.feature_service), entity_rows=keys
    ).to_dict()

    for name, value in serving_environment(get_settings()).items():
        monkeypatch.setenv(name, value)
    lookup = FeatureLookup(REPOSITORY / "serving")
    lookup.start()
    deadline = time.monotonic() + 120
    while lookup.state != "ready" and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        lookups = look_up(lookup, project.feature_service, keys)
    finally:
        lookup.close()
    names = [feature for view in store.feature_views(project) for feature in (f.name for f in view.features)]
    assert [{name: one.values[name] for name in names} for one in lookups] == [
        {name: written[name][i] for name in names} for i in range(len(keys))
    ]
    assert sum(value is not None for one in lookups for value in one.values.values()) > 500
    assert {time for one in lookups for time in one.times.values() if time} and all(
        time <= now for one in lookups for time in one.times.values() if time
    )


@on_both_stores
def test_an_online_store_that_lost_its_data_is_filled_again(ingested, stores, request):
    with pytest.raises(FeatureViewNotFoundException):
        build.materialize_anew(project)
    run(FIRST)
    run(SECOND)
    feast = store.feature_store()
    service = feast.get_feature_service(project.feature_service)
    now = moment(SECOND)
    keys = (
        flight_features.examples(KnownTables(project, now), since=None, until=now, cutoff=now)
        .tail(40)[list(project.entities)]
        .to_dict("records")
    )
    before = feast.get_online_features(features=service, entity_rows=keys).to_dict()
    if stores.are_real:
        request.getfixturevalue("redis_server").forget(stores.variables["AIRLOOP_ONLINE_STORE_URL"])
    else:
        (get_settings().home / "feast" / "online.db").unlink()
    store.feature_store.cache_clear()
    feast = store.feature_store()
    feast.apply(
        [feast.get_feature_view(name) for name in project.feature_views]
    )  # creates SQLite's tables, Redis has none
    lost = feast.get_online_features(features=service, entity_rows=keys).to_dict()
    assert not any(value is not None for name in lost if name not in project.entities for value in lost[name])
    assert build.materialize_anew(project) == SECOND
    assert feast.get_online_features(features=service, entity_rows=keys).to_dict() == before


def test_no_value_is_later_than_the_prediction_time(ingested):
    run(FIRST)
    now = moment(FIRST)
    history = store.historical_features(
        project, flight_features.examples(KnownTables(project, now), since=None, until=now, cutoff=now)
    )
    for view in project.feature_views:
        times = history[f"feature_time_{view}"].dropna()
        assert len(times), view
        assert (times <= history.loc[times.index, "event_timestamp"]).all()


def test_two_steps_publish_what_one_step_would(ingested):
    run(FIRST)
    run(SECOND)
    once = flight_features.compute(Tables(ingested, pd.Timestamp(SECOND)), since=None, cutoff=moment(SECOND))
    for view in project.feature_views:
        key = [once[view].columns[0], "event_timestamp"]
        columns = sorted(once[view].columns)
        left, right = (frame[columns].sort_values(key, ignore_index=True) for frame in (rows_of(view), once[view]))
        pd.testing.assert_frame_equal(left, right, check_dtype=False)


def test_the_same_cutoff_again_changes_no_table(ingested):
    assert run(FIRST) == run(FIRST)


def test_killed_between_two_views_the_next_cutoff_publishes_no_row_twice(ingested, monkeypatch):
    build.compute(project, FIRST)
    appended = []
    original = tables.append

    def dies_after_two(uri, rows, **arguments):
        if len(appended) == 2:
            raise KeyboardInterrupt
        appended.append(uri)
        return original(uri, rows, **arguments)

    monkeypatch.setattr(tables, "append", dies_after_two)
    with pytest.raises(KeyboardInterrupt):
        build.publish(project, FIRST)
    monkeypatch.undo()
    run(SECOND)
    for view in project.feature_views:
        rows = rows_of(view)
        assert not rows.duplicated([rows.columns[0], "event_timestamp"]).any(), view


@on_both_stores
def test_an_older_cutoff_leaves_the_online_store_alone(ingested):
    run(SECOND)
    build.compute(project, FIRST)
    build.publish(project, FIRST)
    assert build.materialize(project, FIRST) == SECOND


def test_a_feature_from_the_future_is_refused(ingested, monkeypatch):
    honest = flight_features.compute

    def leaking(known, *, since, cutoff):
        views = honest(known, since=since, cutoff=cutoff)
        views["plane"].loc[0, "event_timestamp"] = pd.Timestamp(SECOND)
        return views

    monkeypatch.setattr(flight_features, "compute", leaking)
    with pytest.raises(ValueError, match="view plane: 1 rows have an event_timestamp after the cutoff"):
        build.compute(project, FIRST)


def test_a_training_set_is_named_by_what_it_was_made_from_and_can_be_made_again(ingested):
    run(FIRST)
    request = {"id": "r1", "cutoff": FIRST, "parameters": {}}
    first = training_set.build(project, request)
    rows = pd.read_parquet(first)
    assert len(rows) > 300 and rows["label"].notna().all() and (rows["label_known_at"] <= pd.Timestamp(FIRST)).all()
    assert list(rows.columns).count("origin") == 1

    late = (
        tables.read(project, "actuals", known_by=moment(SECOND))
        .tail(1)
        .assign(flight=99999, known_at=pd.Timestamp("2013-01-02T00:00Z").as_unit("us"))
    )
    schema = tables.arrow_schema(project.source("actuals").columns)
    tables.append(
        layout.table(project, "actuals"),
        pa.Table.from_pandas(late, schema=schema, preserve_index=False),
        writer="late",
        sequence=1,
    )
    assert training_set.build(project, request) != first  # other tables, another set
    again = training_set.build(
        project, {**request, "id": "r2", "parameters": {"table_versions": {s.name: 0 for s in project.sources}}}
    )
    pd.testing.assert_frame_equal(pd.read_parquet(again), rows)
    newest = training_set.build(project, {**request, "parameters": {"last_days": 5}})
    assert pd.read_parquet(newest)["event_timestamp"].min() > pd.Timestamp(FIRST) - pd.Timedelta("5D")


def test_a_ttl_hides_what_is_too_old_keeps_its_time_and_is_told_from_what_never_was(ingested, monkeypatch):
    run(FIRST)
    now, lives = moment(FIRST), pd.Timedelta(minutes=30)
    due = flight_features.examples(KnownTables(project, now), since=None, until=now, cutoff=now)
    before = store.historical_features(project, due)
    weather = next(view for view in store.feature_views(project) if view.name == "origin_weather")
    monkeypatch.setattr(weather, "ttl", lives.to_pytimedelta())
    store.register(project)
    after = store.historical_features(project, due)
    at = before["feature_time_origin_weather"]
    old, never = before["event_timestamp"] - at > lives, at.isna()
    assert 100 < old.sum() < len(due) - 100
    pd.testing.assert_series_equal(after["feature_time_origin_weather"], at)
    assert after.loc[old, "temp"].isna().all() and before.loc[old, "temp"].notna().any()
    pd.testing.assert_series_equal(after.loc[~old, "temp"], before.loc[~old, "temp"])

    views = {"origin_weather": {"stale_feature": "refuse", "unknown_entity": "baseline"}}
    lookup_result = complete(
        contract_of(project) | {"lookup": LookupPolicy(views=views).model_dump()}, store.feature_views(project), after
    )
    assert (lookup_result.refused == old.to_numpy()).all() and (lookup_result.by_rule == never.to_numpy()).all()


def test_serving_is_told_the_time_of_a_replay(ingested):
    """Serving compares the age of features with the project's clock, including a replay's clock."""
    run(FIRST)
    assert clock_seen_by_serving().replay is False
    ledger.set_clock(project.name, SECOND)
    run(SECOND)
    clock = clock_seen_by_serving()
    assert clock.replay and 0 <= clock.now() - moment(SECOND).timestamp() < 3600


def clock_seen_by_serving():
    lookup = FeatureLookup(REPOSITORY / "serving")
    lookup.start()
    try:
        wait_for(lambda: lookup.state == "ready", 60, lambda: lookup.error)
        return lookup.service(project.feature_service).clock
    finally:
        lookup.close()
