"""The fast path gives the answers that the ordinary way gives, in the order of the requests, however their bytes arrive."""

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import keys, metrics
from serving.app import create_app
from serving.front import Front
from serving.settings import Settings
from tests.serving.bad_models import LATE_HOUR, bad_graph
from tests.serving.stand import NAME, Registry, expected, logged, wait_for

RAW = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}
ASKED = {"shop": "a", "customer": 7, "hour": 9}
FOUND = {"hour": 9, "sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": 4, "shop": "a"}
PATH = f"/models/{NAME}/predict"
MODELS = {NAME, "nans", "strict", "ruled", "split"}


class Service:
    """The service in a thread. ``ordinary``: the paths that came to the front."""

    def __init__(self, settings: Settings, idle: int) -> None:
        self.ordinary: list[str] = []
        self.front = create_app(settings)
        self.server = uvicorn.Server(
            uvicorn.Config(self.front, http="serving.connection:Connection", port=0, log_level="warning", access_log=False, timeout_keep_alive=idle)
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started, 60)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        parts = self.front.parts
        wait_for(lambda: parts.registry.routes.keys() == MODELS and parts.registry.routes["split"].arms and parts.lookup.state == "ready", 60)
        parts.lookup.service("shops_v1")  # as after the first look-up

    @property
    def looking_up(self) -> bool:
        return bool(self.front.fast_path._looking_up)

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


