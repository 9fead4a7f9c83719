"""A short version of `make soak-serving`: no fault, no hang, and bounded memory.

``AIRLOOP_TEST_SOAK_SECONDS`` makes it longer. From ten minutes on, memory may grow by less than a
MiB per minute. A shorter run consists mostly of warm-up.
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
    result = serving_soak.soak(server, SECONDS)
    print(result)
    assert (result["faults"], result["first_faults"]) == (0, [])
    answered = result["statuses"]
    # Without a registry it is unknown which models exist.
    for kind, status in (
        ("raw", 200), ("looked up", 200), ("tensors", 200), ("binary tensors", 200), ("unknown entity", 200), ("text for a number", 422), ("no JSON", 400),  # noqa: E501
        ("another model", 503), ("metrics", 200), ("wrong feedback", 422),
    ):  # fmt: skip
        assert answered.get(f"{kind} {status}"), (kind, answered)
    assert (
        result["growth_mib_per_minute"] < 1
        if SECONDS >= 600
        else result["memory_mib"]["end"] - result["memory_mib"]["warm"] < 60
    )


def test_a_fault_is_seen():
    """The check detects faults: an answer of 500, and a 503 without a Retry-After header."""
    findings = serving_soak.Observations()
    findings.note("raw", 503, b"", {"Retry-After": "1"})
    assert findings.faults == []
    findings.note("raw", 503, b"", {})
    findings.note("raw", 500, b"oh", {})
    assert findings.faults == ["raw: 503 b''", "raw: 500 b'oh'"]
