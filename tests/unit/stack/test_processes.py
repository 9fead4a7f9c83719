"""Processes are found again and ended with their children, and no other processes are affected."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from include.stack.processes import Command, ProcessBook, Record, last_lines
from tests.waiting import wait_for

SLEEP = "import time; time.sleep(60)"
# A parent with a plain child, one in its own process group, and one in its own session.
FAMILY = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
subprocess.Popen([sys.executable, "-c", {SLEEP!r}], process_group=0)
subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
time.sleep(60)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


def python(name: str, code: str) -> Command:
    return Command(name, [sys.executable, "-c", code], dict(os.environ))


def alive(process: psutil.Process) -> bool:
    """Return whether the process is alive. A zombie has ended: only its parent can remove it."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def book(tmp_path):
    book = ProcessBook(tmp_path / "home", tmp_path)
    yield book
    book.stop(list(book.records().values()), patience=0)


@pytest.fixture
def family(book):
    record = book.start(python("family", FAMILY))
    return record, wait_for(lambda: len(members := book.members(record)) == 4 and members, 30, interval=0.05)


def test_stop_ends_children_in_groups_and_sessions_of_their_own(book, family):
    record, members = family
    book.stop([record])
    assert not any(alive(process) for process in members)
    assert book.records() == {}


def test_stop_finds_the_orphans_of_a_killed_parent(book, family):
    record, members = family
    os.kill(record.pid, signal.SIGKILL)
    wait_for(lambda: record.process() is None, 30, interval=0.05)
    assert len(book.members(record)) == 3
    book.stop([record])
    assert not any(alive(process) for process in members)


def test_an_orphan_that_hides_its_environment_is_told_by_its_session(book):
    """An orphan that hides its environment is found by its session.

    Airflow's workers hide theirs: setproctitle overwrites it.
    """
    child = f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}], env={{}}, process_group=0)"
    record = book.start(python("parent", f"import subprocess, sys, time; {child}; time.sleep(60)"))
    wait_for(lambda: len(book.members(record)) == 2, 30, interval=0.05)
    os.kill(record.pid, signal.SIGKILL)
    wait_for(lambda: record.process() is None, 30, interval=0.05)
    assert len(book.members(record)) == 1
    book.stop([record])
    assert book.members(record) == []


def test_a_process_that_ignores_sigterm_is_killed(book):
    record = book.start(python("stubborn", STUBBORN))
    wait_for(lambda: "ready" in last_lines(record.log), 30, interval=0.05)
    assert [process.pid for process in book.stop([record], patience=0.5)] == [record.pid]


def test_an_id_that_another_process_got_is_left_alone(book):
    stranger = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    try:
        book.stop([Record("ours", stranger.pid, started=psutil.Process(stranger.pid).create_time() - 100, log="")])
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_two_homes_do_not_know_each_other(book, family, tmp_path):
    other = ProcessBook(tmp_path / "other home", tmp_path)
    record = other.start(python("family", SLEEP))
    other.stop([record])
    assert len(book.members(family[0])) == 4


def test_another_command_finds_what_the_first_one_started(book, tmp_path):
    record = book.start(python("service", SLEEP))
    again = ProcessBook(tmp_path / "home", tmp_path)
    assert again.records() == {"service": record}
    assert again.records()["service"].process().pid == record.pid
