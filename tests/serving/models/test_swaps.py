"""Repeated moves of the alias under constant load: no request fails or gets a wrong version.

Each answer comes from a version that was announced and is not known to be replaced.
``AIRLOOP_TEST_SWAPS`` sets the number of moves (25). `AIRLOOP_TEST_SWAPS=1000 pytest
tests/serving/models/test_swaps.py` checks the full guarantee. The effect on latency is measured by
`make bench-serving`, and not tested here.
"""

import os
import time

import pytest

from tests.serving.callers import LoadThread
from tests.serving.harness import NAME, Registry, expected, serving_process
from tests.serving.http.test_draining import RAW, wait_until_all_answer
from tests.serving.test_service import server  # noqa: F401  (a real MLflow server)
from tests.waiting import wait_for

pytestmark = [pytest.mark.stack, pytest.mark.timeout(3600)]

SWAPS = int(os.environ.get("AIRLOOP_TEST_SWAPS", "25"))
BIASES = {"1": 10.0, "2": 20.0, "3": 30.0}
CALLERS = 4


def test_swaps_under_load(server, features, tmp_path):  # noqa: F811
    registry = Registry(server.url, tmp_path)
    for version, bias in BIASES.items():
        assert registry.add(bias=bias) == version
    # Version, time when its alias was set, time when the service had followed.
    announced = [("3", time.monotonic(), time.monotonic())]

    def right(response) -> str | None:
        answer = response.body["predictions"][0]
        if answer["prediction"] != expected(RAW, BIASES[answer["model_version"]]):
            return f"version {answer['model_version']} answers {answer['prediction']}"
        swaps = list(announced)
        since = max(
            (number for number, (_, _, followed) in enumerate(swaps) if followed and followed <= response.sent_at),
            default=0,
        )
        allowed = {version for version, set_at, _ in swaps[since:] if set_at <= response.received_at}
        return (
            None
            if answer["model_version"] in allowed
            else f"version {answer['model_version']} answered, announced were {sorted(allowed)}"
        )

    service = serving_process(
        tmp_path, server.url, features, poll_seconds=0.05, max_requests=10_000, request_seconds=120
    )
    callers = [LoadThread(service.port, RAW, check=right) for _ in range(CALLERS)]
    try:
        wait_until_all_answer(service, 1)
        announced[0] = ("3", 0.0, time.monotonic())
        for caller in callers:
            caller.start()
        for number in range(SWAPS):
            version = str(number % len(BIASES) + 1)
            announced.append((version, time.monotonic(), 0.0))
            registry.point(version)
            wait_for(lambda wanted=version: service.get(f"/models/{NAME}", timeout=60)[1]["version"] == wanted, 120)
            announced[-1] = (version, announced[-1][1], time.monotonic())
        for caller in callers:
            caller.leave()
        for caller in callers:
            caller.join(130)
    finally:
        service.end()
    answers = [response for caller in callers for response in caller.responses]
    print(f"{SWAPS} swaps, {len(answers)} answers")
    assert [
        (caller.lost, caller.wrong[:3], caller.refused)
        for caller in callers
        if caller.lost or caller.wrong or caller.refused
    ] == []
    assert {response.body["model_version"] for response in answers} == set(BIASES)
    assert len(answers) > SWAPS  # the load was high enough
