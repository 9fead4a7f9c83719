"""The fast path gives the ordinary path's answers in the order of the requests.

The segmentation of the bytes does not matter.
"""

import json
import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import keys
from tests.serving.bad_models import LATE_HOUR
from tests.serving.harness import NAME, expected, logged
from tests.serving.wire import ASKED, MODEL_INPUT, PATH, RAW, Client, request, same
from tests.waiting import wait_for


def test_it_answers_as_the_ordinary_way_does(service, tmp_path):
    client = Client(service)
    instances = [{**RAW, "hour": hour, "shop": shop} for hour in (1, 2.5) for shop in ("a", "b")]
    fast = client.ask(*instances)
    assert service.ordinary == [] and fast[0] == 200
    assert [prediction["prediction"] for prediction in fast[2]["predictions"]] == [
        expected(instance) for instance in instances
    ]
    ids = [prediction["prediction_id"] for prediction in fast[2]["predictions"]]
    # Which the fast path does not handle.
    ordinary = client.ask(*instances, Connection="close")
    assert service.ordinary == [PATH]
    ids += [prediction["prediction_id"] for prediction in ordinary[2]["predictions"]]
    assert same(fast) == same(ordinary)
    rows = wait_for(lambda: len(logged_rows := logged(tmp_path / "store")) == 8 and logged_rows, 10)
    assert [row["prediction_id"] for row in rows] == ids
    assert [row["features"] for row in rows] == instances * 2 and [row["key"] for row in rows] == [
        {k: i[k] for k in ("shop", "hour")} for i in instances * 2
    ]


@pytest.mark.parametrize(
    ("sent", "status", "field"),
    [
        (request({**RAW, "hour": "nine"}), 422, "instances[0].hour"),
        (request({**RAW, "hour": 10**400}), 422, "instances[0].hour"),
        (request({**RAW, "nobody": 1}), 422, "instances[0].nobody"),
        (request({**RAW, "hour": LATE_HOUR}), 422, "instances"),
        # Such a graph returns NaN for all rows.
        (request(RAW, {**RAW, "hour": LATE_HOUR}, path="/models/nans/predict"), 422, "instances[0]"),
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
    assert (answered[0], answered[1]["content-type"], answered[2].get("field")) == (
        status,
        "application/problem+json",
        field,
    )
    assert len(service.ordinary) == 1
    # The connection continues on the fast path.
    assert client.ask(RAW)[0] == 200 and len(service.ordinary) == 1


def test_neighbours_of_failed_request_are_answered(service):
    clients = [Client(service) for _ in range(8)]
    for number, client in enumerate(clients):
        client.send(request({**RAW, "hour": LATE_HOUR if number == 3 else number}))
    for number, client in enumerate(clients):
        status, _, body = client.answer()
        if number == 3:
            assert status == 422
        else:
            assert (status, body["predictions"][0]["prediction"]) == (200, expected({**RAW, "hour": number}))


def test_whatever_is_asked_the_two_ways_say_the_same(service):
    client, fields = Client(service), ["shop", "customer", "hour", "sales_7d", "late_rate", "temp", "orders", "colour"]
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.sampled_from(["a", "b", "c", "é", 7, LATE_HOUR])
    )
    nearly = st.dictionaries(st.sampled_from(fields), scalars, max_size=3)
    right = st.builds(
        lambda base, hour: {**base, "hour": hour}, st.sampled_from([RAW, ASKED]), st.integers(0, 50) | st.floats(0, 50)
    )
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
    """Answers come in the order of the requests for every segmentation of their bytes.

    The requests are plain, need look-ups, use the ordinary path or are invalid. A packet contains
    many requests, or a part of one.
    """
    drawn = random.Random(7)
    for _ in range(40):
        hours = [drawn.choice([1, 2, 3, LATE_HOUR, None, "x"]) for _ in range(drawn.randint(1, 6))]
        bases = [drawn.choice([(RAW, RAW), (ASKED, MODEL_INPUT)]) for _ in hours]
        sent = b"".join(request({**asked, "hour": hour}) for hour, (asked, _) in zip(hours, bases, strict=True))
        cuts = sorted(drawn.sample(range(1, len(sent)), drawn.randint(0, 4)))
        client = Client(service)
        client.send(
            *(sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)), pause=drawn.choice([0, 0.003])
        )
        for hour, (_, whole) in zip(hours, bases, strict=True):
            status, _, body = client.answer()
            if hour in (LATE_HOUR, "x"):
                assert status == 422, (hours, cuts)
            else:
                assert (status, body["predictions"][0]["prediction"]) == (200, expected({**whole, "hour": hour})), (
                    hours,
                    cuts,
                )
        client.socket.close()
    assert service.gateway.in_flight == 0 and not service.gateway.fast_path.unfinished


