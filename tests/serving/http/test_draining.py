"""SIGTERM under load with persistent connections loses no request."""

import signal
import threading
import time

import pytest

from serving.http.draining import Draining
from tests.serving.callers import LoadThread
from tests.serving.harness import NAME, expected, serving_process
from tests.waiting import wait_for

RAW = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}
CALLERS = 8


def right(response) -> str | None:
    return (
        None
        if response.body["predictions"][0]["prediction"] == expected(RAW, 1)
        else f"another answer: {response.body}"
    )


def wait_until_all_answer(service, workers: int) -> None:
    """Wait for many successful answers in a row: then all workers are probably ready."""
    in_a_row = 0

    def one_more() -> bool:
        nonlocal in_a_row
        in_a_row = in_a_row + 1 if service.get(f"/models/{NAME}/predict", {"instances": [RAW]})[0] == 200 else 0
        return in_a_row >= 20 * workers

    wait_for(one_more, 400, lambda: service.log.read_text()[-3000:])


@pytest.mark.stack
@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_is_lost_when_it_is_asked_to_end(registry, features, tmp_path, workers):
    registry.add(bias=1)
    service = serving_process(
        tmp_path, registry.uri, features, workers=workers, drain_seconds=2, max_requests=10_000, request_seconds=120
    )
    callers = [LoadThread(service.port, RAW, until_nobody_listens=True, check=right) for _ in range(CALLERS)]
    try:
        wait_until_all_answer(service, workers)
        for caller in callers:
            caller.start()
        wait_for(lambda: all(len(caller.responses) > 20 for caller in callers), 200)
        assert sum(caller.asked_to_leave for caller in callers) == 0  # connections are kept until then
        asked_to_end = time.monotonic()
        service.send_parent(signal.SIGTERM)
        if workers == 1:
            wait_for(lambda: service.get("/ready")[0] == 503, 20)
        service.wait_for_end(120)
        for caller in callers:
            caller.join(120)
        assert [(caller.lost, caller.wrong) for caller in callers if caller.lost or caller.wrong] == []
        # They could leave without a request in flight.
        assert all(caller.asked_to_leave for caller in callers)
        assert max(caller.responses[-1].received_at for caller in callers) > asked_to_end
    finally:
        service.end()


@pytest.mark.stack
def test_a_second_signal_ends_it_at_once(registry, features, tmp_path):
    registry.add(bias=1)
    service = serving_process(tmp_path, registry.uri, features, drain_seconds=500)
    try:
        service.wait("/live", 300)
        service.send_parent(signal.SIGTERM)
        wait_for(lambda: service.get("/ready")[0] == 503, 60)
        assert service.get("/live")[0] == 200
        service.send_parent(signal.SIGTERM)
        service.wait_for_end(60)
    finally:
        service.end(signal.SIGKILL)


def test_in_another_thread_than_the_main_one_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    watching = threading.Thread(target=Draining(1).watch)
    watching.start()
    watching.join()
    assert signal.getsignal(signal.SIGTERM) is before
