"""Direct reads from SQLite and Redis equal Feast's answers: bytes, values and times."""

import asyncio
import math
import signal
import socket
import subprocess
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.features import feast_wire
from serving.problems import ProblemError
from tests.ports import free_port
from tests.serving.conftest import NOW
from tests.serving.features.test_lookup import SERVICE, look_up, open_lookup
from tests.serving.harness import FeatureRepository
from tests.waiting import wait_for

ROWS = [
    {"shop": shop, "customer": customer}
    for shop, customer in (("b", 7), ("a", 8), ("c", 7), ("a", 7), ("ü", -1), ("", 0), ("a", 7))
]
PASSWORD = "n0t-guessed"


class Redis:
    """Debian's redis-server with a password."""

    def __init__(self, folder) -> None:
        self.port = free_port()
        self.folder = folder
        self.start()

    def start(self) -> None:
        command = [
            "redis-server",
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--requirepass",
            PASSWORD,
            "--save",
            "",
            "--dir",
            str(self.folder),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(self.answers, 60)

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.process.send_signal(signal.SIGCONT)
    server.process.kill()
    server.process.wait(30)


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def repository(request, tmp_path_factory):
    """Return a repository with the views of the other tests, in either store."""
    online = None
    if request.param == "redis":
        redis = request.getfixturevalue("redis")
        online = f"{{type: redis, connection_string: 'localhost:{redis.port},db=1,password={PASSWORD}'}}"
    repository = FeatureRepository(tmp_path_factory.mktemp(request.param), online)
    repository.register()
    repository.write(
        "shop_sales",
        [{"shop": "a", "sales_7d": 10.0, "late_rate": 0.25}, {"shop": "b", "sales_7d": 20.0, "late_rate": None}],
        NOW,
    )
    repository.write(
        "shop_weather",
        [{"shop": "a", "temp": 3.5}, {"shop": "ü", "temp": -1e300}],
        NOW - timedelta(hours=2, microseconds=0),
    )
    repository.write(
        "customer_orders",
        [{"customer": 7, "orders": 4}, {"customer": -1, "orders": -(2**62)}],
        NOW - timedelta(days=900),
    )
    repository.materialized(NOW)
    return repository


@pytest.fixture(scope="module")
def opened(repository):
    lookup = open_lookup(repository)
    assert lookup.status()["read_by"] == "OnlineStore"
    yield lookup
    lookup.close()


def feasts_own(repository: FeatureRepository, rows: list[dict]) -> list[tuple[dict, dict]]:
    """Return values and times from Feast's own client."""
    store = repository.store()
    proto = store.get_online_features(features=store.get_feature_service(SERVICE), entity_rows=rows).proto
    answers: list[tuple[dict, dict]] = [({}, {}) for _ in rows]
    for name, vector in zip(proto.metadata.feature_names.val, proto.results, strict=True):
        if name in ("shop", "customer"):
            continue
        for (values, times), value, moment in zip(answers, vector.values, vector.event_timestamps, strict=True):
            kind = value.WhichOneof("val")
            values[name] = None if kind in (None, "null_val") or value != value else getattr(value, kind)
            values[name] = None if isinstance(values[name], float) and math.isnan(values[name]) else values[name]
            times[name] = moment.ToDatetime(tzinfo=UTC) if moment.seconds or moment.nanos else None
    return answers


def test_values_and_times_are_feasts_own(opened, repository):
    service = opened.service(SERVICE)
    for features, (values, times) in zip(look_up(opened, SERVICE, ROWS), feasts_own(repository, ROWS), strict=True):
        assert features.values == values
        assert {feature: features.times[service.view_of[feature]] for feature in values} == times


def test_a_service_is_what_feast_says_of_it(opened, repository):
    from serving.features.feast_sdk import FeastStore
    from serving.features.lookup import _config

    theirs = FeastStore(repository.folder, _config(repository.folder))
    theirs.refresh()
    by_feast, ours = theirs.service(SERVICE), opened.service(SERVICE)
    assert (ours.view_of, ours.keys_of, ours.types, ours.ttls) == (
        by_feast.view_of,
        by_feast.keys_of,
        by_feast.types,
        by_feast.ttls,
    )
    assert ours.clock == by_feast.clock and ours.clock.until == NOW.timestamp()
    assert [features.values for features in asyncio.run(theirs.read(by_feast, ROWS))] == [
        features.values for features in look_up(opened, SERVICE, ROWS)
    ]


def test_keys_of_null_and_many_instances(opened):
    rows = [{"shop": None, "customer": None}, *ROWS * 100]
    features = look_up(opened, SERVICE, rows)
    assert set(features[0].values.values()) == {None}
    assert [one.values for one in features[1:]] == [one.values for one in look_up(opened, SERVICE, ROWS)] * 100


def test_a_look_up_is_one_round_trip(opened, monkeypatch):
    views_read = []
    store = opened._store._store
    read = store.read

    async def counted(groups, keys):
        views_read.append({view.name for group in groups for view in group.views})
        return await read(groups, keys)

    monkeypatch.setattr(store, "read", counted)
    look_up(opened, SERVICE, ROWS)
    assert views_read == [{"shop_sales", "shop_weather", "customer_orders"}]


def test_feast_is_not_imported_for_it(repository, tmp_path):
    import sys

    from tests.serving.harness import REPOSITORY

    script = f"""
import asyncio, sys, time
from pathlib import Path
from serving.features.lookup import FeatureLookup
lookup = FeatureLookup(Path({str(repository.folder)!r}))
lookup.start()
while lookup.state != "ready": time.sleep(0.01)
service = lookup.service({SERVICE!r})
print(asyncio.run(lookup.fetch(service, [{{"shop": "a", "customer": 7}}]))[0].values)
assert "feast" not in sys.modules and "pandas" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == str({"sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": 4})


def test_a_redis_that_hangs_or_dies_is_told_and_heals(tmp_path):
    (tmp_path / "redis").mkdir()
    redis = Redis(tmp_path / "redis")
    try:
        repository = FeatureRepository(
            tmp_path, f"{{type: redis, connection_string: 'localhost:{redis.port},password={PASSWORD}'}}"
        )
        repository.register()
        repository.write("shop_weather", [{"shop": "a", "temp": 3.5}], NOW)
        lookup = open_lookup(repository)

        async def story() -> None:
            service = await lookup.find(SERVICE)
            row = [{"shop": "a", "customer": 7}]
            assert (await lookup.fetch(service, row))[0].values["temp"] == 3.5
            redis.process.send_signal(signal.SIGSTOP)
            with pytest.raises(ProblemError, match="did not answer within 2 s") as problem:
                await lookup.fetch(service, row)
            assert problem.value.status == 503
            redis.process.kill()
            redis.process.wait(30)
            with pytest.raises(ProblemError) as problem:
                await lookup.fetch(service, row)
            assert problem.value.status == 503 and PASSWORD not in problem.value.detail
            redis.start()
            assert (await lookup.fetch(service, row))[0].values["temp"] is None  # available again, and empty

        asyncio.run(story())
        lookup.close()
    finally:
        redis.process.kill()
        redis.process.wait(30)


def test_a_wrong_password_is_told_without_the_password(redis, tmp_path):
    repository = FeatureRepository(
        tmp_path, f"{{type: redis, connection_string: 'localhost:{redis.port},password=s3cret-and-wrong'}}"
    )
    repository.register()
    lookup = open_lookup(repository)
    with pytest.raises(ProblemError, match="WRONGPASS|invalid") as problem:
        look_up(lookup, SERVICE, [{"shop": "a", "customer": 7}])
    assert "s3cret" not in problem.value.detail
    lookup.close()


def test_a_writer_that_holds_sqlite_delays_a_look_up_and_not_the_loop(tmp_path):
    import sqlite3

    repository = FeatureRepository(tmp_path)
    repository.register()
    repository.write("shop_weather", [{"shop": "a", "temp": 3.5}], NOW)
    lookup = open_lookup(repository)
    writer = sqlite3.connect(tmp_path / "online.db", isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN EXCLUSIVE")

    async def story() -> None:
        service = await lookup.find(SERVICE)
        asking = asyncio.create_task(lookup.fetch(service, [{"shop": "a", "customer": 7}]))
        beats = 0
        while beats < 20:
            await asyncio.sleep(0.01)
            beats += 1
        assert not asking.done()
        threading.Thread(target=writer.rollback).start()
        assert (await asking)[0].values["temp"] == 3.5

    asyncio.run(story())
    lookup.close()


def test_what_only_feast_reads_is_left_to_feast(tmp_path):
    from feast import Entity, FeatureService, FeatureView, Field, FileSource
    from feast.types import Array, Float64, String
    from feast.value_type import ValueType

    repository = FeatureRepository(tmp_path)
    shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
    source = FileSource(name="lists", path=str(tmp_path / "lists.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name="shop", dtype=String), Field(name="sales", dtype=Array(Float64))]
    view = FeatureView(name="lists", entities=[shop], ttl=timedelta(days=1), schema=schema, source=source)
    repository.store().apply([shop, view, FeatureService(name="lists_v1", features=[view])])
    lookup = open_lookup(repository)
    assert lookup.service("lists_v1").view_of == {"sales": "lists"}
    assert lookup.status()["read_by"] == "FeastStore"
    lookup.close()


KEY_VALUES = {"STRING": st.text(), "INT64": st.integers(-(2**63), 2**63 - 1), "INT32": st.integers(-(2**31), 2**31 - 1)}


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.sampled_from(sorted(KEY_VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), KEY_VALUES[kind])),
        max_size=4,
    )
)
def test_entity_keys_are_feasts_own(columns):
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    values = [Value(**{f"{kind.lower()}_val": value}) for kind, value in columns.values()]
    theirs = serialize_entity_key(EntityKey(join_keys=list(columns), entity_values=values), 3)
    ordered = sorted((name, kind) for name, (kind, _) in columns.items())
    assert feast_wire.entity_key(tuple(ordered), tuple(columns[name][1] for name, _ in ordered)) == theirs


SCALARS = st.one_of(
    st.tuples(st.just("double_val"), st.floats()),
    st.tuples(st.just("float_val"), st.floats(width=32)),
    st.tuples(st.just("bool_val"), st.booleans()),
    st.tuples(st.just("int64_val"), KEY_VALUES["INT64"]),
    st.tuples(st.just("int32_val"), KEY_VALUES["INT32"]),
    st.tuples(st.just("string_val"), st.text()),
    st.tuples(st.just("unix_timestamp_val"), KEY_VALUES["INT64"]),
    st.tuples(st.just("bytes_val"), st.binary()),
)


@settings(deadline=None, max_examples=300)
@given(SCALARS)
def test_values_are_feasts_own(scalar):
    from feast.protos.feast.types.Value_pb2 import Null, Value

    kind, given_ = scalar
    value = feast_wire.value(Value(**{kind: given_}).SerializeToString())
    assert value is None if isinstance(given_, float) and math.isnan(given_) else value == given_
    assert feast_wire.value(Value(null_val=Null.NULL).SerializeToString()) is None and feast_wire.value(b"") is None


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.lists(st.none() | SCALARS), st.lists(st.tuples(st.just("double_val"), st.floats()))))
def test_values_read_together_are_those_read_one_by_one(scalars):
    from feast.protos.feast.types.Value_pb2 import Value

    raws = [None if scalar is None else Value(**{scalar[0]: scalar[1]}).SerializeToString() for scalar in scalars]
    assert feast_wire.values(raws) == [feast_wire.value(raw) for raw in raws]


def test_lists_are_refused():
    from feast.protos.feast.types.Value_pb2 import DoubleList, Value

    with pytest.raises(ValueError, match="not a scalar"):
        feast_wire.value(Value(double_list_val=DoubleList(val=[1.0])).SerializeToString())


@settings(deadline=None)
@given(st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_times_are_feasts_own(moment):
    from google.protobuf.timestamp_pb2 import Timestamp

    proto = Timestamp()
    proto.FromDatetime(moment)
    assert abs(feast_wire.moment(proto.SerializeToString()) - moment) <= timedelta(microseconds=1)