class Client:
    """A connection whose bytes are ours to cut."""

    def __init__(self, service: Service) -> None:
        self.socket = socket.create_connection(("127.0.0.1", service.port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._came = b""

    def send(self, *parts: bytes, pause: float = 0.02) -> None:
        for number, part in enumerate(parts):
            time.sleep(pause if number else 0)
            self.socket.sendall(part)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        while b"\r\n\r\n" not in self._came:
            self._more()
        head, self._came = self._came.split(b"\r\n\r\n", 1)
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        while len(self._came) < length:
            self._more()
        content, self._came = self._came[:length], self._came[length:]
        return int(status.split()[1]), headers, json.loads(content)

    def _more(self) -> None:
        more = self.socket.recv(65536)
        if not more:
            raise ConnectionError("closed")
        self._came += more

    def ask(self, *instances: dict[str, Any], **headers: str) -> tuple[int, dict[str, str], Any]:
        self.send(request(*instances, **headers))
        return self.answer()


def request(*instances: dict[str, Any], path: str = PATH, **headers: str) -> bytes:
    content = json.dumps({"instances": instances}).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: a\r\n{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content


@pytest.fixture(scope="module")
def world(migrated, features, tmp_path_factory) -> tuple[Registry, dict[str, Any]]:
    """A registry whose champions misbehave for late hours, and settings to serve them."""
    folder = tmp_path_factory.mktemp("fast")
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder)
    registry.add(model=bad_graph("throws"))
    registry.add(name="nans", model=bad_graph("nan"))
    registry.add(name="strict", contract={"lookup": {"unknown_entity": "refuse"}})
    registry.add(name="ruled", contract={"lookup": {"unknown_entity": "baseline"}}, rule=5)
    registry.add(name="split")
    arm = {"name": "new", "version": registry.add(1, name="split", champion=False), "weight": 1}
    registry.client.set_registered_model_tag("split", "rollout", json.dumps({"traffic": {"arms": [arm]}}))
    common = {"mlflow_uri": registry.uri, "feature_repo": features.folder, "poll_seconds": 0.1, "log_flush_seconds": 0.1, "drain_seconds": 0}
    return registry, common


@pytest.fixture
def start(world, tmp_path, monkeypatch) -> Iterator[Any]:
    running: list[Service] = []
    ask = Front.__call__

    async def counted(front, scope, receive, send):
        if scope["type"] == "http":
            running[0].ordinary.append(scope["path"])
        await ask(front, scope, receive, send)

    monkeypatch.setattr(Front, "__call__", counted)

    def begin(*, idle: int = 30, **settings: Any) -> Service:
        running.append(service := Service(Settings(**world[1], log_root=tmp_path / "store", cache=tmp_path / "cache", **settings), idle))
        return service

    yield begin
    for service in running:
        service.end()


@pytest.fixture
def service(start) -> Service:
    return start()


def same(answered: tuple[int, dict[str, str], Any]) -> tuple[int, list[str], Any]:
    """What two answers to one request have in common."""
    status, headers, said = answered
    for prediction in said.get("predictions", ()):
        assert len(prediction.pop("prediction_id")) == 32
    return status, [name for name in headers if name != "connection"], said


def gaps(model: str) -> float:
    """What is counted of look-ups that lacked something."""
    samples = (sample for metric in metrics.gaps.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total") and sample.labels["model"] == model)


def test_it_answers_as_the_ordinary_way_does(service, tmp_path):
    client = Client(service)
    instances = [{**RAW, "hour": hour, "shop": shop} for hour in (1, 2.5) for shop in ("a", "b")]
    fast = client.ask(*instances)
    assert service.ordinary == [] and fast[0] == 200
    assert [prediction["prediction"] for prediction in fast[2]["predictions"]] == [expected(instance) for instance in instances]
    told = [prediction["prediction_id"] for prediction in fast[2]["predictions"]]
    ordinary = client.ask(*instances, Connection="close")  # of which the fast path keeps clear
    assert service.ordinary == [PATH]
    told += [prediction["prediction_id"] for prediction in ordinary[2]["predictions"]]
    assert same(fast) == same(ordinary)
    rows = wait_for(lambda: len(found := logged(tmp_path / "store")) == 8 and found, 10)
    assert [row["prediction_id"] for row in rows] == told
    assert [row["features"] for row in rows] == instances * 2 and [row["key"] for row in rows] == [{k: i[k] for k in ("shop", "hour")} for i in instances * 2]


def test_it_looks_up_as_the_ordinary_way_does(service, tmp_path):
    """What is found, what is not, a view that the instance gives itself, and an instance that needs nothing."""
    instances = [ASKED, {**ASKED, "shop": "c", "temp": 2}, {**ASKED, "shop": None}, RAW]
    client, before = Client(service), gaps(NAME)
    fast, told = client.ask(*instances), []
    assert gaps(NAME) - before == 1
    assert service.ordinary == [] and fast[2]["predictions"][0]["prediction"] == expected(FOUND)
    ordinary = client.ask(*instances, Connection="close")
    assert service.ordinary == [PATH]
    for answered in (fast, ordinary):
        told += [prediction["prediction_id"] for prediction in answered[2]["predictions"]]
    assert same(fast) == same(ordinary)
    assert [len(prediction["gaps"]) for prediction in fast[2]["predictions"]] == [0, 1, 0, 0]
    rows = wait_for(lambda: len(found := logged(tmp_path / "store")) == 8 and found, 10)
    assert [row["prediction_id"] for row in rows] == told
    different = ("prediction_id", "predicted_at", "latency_ms")
    plain = [{name: value for name, value in row.items() if name not in different} for row in rows]
    assert plain[:4] == plain[4:]


@pytest.mark.parametrize(("model", "status", "arm"), [("strict", 422, None), ("ruled", 200, "baseline")])
def test_what_the_policy_does_not_do_without_is_the_ordinary_ways_and_is_counted_once(service, model, status, arm):
    client = Client(service)

    before = gaps(model)
    path = f"/models/{model}/predict"
    client.send(request(ASKED, {**ASKED, "shop": "c", "temp": 2}, path=path))
    answered = client.answer()
    assert (answered[0], service.ordinary) == (status, [path])
    if arm:
        assert [prediction["arm"] for prediction in answered[2]["predictions"]] == ["champion", arm]
    assert gaps(model) - before == 1
    client.send(request(ASKED, path=path))
    assert client.answer()[0] == 200 and len(service.ordinary) == 1


def test_a_store_that_is_away_is_told_by_the_ordinary_way_and_left_alone_for_a_second(service, monkeypatch):
    asked = []

    async def away(service, rows):
        asked.append(len(rows))
        raise OSError("the store is away")

    store, client = service.front.parts.lookup._store, Client(service)
    with monkeypatch.context() as patch:
        patch.setattr(store, "read", away)
        patch.setattr(store, "read_at_once", lambda service, rows: None)
        for number in range(3):
            status, _, said = client.ask(ASKED)
            assert (status, said["type"].rpartition(":")[2].rpartition("/")[2]) == (503, "lookup-failed")
            assert len(asked) == number + 2  # by the fast path once
    time.sleep(1.1)
    before = len(service.ordinary)
    assert client.ask(ASKED)[0] == 200 and len(service.ordinary) == before


def test_a_slow_look_up_keeps_the_order_of_answers_and_holds_up_nobody(service, monkeypatch):
    store = service.front.parts.lookup._store
    read = store.read

    async def slow(service, rows):
        await asyncio.sleep(1.5)
        return await read(service, rows)

    monkeypatch.setattr(store, "read", slow)
    monkeypatch.setattr(store, "read_at_once", lambda service, rows: None)
    first, other = Client(service), Client(service)
    first.send(request(ASKED) + request(RAW))  # the second one would be answered at once
    wait_for(lambda: service.looking_up, 5)
    began = time.monotonic()
    assert other.ask(RAW)[0] == 200 and time.monotonic() - began < 1
    assert [first.answer()[2]["predictions"][0]["prediction"] for _ in range(2)] == [expected(FOUND), expected(RAW)]
    wait_for(lambda: not service.looking_up and service.front.in_flight == 0, 5)
    other.send(request(ASKED))
    wait_for(lambda: service.looking_up, 5)
    service.server.should_exit = True  # whoever is being answered is answered
    assert other.answer()[0] == 200


def test_a_look_up_that_takes_too_long_is_timed_by_the_ordinary_way(start, monkeypatch):
    service = start(request_seconds=0.5)
    store = service.front.parts.lookup._store

    async def hangs(service, rows):
        await asyncio.sleep(20)

    monkeypatch.setattr(store, "read", hangs)
    monkeypatch.setattr(store, "read_at_once", lambda service, rows: None)
    began = time.monotonic()
    status, _, said = Client(service).ask(ASKED)
    assert (status, said["type"].rpartition(":")[2].rpartition("/")[2]) == (503, "too-slow") and time.monotonic() - began < 10


def test_whoever_leaves_while_something_is_looked_up_leaves_nothing_behind(service, monkeypatch):
    store = service.front.parts.lookup._store
    read = store.read

    async def slow(service, rows):
        await asyncio.sleep(0.3)
        return await read(service, rows)

    monkeypatch.setattr(store, "read", slow)
    monkeypatch.setattr(store, "read_at_once", lambda service, rows: None)
    leaving, staying = Client(service), Client(service)
    leaving.send(request(ASKED))
    staying.send(request(ASKED))
    wait_for(lambda: service.looking_up, 5)
    leaving.socket.close()
    assert staying.answer()[0] == 200
    wait_for(lambda: not service.looking_up and service.front.in_flight == 0, 5)


@pytest.mark.parametrize(
    ("sent", "status", "field"),
    [
        (request({**RAW, "hour": "nine"}), 422, "instances[0].hour"),
        (request({**RAW, "hour": 10**400}), 422, "instances[0].hour"),
        (request({**RAW, "nobody": 1}), 422, "instances[0].nobody"),
        (request({**RAW, "hour": LATE_HOUR}), 422, "instances"),
        (request(RAW, {**RAW, "hour": LATE_HOUR}, path="/models/nans/predict"), 422, "instances[0]"),  # of such a graph all rows are NaN
        (request(), 422, "instances"),
        (request(RAW, path="/models/nobody/predict"), 404, "name"),
        (request(RAW).replace(b'{"inst', b'["inst'), 400, "body"),
    ],
    ids=["wrong type", "too great", "unknown", "fails", "no number", "no instance", "no model", "no JSON"],
)
def test_what_is_wrong_is_said_by_the_ordinary_way(service, sent, status, field):
    client = Client(service)
    client.send(sent)
    answered = client.answer()
    assert (answered[0], answered[1]["content-type"], answered[2].get("field")) == (status, "application/problem+json", field)
    assert len(service.ordinary) == 1
    assert client.ask(RAW)[0] == 200 and len(service.ordinary) == 1  # the connection goes on, fast


def test_whoever_asks_beside_a_request_without_answer_is_answered(service):
    clients = [Client(service) for _ in range(8)]
    for number, client in enumerate(clients):
        client.send(request({**RAW, "hour": LATE_HOUR if number == 3 else number}))
    for number, client in enumerate(clients):
        status, _, said = client.answer()
        if number == 3:
            assert status == 422
        else:
            assert (status, said["predictions"][0]["prediction"]) == (200, expected({**RAW, "hour": number}))


def test_whatever_is_asked_the_two_ways_say_the_same(service):
    client, fields = Client(service), ["shop", "customer", "hour", "sales_7d", "late_rate", "temp", "orders", "colour"]
    scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["a", "b", "c", "é", 7, LATE_HOUR])
    nearly = st.dictionaries(st.sampled_from(fields), scalars, max_size=3)
    right = st.builds(lambda base, hour: {**base, "hour": hour}, st.sampled_from([RAW, ASKED]), st.integers(0, 50) | st.floats(0, 50))
    instance = right | st.builds(lambda base, changed: {**base, **changed}, st.sampled_from([RAW, ASKED, {}]), nearly)
    taken = 0

    @settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck), database=None)
    @given(instances=st.lists(right, min_size=1, max_size=4) | st.lists(instance, max_size=4))
    def ask_both(instances):
        nonlocal taken
        before = len(service.ordinary)
        fast = same(client.ask(*instances))
        taken += len(service.ordinary) == before
        assert fast == same(Client(service).ask(*instances, Connection="close"))

    ask_both()
    assert taken > 60, "hardly any of it took the fast path"


