"""Features come from a real Feast store with the values that Feast returns."""

import asyncio
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from serving.features.feast_registry import Clock
from serving.features.feature_values import FeatureValues
from serving.features.lookup import FeatureLookup
from serving.problems import ProblemError
from tests.serving.conftest import NOW, filled
from tests.serving.harness import REPOSITORY, FeatureRepository
from tests.stores import settings_on
from tests.waiting import wait_for

SERVICE = "shops_v1"


@pytest.fixture(scope="module", params=["embedded", "real"])
def repository_in(request):
    """Return a function that creates an empty Feast repository in a folder.

    It is on SQLite, or on Postgres and Redis.
    """

    def make(folder):
        if request.param == "embedded":
            return FeatureRepository(folder)
        from include.stack.stores.databases import make_databases

        settings = settings_on(
            request.getfixturevalue("postgres_server"), request.getfixturevalue("redis_server"), folder
        )
        make_databases(settings)
        return FeatureRepository(
            folder, settings.feast_environment["AIRLOOP_FEAST_ONLINE_STORE"], settings.feast_registry
        )

    return make


@pytest.fixture(scope="module")
def features(repository_in, tmp_path_factory):
    return filled(repository_in(tmp_path_factory.mktemp("features")))


@pytest.fixture(scope="module")
def lookup(features):
    opened = open_lookup(features)
    yield opened
    opened.close()


def test_values_and_the_time_of_each_view(lookup):
    (row,) = look_up(lookup, SERVICE, [{"shop": "a", "customer": 7}])
    assert row.values == {"sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": 4}
    assert row.times == {
        "shop_sales": NOW,
        "shop_weather": NOW - timedelta(hours=2),
        "customer_orders": NOW - timedelta(days=900),
    }


def test_what_feast_itself_answers_is_what_is_looked_up(lookup, features):
    rows = [{"shop": shop, "customer": customer} for shop, customer in (("b", 7), ("a", 8), ("c", 7), ("a", 7))]
    store = features.store()
    theirs = store.get_online_features(features=store.get_feature_service(SERVICE), entity_rows=rows).to_dict()
    ours = look_up(lookup, SERVICE, rows)
    assert [row.values for row in ours] == [
        {name: theirs[name][i] for name in row.values} for i, row in enumerate(ours)
    ]


def test_an_unknown_entity_has_no_values_and_no_time(lookup):
    (row,) = look_up(lookup, SERVICE, [{"shop": "c", "customer": 8}])
    assert set(row.values.values()) == {None} and set(row.times.values()) == {None}


def test_a_null_in_the_store_has_a_time(lookup):
    (row,) = look_up(lookup, SERVICE, [{"shop": "b", "customer": 8}])
    assert (row.values["late_rate"], row.times["shop_sales"]) == (None, NOW)


def test_a_key_of_null_belongs_to_nobody(lookup):
    first, second = look_up(lookup, SERVICE, [{"shop": None, "customer": 7}, {"shop": "a", "customer": None}])
    assert first.values == {"sales_7d": None, "late_rate": None, "temp": None, "orders": 4}
    assert second.values == {"sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": None}
    assert first.times == {"shop_sales": None, "shop_weather": None, "customer_orders": NOW - timedelta(days=900)}


def test_all_keys_null(lookup):
    (row,) = look_up(lookup, SERVICE, [{"shop": None, "customer": None}])
    assert set(row.values.values()) == {None}


def test_a_ttl_does_not_hide_old_rows(lookup, features):
    """A TTL does not hide old rows: staleness is judged later.

    Feast 0.67 ignores the TTL in online reads. All rows here are of 2013, and a shop's TTL is one
    day.
    """
    assert features.store().get_feature_view("shop_sales").ttl == timedelta(days=1)
    (row,) = look_up(lookup, SERVICE, [{"shop": "a", "customer": 7}])
    assert row.values["sales_7d"] == 10.0
    assert lookup.service(SERVICE).ttls == {"shop_sales": 86400, "shop_weather": 86400}


def test_a_replay_lives_when_its_features_were_materialized_and_all_others_now(lookup):
    service = lookup.service(SERVICE)
    # The time since the fixture filled the store.
    assert 0 <= service.clock.now() - NOW.timestamp() < 3600
    assert Clock.from_tags({}, [(NOW, NOW)]).now() == pytest.approx(time.time(), abs=60)
    unknown = Clock.from_tags({"clock": "replay"}, [(None, NOW)])
    assert unknown.replay and unknown.now() is None
    # A view whose entry was rewritten for another reason than a materialization does not hold back
    # the clock.
    later = datetime.now(UTC)
    assert Clock.from_tags(
        {"clock": "replay"}, [(NOW, later - timedelta(hours=1)), (NOW, later)]
    ).now() == pytest.approx(NOW.timestamp() + 3600, abs=60)


def test_a_view_that_is_being_filled_is_still_read(repository_in, tmp_path):
    """A view in the state MATERIALIZING can still be read. By default Feast refuses to serve it."""
    from feast.feature_view import FeatureViewState

    repository = repository_in(tmp_path)
    repository.register()
    repository.write("shop_weather", [{"shop": "a", "temp": 3.5}], NOW)
    store = repository.store()
    view = store.get_feature_view("shop_weather")
    # Feast 0.67 saves a state only together with another change.
    view.state, view.description = FeatureViewState.MATERIALIZING, "changed"
    store.registry.apply_feature_view(view, store.project, commit=True)
    assert repository.store().get_feature_view("shop_weather").state is FeatureViewState.MATERIALIZING
    opened = open_lookup(repository)
    assert look_up(opened, SERVICE, [{"shop": "a", "customer": 7}])[0].values["temp"] == 3.5
    opened.close()


