"""The soak of `make soak-serving`, for a short time: no fault, no hang, and memory that does not run away.

``AIRLOOP_TEST_SOAK_SECONDS`` makes it longer; a growth below a MiB a minute is asked of ten minutes and more, since in less all is warming up.
"""

import os

import pytest

from bench import serving_model, serving_soak

pytestmark = [pytest.mark.stack, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("AIRLOOP_TEST_SOAK_SECONDS", "15"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = serving_soak.started(serving_model.fit(), tmp_path_factory.mktemp("soak"))
    try:
        running.wait(400)
        yield running
    finally:
        running.end()


def test_good_and_bad_load(server):
    found = serving_soak.soak(server, SECONDS)
    print(found)
    assert (found["faults"], found["first_faults"]) == (0, [])
    answered = found["statuses"]
    for kind, status in (  # there is no registry, so nobody knows which models there are
        ("raw", 200), ("looked up", 200), ("tensors", 200), ("binary tensors", 200), ("unknown entity", 200), ("text for a number", 422), ("no JSON", 400),
        ("another model", 503), ("metrics", 200), ("wrong feedback", 422),
    ):  # fmt: skip
        assert answered.get(f"{kind} {status}"), (kind, answered)
    assert found["growth_mib_per_minute"] < 1 if SECONDS >= 600 else found["memory_mib"]["end"] - found["memory_mib"]["warm"] < 60


def test_a_fault_is_seen():
    """The guard itself: an answer of 500, and a 503 that does not say when to come back."""
    found = serving_soak.Found()
    found.note("raw", 503, b"", {"Retry-After": "1"})
    assert found.faults == []
    found.note("raw", 503, b"", {})
    found.note("raw", 500, b"oh", {})
    assert found.faults == ["raw: 503 b''", "raw: 500 b'oh'"]
