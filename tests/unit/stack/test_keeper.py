"""A service that dies is restarted with growing delays, and log files are rotated.

Small stand-ins replace the services.
"""

import os
import signal
import sys
import time

import psutil
import pytest

from include.settings import REPOSITORY, Settings
from include.stack import lifecycle
from include.stack.keeper import FIRST_PAUSE_S, LONGEST_PAUSE_S, SETTLED_S, Keeper, rotate
from include.stack.processes import Command, ProcessBook
from include.stack.services import KEEPER, Service
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

SLEEP = "import time; print('begun', flush=True); time.sleep(600)"


def service(name: str, code: str = SLEEP) -> Service:
    return Service(
        name, Command(name, [sys.executable, "-c", code], dict(os.environ)), lambda record: record.process() is not None
    )


@pytest.fixture
def settings(tmp_path, monkeypatch):
    settings = Settings(home=tmp_path)
    chosen = [service("one"), service("two")]
    monkeypatch.setattr(lifecycle, "services", lambda settings: chosen)
    monkeypatch.setattr(lifecycle, "set_pools", lambda *_: None)
    lifecycle.up(settings)
    yield settings
    lifecycle.down(settings)


class Clock:
    """The real time plus an offset of the test."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def kill(settings: Settings, name: str) -> int:
    record = ProcessBook(settings.home, REPOSITORY).records()[name]
    os.kill(record.pid, signal.SIGKILL)
    wait_for(lambda: record.process() is None, 30, interval=0.05)
    return record.pid


def test_what_dies_is_restarted_and_status_says_so(settings):
    clock = Clock()
    keeper = Keeper(settings, clock)
    assert keeper.look() == []
    pid, other = kill(settings, "one"), lifecycle.status(settings)[1].pid
    assert keeper.look() == []  # not immediately
    clock.ahead = 2 * FIRST_PAUSE_S
    assert keeper.look() == ["one"]
    one, two = lifecycle.status(settings)
    assert (one.state, one.restarts, two.state, two.restarts, two.pid) == (
        "answering",
        1,
        "answering",
        0,
        other,
    ) and one.pid != pid
    assert keeper.look() == []


def test_the_pause_doubles_up_to_a_limit_and_begins_anew_after_a_long_life(settings):
    clock = Clock()
    keeper = Keeper(settings, clock)
    pauses = []
    for _ in range(11):
        clock.ahead = 0
        kill(settings, "one")
        while keeper.look() == []:
            clock.ahead += 0.5
        pauses.append(clock.ahead)
    assert pauses[0] <= 2 * FIRST_PAUSE_S and LONGEST_PAUSE_S - 2 < pauses[-1] <= LONGEST_PAUSE_S + 2
    assert all(later > 1.5 * earlier for earlier, later in zip(pauses[1:7], pauses[2:8], strict=True))
    clock.ahead = SETTLED_S + 10
    kill(settings, "one")
    while keeper.look() == []:
        clock.ahead += 0.5
    assert clock.ahead - (SETTLED_S + 10) <= 2 * FIRST_PAUSE_S


def test_nothing_is_restarted_while_up_or_down_works(settings):
    clock = Clock()
    keeper = Keeper(settings, clock)
    kill(settings, "one")
    keeper.look()
    clock.ahead = 60
    with lifecycle._one_at_a_time(settings):
        assert keeper.look() == []
    lifecycle.down(settings)
    assert keeper.look() == [] and ProcessBook(settings.home, REPOSITORY).records() == {}


def test_a_restart_that_fails_is_tried_again(settings, monkeypatch):
    clock = Clock()
    keeper = Keeper(settings, clock)
    kill(settings, "one")
    keeper.look()
    clock.ahead = 5
    with monkeypatch.context() as full, pytest.raises(OSError, match="No space left"):
        full.setattr(ProcessBook, "start", lambda *_, **__: (_ for _ in ()).throw(OSError("No space left on device")))
        keeper.look()
    assert lifecycle.status(settings)[0].state == "died"
    assert keeper.look() == ["one"]


def test_down_ends_the_keeper_first(settings, monkeypatch):
    """`down` stops the keeper first.

    Otherwise it could restart a service that `down` has just stopped, while `down` waits for the
    rest.
    """
    chosen = [*lifecycle.services(settings), service(KEEPER)]
    monkeypatch.setattr(lifecycle, "services", lambda settings: chosen)
    lifecycle.up(settings)
    stopped = []
    stop = ProcessBook.stop
    monkeypatch.setattr(
        ProcessBook,
        "stop",
        lambda book, records, **more: (stopped.append([r.name for r in records]), stop(book, records, **more))[1],
    )
    assert set(lifecycle.down(settings)) == {"one", "two", KEEPER}
    assert stopped == [[KEEPER], ["one", "two"]]


def test_no_zombie_is_left_of_what_it_restarted(settings):
    clock = Clock()
    keeper = Keeper(settings, clock)
    kill(settings, "one")
    keeper.look()
    clock.ahead = 5
    keeper.look()
    pid = kill(settings, "one")
    keeper.look()
    assert not psutil.pid_exists(pid)


def test_a_big_log_is_rotated_while_its_service_writes_on(tmp_path):
    file = tmp_path / "one.log"
    with file.open("ab", buffering=0) as writer:
        for number in range(6):
            writer.write(f"{number}".encode() * 2000)
            assert rotate(tmp_path, most=1000, keep=3) == ["one.log"]
        writer.write(b"and on")
    assert file.read_bytes() == b"and on"
    assert [(tmp_path / f"one.log.{n}").read_bytes()[:1] for n in (1, 2, 3)] == [b"5", b"4", b"3"]
    assert not (tmp_path / "one.log.4").exists() and rotate(tmp_path, most=1000) == []
