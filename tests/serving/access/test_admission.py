"""``Access`` without a service, and the slots of the shared buckets."""

import fcntl
import itertools
import json
import logging
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from serving import keys
from serving.access import buckets, callers
from serving.access.buckets import SLOT, SLOTS, Bucket, SharedBucket, SharedFile
from serving.access.callers import NOBODY, OPEN, SHARED_FOLDER, Access, Caller, model_of, role_for
from serving.problems import ProblemError

LOCAL, ELSEWHERE = ("127.0.0.1", 50000), ("192.0.2.7", 50000)


def refusal(access: Access, path: str, headers=(), client=LOCAL) -> ProblemError:
    with pytest.raises(ProblemError) as error:
        access.admit(path, headers, client)
    return error.value


@pytest.fixture
def access_for(tmp_path):
    """Return a function that creates a key and returns it with an ``Access`` for its file."""

    file, numbers = tmp_path / "keys.json", itertools.count()

    def access_for(*roles: str, **limits) -> tuple[str, Access]:
        return keys.create(file, f"caller-{next(numbers)}", list(roles), **limits), Access(file)

    return access_for


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/models/flights", "flights"),
        ("/models/flights/predict", "flights"),
        ("/v2/models/flights", "flights"),
        ("/v2/models/flights/versions/3/infer", "flights"),
        ("/models", None),
        ("/models/", None),
        ("/v2/models", None),
        ("/v2/models/", None),
        ("/v2", None),
        ("/v2/health/ready", None),
        ("/models//predict", None),
        ("/feedback", None),
        ("/", None),
        ("", None),
        ("/x/models/flights", None),
        ("models/flights", None),
    ],
)
def test_the_model_of_a_path(path, model):
    assert model_of(path) == model


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("/models/x", "predict"),
        ("/v2/models/x", "predict"),
        ("/feedback", "feedback"),
        ("/metrics", "metrics"),
        ("/docs", None),
        ("/", None),
    ],
)
def test_the_role_of_a_path(path, role):
    assert role_for(path) == role


# --- without keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(OPEN))
def test_another_machine_sees_health_only(path):
    access = Access(None)
    assert access.admit(path, (), ELSEWHERE) is None
    problem = refusal(access, "/models", (), ELSEWHERE)
    assert (problem.status, problem.kind) == (401, "no-key")
    assert "SERVING_KEYS_FILE" in problem.detail and "its own machine only" in problem.detail


def test_a_request_of_this_machine_has_all_rights():
    access = Access(None)
    for client in (LOCAL, ("::1", 1), None):
        assert access.admit("/models", [(b"host", b"localhost:8000")], client) is NOBODY
        assert access.admit("/models", (), client) is NOBODY
    assert NOBODY.may_use("any") and NOBODY.corrects and NOBODY.details and NOBODY.labels_of is None


@pytest.mark.parametrize("path", sorted(OPEN))
def test_an_unknown_host_sees_health_only(path):
    headers = [(b"host", b"evil.example")]
    assert Access(None).admit(path, headers, LOCAL) is None
    problem = refusal(Access(None), "/models", headers)
    assert (problem.status, problem.kind, problem.field) == (421, "unknown-host", "Host")
    assert "'evil.example'" in problem.detail and "SERVING_HOSTS" in problem.detail


@pytest.mark.parametrize("host", ["models.internal", "MODELS.Internal", "models.internal:8000", "second:1"])
def test_names_are_added_by_a_setting(host):
    access = Access(None, hosts=("Models.Internal", "second"))
    assert access.admit("/models", [(b"host", host.encode())], LOCAL) is NOBODY
    assert refusal(access, "/models", [(b"host", b"x" + host.encode())]).status == 421


def test_one_origin_of_another_site_is_enough():
    host = (b"host", b"localhost:8000")
    own = (b"origin", b"http://localhost:8000")
    assert Access(None).admit("/models", [own, host, (b"origin", b"https://localhost:8000")], LOCAL) is NOBODY
    for headers in ([own, host, (b"origin", b"http://evil.example")], [(b"origin", b"http://evil.example"), host, own]):
        problem = refusal(Access(None), "/models", headers)
        assert (problem.status, problem.kind) == (403, "cross-site")
        assert "its Origin is 'http://evil.example'" in problem.detail
    # A request without a host has no origin of its own.
    assert refusal(Access(None), "/models", [own]).status == 403