def test_answers_come_in_the_order_of_the_requests_however_their_bytes_are_cut(service):
    """Plain requests, such with look-ups, ordinary ones and wrong ones, many in a packet or each in many."""
    drawn = random.Random(7)
    for _ in range(40):
        hours = [drawn.choice([1, 2, 3, LATE_HOUR, None, "x"]) for _ in range(drawn.randint(1, 6))]
        bases = [drawn.choice([(RAW, RAW), (ASKED, FOUND)]) for _ in hours]
        sent = b"".join(request({**asked, "hour": hour}) for hour, (asked, _) in zip(hours, bases, strict=True))
        cuts = sorted(drawn.sample(range(1, len(sent)), drawn.randint(0, 4)))
        client = Client(service)
        client.send(*(sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)), pause=drawn.choice([0, 0.003]))
        for hour, (_, whole) in zip(hours, bases, strict=True):
            status, _, said = client.answer()
            if hour in (LATE_HOUR, "x"):
                assert status == 422, (hours, cuts)
            else:
                assert (status, said["predictions"][0]["prediction"]) == (200, expected({**whole, "hour": hour})), (hours, cuts)
        client.socket.close()
    assert service.front.in_flight == 0 and not service.front.fast_path.unfinished


def test_a_body_in_parts_is_answered_fast_and_one_that_never_comes_is_timed(start):
    service = start(request_seconds=1)
    client, sent = Client(service), request(RAW)
    client.send(sent[:-30], sent[-30:-10], sent[-10:], pause=0.1)
    assert client.answer()[0] == 200 and service.ordinary == []
    client.send(sent[:-1])
    status, _, said = client.answer()
    assert (status, said["type"].rpartition("/")[2].rpartition(":")[2]) == (408, "slow-body")
    assert not service.front.fast_path.unfinished


