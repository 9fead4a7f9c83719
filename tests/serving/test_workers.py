"""kill -9 of one of several workers under load: the others go on, a new one comes, and the log lacks nothing but the dead one's last second."""

import signal
import time
from contextlib import suppress

import psutil
import pytest

from tests.serving.callers import Caller
from tests.serving.stand import Process, expected, logged, serving_process, wait_for
from tests.serving.test_draining import RAW, wait_until_all_answer

pytestmark = pytest.mark.stack

WORKERS, CALLERS = 3, 6


def workers(service: Process) -> list[psutil.Process]:
    """Those that answer; there is also multiprocessing's own tracker, and for a moment the dead one."""
    found = []
    for child in psutil.Process(service.pid).children():
        with suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_no_accepted_prediction_is_missing_but_those_of_the_last_second(registry, features, tmp_path):
    registry.add(bias=1)
    service = serving_process(tmp_path, registry.uri, features, workers=WORKERS, max_requests=10_000, request_seconds=120, log_flush_seconds=0.2)
    callers = [Caller(service.port, RAW) for _ in range(CALLERS)]
    try:
        wait_until_all_answer(service, WORKERS)
        for caller in callers:
            caller.start()
        wait_for(lambda: all(len(caller.told) > 50 for caller in callers) and time.monotonic() - callers[0].told[0].there > 3, 200)
        victim = workers(service)[0]
        killed = time.monotonic()
        victim.send_signal(signal.SIGKILL)
        before = sum(len(caller.told) for caller in callers)
        wait_for(lambda: len(now := workers(service)) == WORKERS and victim.pid not in {one.pid for one in now}, 300)
        wait_for(lambda: sum(len(caller.told) for caller in callers) > before + 100, 200)
        for caller in callers:
            caller.leave()
        for caller in callers:
            caller.join(130)
        service.send_parent(signal.SIGTERM)
        service.wait_for_end(120)
    finally:
        service.end()
    answered = {told.said["predictions"][0]["prediction_id"]: told for caller in callers for told in caller.told if told.status == 200}
    kept = {row["prediction_id"] for row in logged(tmp_path / "store")}
    missing = [told.there - killed for identifier, told in answered.items() if identifier not in kept]
    print(f"{len(answered)} answered, {len(missing)} of them lost: {min(missing, default=0):.2f} to {max(missing, default=0):.2f} s from the kill")
    assert all(-1 <= when <= 0.1 for when in missing), sorted(missing)
    assert [caller.wrong for caller in callers if caller.wrong] == []
    assert sum(len(caller.lost) for caller in callers) <= CALLERS  # at most one under way on each connection
    assert all(told.said["predictions"][0]["prediction"] == expected(RAW, 1) for told in answered.values())
