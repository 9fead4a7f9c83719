"""Killing one of several workers under load affects only that worker.

The others continue, and a new one starts. The log lacks at most the dead worker's last second.
"""

import signal
import time
from contextlib import suppress

import psutil
import pytest

from tests.serving.callers import LoadThread
from tests.serving.harness import Process, expected, logged, serving_process
from tests.serving.http.test_draining import RAW, wait_until_all_answer
from tests.waiting import wait_for

pytestmark = pytest.mark.stack

WORKERS, CALLERS = 3, 6


def workers(service: Process) -> list[psutil.Process]:
    """Return the answering workers.

    There is also multiprocessing's own tracker, and for a moment the dead worker.
    """
    children = []
    for child in psutil.Process(service.pid).children():
        with suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                children.append(child)
    return children


def test_no_accepted_prediction_is_missing_but_those_of_the_last_second(registry, features, tmp_path):
    registry.add(bias=1)
    service = serving_process(
        tmp_path,
        registry.uri,
        features,
        workers=WORKERS,
        max_requests=10_000,
        request_seconds=120,
        log_flush_seconds=0.2,
    )
    callers = [LoadThread(service.port, RAW) for _ in range(CALLERS)]
    try:
        wait_until_all_answer(service, WORKERS)
        for caller in callers:
            caller.start()
        wait_for(
            lambda: (
                all(len(caller.responses) > 50 for caller in callers)
                and time.monotonic() - callers[0].responses[0].received_at > 3
            ),
            200,
        )
        victim = workers(service)[0]
        killed = time.monotonic()
        victim.send_signal(signal.SIGKILL)
        before = sum(len(caller.responses) for caller in callers)
        wait_for(lambda: len(now := workers(service)) == WORKERS and victim.pid not in {one.pid for one in now}, 300)
        wait_for(lambda: sum(len(caller.responses) for caller in callers) > before + 100, 200)
        for caller in callers:
            caller.leave()
        for caller in callers:
            caller.join(130)
        service.send_parent(signal.SIGTERM)
        service.wait_for_end(120)
    finally:
        service.end()
    answered = {
        response.body["predictions"][0]["prediction_id"]: response
        for caller in callers
        for response in caller.responses
        if response.status == 200
    }
    kept = {row["prediction_id"] for row in logged(tmp_path / "store")}
    missing = [response.received_at - killed for identifier, response in answered.items() if identifier not in kept]
    print(
        f"{len(answered)} answered, {len(missing)} of them lost: {min(missing, default=0):.2f} to"
        f" {max(missing, default=0):.2f} s from the kill"
    )
    assert all(-1 <= when <= 0.1 for when in missing), sorted(missing)
    assert [caller.wrong for caller in callers if caller.wrong] == []
    # At most one request in flight on each connection.
    assert sum(len(caller.lost) for caller in callers) <= CALLERS
    assert all(response.body["predictions"][0]["prediction"] == expected(RAW, 1) for response in answered.values())