def test_a_long_body_has_the_ordinary_ways_limits(start):
    service = start(max_bytes=100_000)
    client = Client(service)
    answered = client.ask(*[RAW] * 900)  # some 80 kB
    assert (answered[0], len(answered[2]["predictions"])) == (200, 900)
    assert client.ask(*[RAW] * 1200)[0] == 413
    content = json.dumps({"instances": [RAW]}).encode() + b" " * 70_000
    client.send(f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    assert client.answer()[0] == 200
    assert service.ordinary == [PATH] * 3


def test_a_body_that_is_longer_than_it_may_be_is_the_ordinary_ways(start):
    service = start(max_bytes=1024)
    client = Client(service)
    assert [client.ask(*[RAW] * 5)[0], client.ask(*[RAW] * 20)[0]] == [200, 413]
    assert service.ordinary == [PATH]


def test_an_arms_entities_go_the_ordinary_way(service):
    client, path = Client(service), "/models/split/predict"
    client.send(request(RAW, path=path))
    assert [prediction["arm"] for prediction in client.answer()[2]["predictions"]] == ["new"]
    assert service.ordinary == [path]


def test_a_key_is_asked_for_and_its_rate_is_counted_once(start, tmp_path):
    file = tmp_path / "keys.json"
    key = keys.create(file, "terminal", ["predict"], rate=0.001, burst=4)
    other = keys.create(file, "labels", ["feedback"])
    service = start(keys_file=file)
    assert Client(service).ask(RAW)[0] == 401
    assert Client(service).ask(RAW, X_API_Key=other)[0] == 403
    client = Client(service)
    assert client.ask(RAW, X_API_Key=key, X_Forwarded_For="192.0.2.1")[0] == 200
    assert client.ask({**RAW, "hour": "nine"}, X_API_Key=key)[0] == 422  # let in once, though two ways looked at it
    assert [client.ask(RAW, X_API_Key=key)[0] for _ in range(3)] == [200, 200, 429]
    assert service.ordinary == [PATH] * 4


def test_without_keys_whom_a_proxy_speaks_for_is_not_this_machine(service):
    assert Client(service).ask(RAW, X_Forwarded_For="192.0.2.1")[0] == 401


def test_a_full_queue_and_a_server_that_takes_leave_are_the_fronts(start):
    service = start(max_requests=1)
    client = Client(service)
    service.front.in_flight = 1
    status, headers, _ = client.ask(RAW)
    assert (status, headers["retry-after"]) == (503, "1")
    service.front.in_flight = 0
    service.front.draining.begun = True
    status, headers, _ = client.ask(RAW)
    assert (status, headers["connection"]) == (200, "close")


def test_idle_connections_are_closed_and_busy_ones_are_not(start):
    service = start(idle=1)
    client, began = Client(service), time.monotonic()
    while time.monotonic() - began < 2.5:  # longer than one may idle
        assert client.ask(RAW)[0] == 200
        time.sleep(0.2)
    with pytest.raises(ConnectionError):
        client.answer()
    assert service.ordinary == []


def test_what_it_answers_is_counted(service):
    client = Client(service)
    for _ in range(3):
        client.ask(RAW, RAW)

    def counted() -> bytes:
        client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        while b"\r\n\r\n" not in client._came:
            client._more()
        head, client._came = client._came.split(b"\r\n\r\n", 1)
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(client._came) < length:
            client._more()
        content, client._came = client._came[:length], client._came[length:]
        return content

    before = counted()
    client.ask(RAW, RAW)
    after = counted()

    def value(text: bytes, series: str) -> float:
        return float(next(line for line in text.decode().splitlines() if line.startswith(series)).rpartition(" ")[2])

    requests, predictions = 'serving_requests_total{route="predict",status="200"}', f'serving_predictions_total{{arm="champion",model="{NAME}",version="1"'
    assert value(after, requests) - value(before, requests) == 1
    assert value(after, predictions) - value(before, predictions) == 2
