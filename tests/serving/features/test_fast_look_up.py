"""The fast path's batched look-up equals the individual look-ups of the ordinary path.

This holds for every state of the store.
"""

import asyncio
import time

import pytest

from serving import metrics
from tests.serving.harness import NAME, expected, logged
from tests.serving.wire import ASKED, MODEL_INPUT, PATH, RAW, Client, Service, request, same
from tests.waiting import wait_for


def gaps(model: str) -> float:
    """Return the counts of look-ups with missing values."""
    samples = (sample for metric in metrics.gaps.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total") and sample.labels["model"] == model)


def slow_look_ups(service: Service, monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> None:
    """Make the store slow and asynchronous."""
    store = service.gateway.context.lookup._store
    read = store.read

    async def slow(service, rows):
        await asyncio.sleep(seconds)
        return await read(service, rows)

    monkeypatch.setattr(store, "read", slow)
    monkeypatch.setattr(store, "read_at_once", lambda service, rows: None)


def test_it_looks_up_as_the_ordinary_way_does(service, tmp_path, monkeypatch):
    """The fast path looks up as the ordinary path.

    The cases are a found row, a missing row, a view that the instance provides itself, and an
    instance that needs no look-up.
    """
    instances = [ASKED, {**ASKED, "shop": "c", "temp": 2}, {**ASKED, "shop": None}, RAW]
    # Measured on a busy machine, the graph may seem too slow for four instances in the event loop.
    monkeypatch.setattr(service.gateway.context.registry.routes[NAME].champion.bundle.graph, "seconds", 1e-5)
    client, ids = Client(service), []
    # On a busy machine the fast path may pass a request on, because it takes long.
    for _ in range(5):
        before = gaps(NAME)
        service.ordinary.clear()
        fast = client.ask(*instances)
        assert gaps(NAME) - before == 1
        if not service.ordinary:
            break
    assert service.ordinary == [] and fast[2]["predictions"][0]["prediction"] == expected(MODEL_INPUT)
    ordinary = client.ask(*instances, Connection="close")
    assert service.ordinary == [PATH]
    for answered in (fast, ordinary):
        ids += [prediction["prediction_id"] for prediction in answered[2]["predictions"]]
    assert same(fast) == same(ordinary)
    assert [len(prediction["gaps"]) for prediction in fast[2]["predictions"]] == [0, 1, 0, 0]

    def of_both() -> list[dict]:
        return [row for row in logged(tmp_path / "store") if row["prediction_id"] in ids]

    rows = wait_for(lambda: len(logged_rows := of_both()) == 8 and logged_rows, 30)
    assert [row["prediction_id"] for row in rows] == ids
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
    read_sizes = []

    async def away(service, rows):
        read_sizes.append(len(rows))
        raise OSError("the store is away")

    store, client = service.gateway.context.lookup._store, Client(service)
    with monkeypatch.context() as patch:
        patch.setattr(store, "read", away)
        patch.setattr(store, "read_at_once", lambda service, rows: None)
        for number in range(3):
            status, _, problem = client.ask(ASKED)
            assert (status, problem["type"].rpartition(":")[2].rpartition("/")[2]) == (503, "lookup-failed")
            assert len(read_sizes) == number + 2  # once by the fast path
    time.sleep(1.1)
    before = len(service.ordinary)
    assert client.ask(ASKED)[0] == 200 and len(service.ordinary) == before


def test_a_slow_look_up_keeps_the_order_of_answers_and_holds_up_nobody(service, monkeypatch):
    slow_look_ups(service, monkeypatch, seconds=1.5)
    first, other = Client(service), Client(service)
    # The second request could be answered immediately.
    first.send(request(ASKED) + request(RAW))
    wait_for(lambda: service.looking_up, 5)
    began = time.monotonic()
    assert other.ask(RAW)[0] == 200 and time.monotonic() - began < 1
    assert [first.answer()[2]["predictions"][0]["prediction"] for _ in range(2)] == [
        expected(MODEL_INPUT),
        expected(RAW),
    ]
    wait_for(lambda: not service.looking_up and service.gateway.in_flight == 0, 5)
    other.send(request(ASKED))
    wait_for(lambda: service.looking_up, 5)
    service.server.should_exit = True  # Requests in flight are still answered.
    assert other.answer()[0] == 200


def test_a_look_up_that_takes_too_long_is_timed_by_the_ordinary_way(start, monkeypatch):
    service = start(request_seconds=0.5)
    slow_look_ups(service, monkeypatch, seconds=20)
    began = time.monotonic()
    status, _, problem = Client(service).ask(ASKED)
    assert (status, problem["type"].rpartition(":")[2].rpartition("/")[2]) == (
        503,
        "too-slow",
    ) and time.monotonic() - began < 10


def test_whoever_leaves_while_something_is_looked_up_leaves_nothing_behind(service, monkeypatch):
    slow_look_ups(service, monkeypatch, seconds=0.3)
    leaving, staying = Client(service), Client(service)
    leaving.send(request(ASKED))
    staying.send(request(ASKED))
    wait_for(lambda: service.looking_up, 5)
    leaving.socket.close()
    assert staying.answer()[0] == 200
    wait_for(lambda: not service.looking_up and service.gateway.in_flight == 0, 5)