def test_a_quoted_header_is_short_and_ascii():
    value = b"\xff" + b"a" * 150
    for headers in ([(b"host", value)], [(b"origin", value)], [(b"sec-fetch-site", value)]):
        detail = refusal(Access(None), "/models", headers).detail
        assert "'\ufffd" + "a" * 99 + "'" in detail


# --- with keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        ("x-api-key", "{}"),
        ("authorization", "Bearer {}"),
        ("authorization", "bearer   {} "),
        ("authorization", "BEARER {}"),
    ],
)
def test_headers_with_a_key(access_for, header):
    key, access = access_for("predict")
    name, value = header
    caller = access.admit("/models", [(b"accept", b"*/*"), (name.encode(), value.format(key).encode())], ELSEWHERE)
    assert caller.name == "caller-0" and caller.requests is None and caller.rows is None


@pytest.mark.parametrize("value", ["Basic {}", "{}", "Bearer{}"])
def test_another_kind_of_authorization_is_no_key(access_for, value):
    key, access = access_for("predict")
    problem = refusal(access, "/models", [(b"authorization", value.format(key).encode())], ELSEWHERE)
    assert (problem.status, problem.kind) == (401, "no-key")
    assert "Authorization: Bearer <key>" in problem.detail and "X-API-Key" in problem.detail


def test_open_paths_need_no_key_but_refuse_a_wrong_one(access_for):
    _, access = access_for("predict")
    for path in OPEN:
        assert access.admit(path, (), ELSEWHERE) is None
        assert "is not known here" in refusal(access, path, bearer("wrong"), ELSEWHERE).detail


def test_what_a_key_is_for(access_for):
    for role, path, other in (
        ("predict", "/models/a", "/feedback"),
        ("feedback", "/feedback", "/metrics"),
        ("metrics", "/metrics", "/models"),
    ):
        key, access = access_for(role)
        assert access.admit(path, bearer(key), ELSEWHERE).name.startswith("caller-")
        problem = refusal(access, other, bearer(key), ELSEWHERE)
        assert (problem.status, problem.kind) == (403, "role-lacking") and f"'{role_for(other)}'" in problem.detail


@pytest.mark.parametrize(
    ("roles", "limits", "corrects", "details"),
    [
        (["predict"], {}, False, False),
        (["feedback"], {}, False, False),
        (["feedback"], {"corrects": True}, True, False),
        (["metrics"], {}, False, True),
        (["admin"], {}, True, True),
        (["predict", "admin"], {}, True, True),
    ],
)
def test_rights_of_a_caller(access_for, roles, limits, corrects, details):
    key, access = access_for(*roles, **limits)
    caller = access.admit("/docs", bearer(key), ELSEWHERE)
    assert (caller.corrects, caller.details) == (corrects, details)
    assert caller.models is None and caller.labels_of is None


def test_models_and_callers_of_a_key(access_for):
    key, access = access_for("predict", "feedback", models=("a", "b"), labels_of=("shop",))
    caller = access.admit("/models/a", bearer(key), ELSEWHERE)
    assert caller.models == {"a", "b"} and caller.labels_of == {"shop"}
    assert access.admit("/v2/models/b/infer", bearer(key), ELSEWHERE) is caller
    problem = refusal(access, "/models/c", bearer(key), ELSEWHERE)
    assert (problem.status, problem.kind) == (403, "model-not-allowed") and "model 'c'" in problem.detail


