"""What the fast path looks up for the requests of a moment is what the ordinary way looks up for each, whatever the store does."""

import asyncio
import time

import pytest

from serving import metrics
from tests.serving.stand import NAME, expected, logged, wait_for
from tests.serving.wire import ASKED, FOUND, PATH, RAW, Client, Service, request, same


def gaps(model: str) -> float:
    """What is counted of look-ups that lacked something."""
    samples = (sample for metric in metrics.gaps.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total") and sample.labels["model"] == model)


def slow_look_ups(service: Service, monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> None:
    """The store is one that is waited for, and takes its time."""
    store = service.front.parts.lookup._store
    read = store.read

    async def slow(service, rows):
        await asyncio.sleep(seconds)
        return await read(service, rows)

    monkeypatch.setattr(store, "read", slow)
    monkeypatch.setattr(store, "read_at_once", lambda service, rows: None)


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
    slow_look_ups(service, monkeypatch, seconds=1.5)
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
    slow_look_ups(service, monkeypatch, seconds=20)
    began = time.monotonic()
    status, _, said = Client(service).ask(ASKED)
    assert (status, said["type"].rpartition(":")[2].rpartition("/")[2]) == (503, "too-slow") and time.monotonic() - began < 10


def test_whoever_leaves_while_something_is_looked_up_leaves_nothing_behind(service, monkeypatch):
    slow_look_ups(service, monkeypatch, seconds=0.3)
    leaving, staying = Client(service), Client(service)
    leaving.send(request(ASKED))
    staying.send(request(ASKED))
    wait_for(lambda: service.looking_up, 5)
    leaving.socket.close()
    assert staying.answer()[0] == 200
    wait_for(lambda: not service.looking_up and service.front.in_flight == 0, 5)