def test_a_body_in_parts_is_answered_fast_and_one_that_never_comes_is_timed(start):
    # A busy machine needs most of it for the three parts.
    service = start(request_seconds=3)
    client, sent = Client(service), request(RAW)
    client.send(sent[:-30], sent[-30:-10], sent[-10:], pause=0.1)
    assert client.answer()[0] == 200 and service.ordinary == []
    client.send(sent[:-1])
    status, _, problem = client.answer()
    assert (status, problem["type"].rpartition("/")[2].rpartition(":")[2]) == (408, "slow-body")
    assert not service.gateway.fast_path.unfinished


def test_a_long_body_has_the_ordinary_ways_limits(start):
    service = start(max_bytes=100_000)
    client = Client(service)
    answered = client.ask(*[RAW] * 900)  # some 80 kB
    assert (answered[0], len(answered[2]["predictions"])) == (200, 900)
    assert client.ask(*[RAW] * 1200)[0] == 413
    content = json.dumps({"instances": [RAW]}).encode() + b" " * 70_000
    client.send(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
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
    # The rate is charged once, although both paths saw the request.
    assert client.ask({**RAW, "hour": "nine"}, X_API_Key=key)[0] == 422
    assert [client.ask(RAW, X_API_Key=key)[0] for _ in range(3)] == [200, 200, 429]
    assert service.ordinary == [PATH] * 4


def test_each_request_of_a_connection_shows_its_own_key(start, tmp_path):
    """Each request of a connection is authenticated by its own key.

    A proxy sends the requests of several clients over one connection.
    """
    file = tmp_path / "keys.json"
    key, narrow = keys.create(file, "terminal", ["predict"]), keys.create(file, "narrow", ["predict"], models=("nans",))
    service = start(keys_file=file)
    client = Client(service)
    right, wrong = {"X_API_Key": key}, {**RAW, "hour": "nine"}
    for first in (RAW, ASKED, wrong):
        assert client.ask(first, **right)[0] == (422 if first is wrong else 200)
        for second in (RAW, wrong):
            assert client.ask(second)[0] == 401
            assert client.ask(second, X_API_Key=narrow)[0] == 403
            assert client.ask(second, X_API_Key="unknown")[0] == 401
        assert client.ask(RAW, Connection="keep-alive", Expect="100-continue")[0] == 401
    sent = [
        request(RAW, **right),
        request(RAW),
        request(RAW, X_API_Key=narrow),
        request(wrong, **right),
        request(wrong),
    ]
    client.send(b"".join(sent))
    assert [client.answer()[0] for _ in sent] == [200, 401, 403, 422, 401]


def test_without_keys_whom_a_proxy_speaks_for_is_not_this_machine(service):
    assert Client(service).ask(RAW, X_Forwarded_For="192.0.2.1")[0] == 401


def test_a_full_queue_and_a_server_that_takes_leave_are_the_fronts(start):
    service = start(max_requests=1)
    client = Client(service)
    service.gateway.shares.requests.take("another", 1)
    status, headers, _ = client.ask(RAW)
    assert (status, headers["retry-after"]) == (503, "1")
    service.gateway.shares.requests.give_back("another", 1)
    service.gateway.draining.begun = True
    status, headers, _ = client.ask(RAW)
    assert (status, headers["connection"]) == (200, "close")


def test_idle_connections_are_closed_and_busy_ones_are_not(start):
    service = start(idle=3)
    client, began = Client(service), time.monotonic()
    while time.monotonic() - began < 5:  # longer than the idle timeout
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
        client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
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

    requests, predictions = (
        'airloop_serving_requests_total{route="predict",status="200"}',
        f'airloop_serving_predictions_total{{arm="champion",model="{NAME}",version="1"',
    )
    assert value(after, requests) - value(before, requests) == 1
    assert value(after, predictions) - value(before, predictions) == 2