@pytest.mark.parametrize(
    ("limits", "requests", "rows"),
    [
        ({"rate": 10}, (10, 20), None),
        ({"rate": 10, "burst": 3}, (10, 3), None),
        ({"rate": 0.1}, (0.1, 1), None),
        ({"rows": 7}, None, (7, 14)),
        ({"rows": 0.2}, None, (0.2, 1)),
        ({"rate": 1, "burst": 1, "rows": 5}, (1, 1), (5, 10)),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_rates_of_a_key(access_for, monkeypatch, tmp_path, limits, requests, rows, shared):
    if shared:
        (tmp_path / "shared").mkdir()
        monkeypatch.setenv(SHARED_FOLDER, str(tmp_path / "shared"))
    key, access = access_for("predict", **limits)
    caller = access.admit("/docs", bearer(key), ELSEWHERE)
    for bucket, of in ((caller.requests, requests), (caller.rows, rows)):
        assert (bucket and (bucket.rate, bucket.burst)) == of
        assert bucket is None or isinstance(bucket, SharedBucket if shared else Bucket)
    if shared:
        assert (tmp_path / "shared" / "rates").stat().st_size == SLOTS * SLOT.size


def test_a_rate_is_named_with_the_time_to_wait(access_for):
    key, access = access_for("predict", rate=0.5, burst=1, rows=0.5)
    caller = access.admit("/models", bearer(key), ELSEWHERE)
    problem = refusal(access, "/models", bearer(key), ELSEWHERE)
    assert (problem.status, problem.kind) == (429, "too-many-requests")
    assert 1.5 < problem.retry_after <= 2 and "0.5 times a second" in problem.detail
    caller.take_rows(3)
    with pytest.raises(ProblemError) as error:
        caller.take_rows(1)
    assert (error.value.status, error.value.kind) == (429, "too-many-rows")
    assert 5 < error.value.retry_after <= 6 and "0.5 rows a second" in error.value.detail


def test_a_key_expires_while_the_service_runs(access_for, monkeypatch):
    expires = datetime(2030, 1, 1, tzinfo=UTC)
    moment = [expires - timedelta(microseconds=1)]
    monkeypatch.setattr(callers, "datetime", SimpleNamespace(now=lambda zone: moment[0].astimezone(zone)))
    key, access = access_for("predict", expires=expires)
    assert access.admit("/models", bearer(key), ELSEWHERE)
    moment[0] = expires
    assert "no longer valid" in refusal(access, "/models", bearer(key), ELSEWHERE).detail


def test_the_file_is_read_again_after_a_second_at_most(access_for, monkeypatch):
    moment = [1000.0]
    monkeypatch.setattr(callers.time, "monotonic", lambda: moment[0])
    key, access = access_for("predict")
    assert access.admit("/models", bearer(key), ELSEWHERE)
    new = keys.create(access.file, "new", ["predict"])
    moment[0] += 0.9
    assert refusal(access, "/models", bearer(new), ELSEWHERE).status == 401
    moment[0] += 0.1
    assert access.admit("/models", bearer(new), ELSEWHERE).name == "new"


def test_an_unchanged_key_keeps_its_rate_and_a_changed_one_gets_a_new_one(access_for, monkeypatch):
    monkeypatch.setattr(callers, "RELOAD_SECONDS", 0.0)
    key, access = access_for("predict", rate=0.001, burst=2)
    caller = access.admit("/models", bearer(key), ELSEWHERE)
    keys.create(access.file, "new", ["predict"])
    assert access.admit("/models", bearer(key), ELSEWHERE) is caller
    assert refusal(access, "/models", bearer(key), ELSEWHERE).status == 429
    content = json.loads(access.file.read_text())
    content["keys"][0]["burst"] = 5
    access.file.write_text(json.dumps(content))
    assert access.admit("/models", bearer(key), ELSEWHERE).requests.burst == 5


def test_a_broken_file_is_logged_once_and_named_until_it_is_repaired(access_for, monkeypatch, caplog):
    monkeypatch.setattr(callers, "RELOAD_SECONDS", 0.0)
    key, access = access_for("predict")
    good = access.file.read_text()
    with caplog.at_level(logging.ERROR):
        for broken in ("{", "[1]"):
            access.file.write_text(broken)
            for _ in range(3):
                assert access.admit("/models", bearer(key), ELSEWHERE)
            assert str(access.file) in access.error
    assert [record.getMessage() for record in caplog.records] == [f"the keys are unchanged: {access.file} is not JSON"]
    # The same content again: only the error shows that the file must be read.
    access.file.write_text(good)
    assert access.admit("/models", bearer(key), ELSEWHERE) and access.error is None
    reads = []
    monkeypatch.setattr(callers, "read", lambda file: reads.append(file))
    assert access.admit("/models", bearer(key), ELSEWHERE)
    assert reads == []


# --- buckets --------------------------------------------------------------------------------------


def test_a_refused_body_costs_what_it_is_worth():
    caller = Caller("a", requests=Bucket(0.001, 10), rows=Bucket(0.001, 10))
    caller.charge(16 * 1024 - 1)
    assert (caller.requests._tokens, caller.rows._tokens) == (10, 10)
    caller.charge(128 * 1024)
    assert round(caller.requests._tokens, 1) == 8 and round(caller.rows._tokens, 1) == 2
    Caller("b").charge(1 << 30)


@pytest.fixture
def shared(tmp_path):
    return SharedFile(tmp_path / "rates")


def name_at(place: int, turn: int = 1) -> int:
    """Return a name whose search starts at the slot ``place``."""
    return turn * SLOTS + place


def put(shared: SharedFile, place: int, name: int, *, at: float, full_after: float) -> None:
    SLOT.pack_into(shared._map, place * SLOT.size, name, 0.5, at, full_after)


def place_of(shared: SharedFile, name: int) -> tuple[int, bool]:
    with shared.slot(name) as slot:
        return slot._at // SLOT.size, slot._is_mine


@pytest.mark.parametrize("first", [0, 7, SLOTS - 3, SLOTS - 1])
def test_a_name_takes_the_first_free_slot_and_finds_it_again(shared, first):
    now = time.monotonic()
    busy = [(first + step) % SLOTS for step in range(3)]
    for turn, place in enumerate(busy):
        put(shared, place, name_at(first, turn + 2), at=now, full_after=60)
    name = name_at(first)
    assert place_of(shared, name) == ((first + 3) % SLOTS, False)
    with shared.slot(name) as slot:
        slot.write(0.25, now, 60)
    # Its own slot is taken even if one before it becomes free.
    put(shared, busy[0], 0, at=0, full_after=0)
    assert place_of(shared, name) == ((first + 3) % SLOTS, True)
    with shared.slot(name) as slot:
        assert slot.read(9) == (0.25, now)


@pytest.mark.parametrize(
    ("age", "full_after", "is_free"), [(10, 5, True), (10, 11, False), (0, 0.5, False), (-3600, 10, True)]
)
def test_a_slot_is_reused_when_its_bucket_is_full(shared, age, full_after, is_free):
    put(shared, 5, name_at(5, 2), at=time.monotonic() - age, full_after=full_after)
    place, is_mine = place_of(shared, name_at(5))
    assert (place == 5) == is_free and not is_mine
    with shared.slot(name_at(5)) as slot:
        tokens, at = slot.read(9)
    assert tokens == 9 and time.monotonic() - at < 5


@pytest.mark.parametrize("first", [5, SLOTS - 10])
def test_when_all_its_slots_are_busy_a_name_shares_the_first(shared, first):
    now = time.monotonic()
    for step in range(buckets._PROBES):
        put(shared, (first + step) % SLOTS, name_at(first, step + 2), at=now, full_after=3600)
    assert place_of(shared, name_at(first)) == (first, False)
    last = (first + buckets._PROBES - 1) % SLOTS
    put(shared, last, 0, at=0, full_after=0)
    assert place_of(shared, name_at(first)) == (last, False)


LOCKED = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
for place in map(int, sys.argv[2:]):
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, {size}, place * {size})
        print("free")
    except OSError:
        print("locked")
"""


def locks(shared: SharedFile, path, *places: int) -> list[str]:
    """Return whether another process could lock the slots."""
    arguments = [sys.executable, "-c", LOCKED.format(size=SLOT.size), str(path), *map(str, places)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()


def test_one_slot_is_locked_and_only_within_the_block(shared, tmp_path):
    with shared.slot(name_at(5)):
        assert locks(shared, tmp_path / "rates", 4, 5, 6) == ["free", "locked", "free"]
    assert locks(shared, tmp_path / "rates", 5) == ["free"]
    assert fcntl.fcntl(shared._descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_a_debt_is_paid_before_the_next_token(shared, monkeypatch):
    moment = [1000.0]
    monkeypatch.setattr(buckets.time, "monotonic", lambda: moment[0])
    for bucket in (Bucket(2, 4), SharedBucket(shared, "a", 2, 4)):
        moment[0] += 100
        assert [bucket.take(10), bucket.take()] == [0, 3.5]
        moment[0] += 3.25
        assert bucket.take() == pytest.approx(0.25)
        moment[0] += 0.25
        assert bucket.take() == 0
        assert bucket.take() == pytest.approx(0.5)
        moment[0] += 1000
        assert [bucket.take() for _ in range(5)] == [0, 0, 0, 0, 0.5]
        # A clock that went back gives nothing and takes nothing.
        moment[0] -= 50
        assert bucket.take() == 0.5
        moment[0] += 50


def test_a_bucket_smaller_than_one_token_is_full_with_less(shared):
    assert Bucket(1, 0.5).take() == 0
