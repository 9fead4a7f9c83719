"""What one request may cost the others: parts, packed bodies, refused requests, and labels."""

import asyncio
import gzip
import json
import threading

import pytest

from serving import encoding, turns
from serving.access.callers import Caller
from serving.http import feedback
from serving.http.bodies import MOST_IN_LOOP, unpack
from serving.http.gateway import RequestShare
from serving.http.shares import Shares
from serving.models.loaded_model import SCALARS
from serving.problems import ProblemError
from tests.serving.harness import NAME
from tests.serving.wire import PATH, RAW, Client, Service

MOST = 8 * 2**20
UNITS = [
    b"1",
    b'"ab"',
    b"1.5",
    b'""',
    b"null",
    b'"\xc3\xa9"',
    b"1e9",
    b"1234567890",
    b"[]",
    b"{}",
    b'{"a":1}',
    b"[1,2]",
]


def post(service: Service, path: str, body: bytes, **headers: str):
    """Status, headers and document of the answer to a body."""
    client = Client(service)
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    client.send(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body
    )
    return client.answer()


def filled(unit: bytes) -> bytes:
    """Return a document of 8 MB that repeats a unit."""
    head, tail = b'{"instances":[', b"]}"
    return head + b",".join([unit] * ((MOST - 20) // (len(unit) + 1))) + tail


@pytest.mark.parametrize("unit", UNITS, ids=[unit.decode() for unit in UNITS])
def test_a_document_of_many_parts_is_refused_before_it_is_parsed(unit, monkeypatch):
    monkeypatch.setattr(encoding.orjson, "loads", None)
    with pytest.raises(ProblemError) as refused:
        encoding.loads(filled(unit))
    assert refused.value.status == 413


def test_an_object_of_many_names_is_refused_before_it_is_parsed(monkeypatch):
    document = b"{" + b",".join(b'"n%d":1' % number for number in range(200_000)) + b"}"
    monkeypatch.setattr(encoding.orjson, "loads", None)
    with pytest.raises(ProblemError):
        encoding.loads(document)


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [{f"feature_{number}": 1.5 for number in range(150)}] * 1000},
        {"inputs": [{"name": "numeric", "shape": [1000, 400], "datatype": "FP32", "data": [0.5] * 400_000}]},
        {
            "labels": [
                {
                    "entity": {f"key_{k}": n for k in range(7)},
                    "event_timestamp": "2026-01-01T00:00:00Z",
                    "label": 1,
                    "known_at": "2026-01-02T00:00:00Z",
                }
                for n in range(10_000)
            ]
        },
    ],
    ids=["1,000 instances of 150 features", "a tensor of 400,000 values", "10,000 labels of entities with 7 keys"],
)
def test_a_request_of_full_size_is_no_document_of_many_parts(document):
    assert encoding.loads(json.dumps(document).encode()) == document


@pytest.mark.parametrize("size", [0, 1, MOST_IN_LOOP, MOST_IN_LOOP + 1, 4 * MOST_IN_LOOP])
def test_the_event_loop_unpacks_small_results_only(size):
    packed = gzip.compress(b"x" * size)
    assert unpack(packed, b"gzip", MOST, at_once=MOST_IN_LOOP) == (b"x" * size if size <= MOST_IN_LOOP else None)
    assert unpack(packed, b"gzip", MOST) == b"x" * size
    with pytest.raises(ProblemError):
        unpack(packed, b"gzip", size - 1) if size else unpack(b"x", b"gzip", 1)


# --- the caller pays


@pytest.fixture
def keyed(start, tmp_path):
    from serving import keys

    file = tmp_path / "keys.json"
    made = {
        "slow": keys.create(file, "slow", ["predict"], rate=5, burst=20),
        "rows": keys.create(file, "rows", ["predict"], rows=20),
        "other": keys.create(file, "other", ["predict"]),
    }
    return start(keys_file=file), made


@pytest.mark.parametrize("key", ["slow", "rows"])
def test_a_large_refused_request_uses_up_its_callers_rate(keyed, key):
    service, made = keyed
    body = json.dumps({"instances": [{**RAW, "shop": "x" * 1000}] * 3000}).encode()  # too many instances, 3 MB
    statuses = []
    for _ in range(3):
        answer = post(service, PATH, body, X_API_Key=made[key])
        statuses.append(answer[0])
    assert statuses == [422, 429, 429]
    assert Client(service).ask(RAW, X_API_Key=made["other"])[0] == 200