def test_services_and_values_that_come_later_are_found(repository_in, tmp_path):
    repository = repository_in(tmp_path)
    opened = FeatureLookup(tmp_path, refresh_seconds=0.1)
    opened.start()
    with pytest.raises(
        ProblemError, match="is being opened|Registry|registry|database"
    ) as problem:  # the registry does not exist yet
        look_up(opened, SERVICE, [{"shop": "a", "customer": 7}])
    assert problem.value.status == 503
    repository.register("others_v1", views=("shop_weather",))
    wait_for(lambda: opened.state == "ready", 60, lambda: opened.error)
    with pytest.raises(ProblemError, match="no feature service 'shops_v1'"):
        look_up(opened, SERVICE, [{"shop": "a", "customer": 7}])
    repository.register()
    repository.write("shop_weather", [{"shop": "a", "temp": 3.5}], NOW)
    temperature = wait_for(lambda: found_temp(opened), 10)
    assert temperature == 3.5

    repository.write("shop_weather", [{"shop": "a", "temp": 4.5}], NOW + timedelta(hours=1))
    assert found_temp(opened) == 4.5
    repository.register(views=("shop_weather",))  # a changed service is detected
    wait_for(lambda: list(opened.service(SERVICE).view_of) == ["temp"], 10)
    opened.close()


def test_keys_are_asked_for_by_their_type(lookup):
    service = lookup.service(SERVICE)
    for key, value in (
        ("shop", 1),
        ("shop", 1.5),
        ("customer", "7"),
        ("customer", 7.0),
        ("customer", True),
        ("customer", 2**70),
    ):
        with pytest.raises(ProblemError) as problem:
            lookup.check_key(service, key, value, "instances[0]." + key)
        assert (problem.value.status, problem.value.field) == (422, "instances[0]." + key)
    lookup.check_key(service, "customer", 7, "")
    lookup.check_key(service, "shop", None, "")


def test_many_read_at_once(lookup):
    async def read(shop: str) -> list[float]:
        service = await lookup.find(SERVICE)
        return [(await lookup.fetch(service, [{"shop": shop, "customer": 7}]))[0].values["sales_7d"] for _ in range(50)]

    async def all_at_once() -> list[list[float]]:
        return await asyncio.gather(*(read(shop) for shop in "abababab"))

    assert asyncio.run(all_at_once()) == [[10.0] * 50, [20.0] * 50] * 4


def test_the_feature_repositorys_code_is_not_needed(lookup):
    """The feature repository's code is not needed.

    Its feature_store.yaml names an offline store that cannot be imported here. The fixture opens
    it.
    """
    assert "feature_repo_that_is_not_there" in (lookup.repo / "feature_store.yaml").read_text()
    assert "feature_repo_that_is_not_there" not in sys.modules


def test_the_services_feature_store_is_that_of_the_feature_repository():
    """The service's feature store is that of the feature repository.

    There are two files, because the service's image does not contain feature_repo. Serving must
    read the store that the loop fills.
    """
    ours, theirs = (
        yaml.safe_load((REPOSITORY / folder / "feature_store.yaml").read_text())
        for folder in ("serving", "feature_repo")
    )
    theirs.pop("offline_store")
    for config in (ours, theirs):
        config["registry"].pop("cache_ttl_seconds")
    assert ours == theirs


def test_a_password_with_a_dollar_is_a_password(tmp_path, monkeypatch):
    """A password with a dollar sign is not expanded as a variable.

    This would happen if its value were expanded a second time.
    """
    monkeypatch.setenv("SHOPS_REGISTRY", f"sqlite:///{tmp_path}/pa$$word-$HOMES.db")
    (tmp_path / "feature_store.yaml").write_text(
        "online_store: {path: x}\nregistry: {registry_type: sql, path: '${SHOPS_REGISTRY}'}"
    )
    opened = FeatureLookup(tmp_path)
    opened.start()
    wait_for(lambda: opened.state == "failed", 60)
    assert "which the environment lacks" not in opened.status()["error"]
    opened.close()


def test_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("SHOPS_ONLINE", raising=False)
    (tmp_path / "feature_store.yaml").write_text("online_store: {path: '${SHOPS_ONLINE}'}")
    opened = FeatureLookup(tmp_path)
    opened.start()
    wait_for(lambda: opened.state == "failed", 5)
    assert "names ${SHOPS_ONLINE}, which the environment lacks" in opened.status()["error"]
    opened.close()


def look_up(lookup: FeatureLookup, name: str, rows: list[dict]) -> list[FeatureValues]:
    async def ask() -> list[FeatureValues]:
        return await lookup.fetch(await lookup.find(name), rows)

    return asyncio.run(ask())


def found_temp(opened: FeatureLookup) -> float | None:
    try:
        return look_up(opened, SERVICE, [{"shop": "a", "customer": 7}])[0].values["temp"]
    except ProblemError:
        return None


def open_lookup(repository: FeatureRepository) -> FeatureLookup:
    opened = FeatureLookup(repository.folder, refresh_seconds=0.1)
    opened.start()
    wait_for(lambda: opened.state == "ready", 60, lambda: opened.error)
    return opened