def test_a_request_that_was_refused_for_its_callers_rate_costs_nothing_more():
    taken = []

    class Rate:
        def take(self, amount: float = 1) -> float:
            taken.append(amount)
            return 0

    shares = Shares(keyed=True, requests=2, rows=4, body_bytes=10**9)
    caller = Caller("busy", requests=Rate(), rows=Rate())
    for status, expected in ((429, []), (422, [64, 256])):
        taken.clear()
        RequestShare(shares, caller, charged=False).charge_refused(4 * 2**20, status)
        assert taken == expected


def test_a_small_refused_request_costs_one_request(keyed):
    service, made = keyed
    assert [post(service, PATH, b'{"instances": [{}]}', X_API_Key=made["slow"])[0] for _ in range(4)] == [422] * 4


# --- labels


def test_a_caller_who_has_sent_much_waits_for_its_own_turn_and_others_do_not():
    """The work of ``many`` ends only after that of ``one`` has ended."""
    may_end, at_work = threading.Event(), []

    def slow() -> None:
        at_work.append(threading.get_ident())
        assert may_end.wait(60)

    async def main():
        shared = turns.CallerTurns(threads=2)
        many = [asyncio.create_task(shared.run("many", slow)) for _ in range(40)]
        await asyncio.sleep(0.01)
        one = await asyncio.wait_for(shared.run("one", lambda: len(at_work)), 30)
        may_end.set()
        await asyncio.gather(*many)
        return one, shared

    one, shared = asyncio.run(main())
    assert one <= 1 and len(at_work) == 40
    assert not shared._turns and not shared._waiting


def test_what_the_work_raises_is_raised_and_the_next_one_has_its_turn():
    async def main():
        shared = turns.CallerTurns()
        with pytest.raises(ZeroDivisionError):
            await shared.run("a", lambda: 1 / 0)
        return await shared.run("a", threading.get_ident)

    assert asyncio.run(main()) != threading.get_ident()


def test_wrong_labels_are_taken_from_the_callers_rows_too(start, tmp_path):
    from serving import keys

    file = tmp_path / "keys.json"
    key = keys.create(file, "labels", ["feedback"], rows=1)
    service = start(keys_file=file)
    labels = [{"prediction_id": f"{number:032x}", "label": 1} for number in range(1000)] + [
        {"prediction_id": "x", "label": 1}
    ]
    body = json.dumps({"model": NAME, "labels": labels}).encode()
    assert [post(service, "/feedback", body, X_API_Key=key)[0] for _ in range(2)] == [422, 429]
    assert feedback._count({"labels": labels}) == 1001


# --- a rollout with an arm


@pytest.mark.parametrize("depth", [1, 300, 900, 990, 1010, 1019])
@pytest.mark.parametrize("size", [0, 100_000], ids=["short", "long"])
def test_a_deep_value_is_refused_by_name_while_a_rollout_has_an_arm(service, depth, size):
    body = (
        json.dumps({"instances": [{**RAW, "shop": 0}]})
        .encode()
        .replace(b'"shop": 0', b'"shop": ' + b"[" * depth + b"]" * depth + b" " * size)
    )
    status, _, problem = post(service, "/models/split/predict", body)
    assert (status, problem["field"]) == (422, "instances[0].shop") or status == 400


def test_an_instance_of_many_names_is_the_champions_to_refuse(service, monkeypatch):
    from serving.models import loaded_model

    placed = []
    place = loaded_model.place
    monkeypatch.setattr(loaded_model, "place", lambda *given: placed.append(given) or place(*given))
    many = {f"n{number}": number for number in range(5000)}
    assert post(service, "/models/split/predict", json.dumps({"instances": [many]}).encode())[0] == 422
    assert not placed
    assert post(service, "/models/split/predict", json.dumps({"instances": [RAW]}).encode())[0] == 200
    assert placed and {type(value) for value in RAW.values()} <= SCALARS
