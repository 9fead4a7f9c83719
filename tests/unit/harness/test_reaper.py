"""Nothing that a test run starts outlives it, however the run ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from include.settings import REPOSITORY
from tests import reaper
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

# A run that starts two kinds of processes that lose their parent, and then waits.
RUN = """
import subprocess, sys, time

DAEMON = "import os, sys, time; sys.argv[0]; os.fork() and os._exit(0); os.setsid(); time.sleep(600)"

def test_it(tmp_path):
    marked = [sys.executable, "-c", DAEMON, "airloop-left-marked"]
    subprocess.run(marked, check=True)
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", DAEMON, "airloop-left-with-a-file"], env={"PATH": ""}, stdout=log, check=True)
    # An open file of the run itself: it is spared.
    global kept
    kept = (tmp_path / "kept").open("w")
    (tmp_path.parent / "started").touch()
    time.sleep(WAIT)
"""  # noqa: E501


def left() -> list[str]:
    names = (name for process in psutil.process_iter(["cmdline"]) for name in process.info["cmdline"] or [])
    return sorted(name for name in names if name.startswith("airloop-left-"))


@pytest.mark.parametrize("end", ["at its end", signal.SIGTERM, signal.SIGKILL])
def test_what_a_run_leaves_is_ended(tmp_path, end):
    file = tmp_path / "test_run.py"
    file.write_text(RUN.replace("WAIT", "0" if end == "at its end" else "600"))
    base = tmp_path / "base"
    environment = {name: value for name, value in os.environ.items() if name != reaper.MARK} | {
        "PYTHONPATH": str(REPOSITORY)
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        "-c",
        os.devnull,
    ]
    run = subprocess.Popen(
        [*command, "--basetemp", str(base), str(file)], cwd=tmp_path, env=environment, start_new_session=True
    )
    until(lambda: run.poll() is not None or list(base.rglob("started")))
    if end != "at its end":
        assert left() == ["airloop-left-marked", "airloop-left-with-a-file"]
        run.send_signal(end)
    ended = run.wait(60)
    until(lambda: not left())
    if end == "at its end":
        assert ended == 0, "the run itself was ended"


def test_a_process_of_another_run_is_no_member(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={reaper.MARK: "one"}, cwd="/")
    try:
        until(lambda: process.pid in {one.pid for one in reaper.members("one", str(tmp_path))})
        assert process.pid not in {one.pid for one in reaper.members("another", str(tmp_path))}
    finally:
        process.kill()
        process.wait()


def test_whoever_looks_at_the_files_of_a_run_is_spared(tmp_path: Path):
    """A shell in the run's folder, and an editor with a file of it."""
    log = tmp_path / "log"
    log.write_text("lines")
    program = [sys.executable, "-c", f"kept = open({str(log)!r}); print(flush=True); import time; time.sleep(60)"]
    looking = subprocess.Popen(program, env={"PATH": ""}, cwd=tmp_path, stdout=subprocess.PIPE)
    with log.open("a") as output:
        writing = subprocess.Popen(program, env={"PATH": ""}, cwd="/", stdout=output)
    try:
        assert looking.stdout and looking.stdout.readline()
        until(lambda: writing.pid in {one.pid for one in reaper.members("none", str(tmp_path))})
        assert looking.pid not in {one.pid for one in reaper.members("none", str(tmp_path))}
    finally:
        for process in (looking, writing):
            process.kill()
            process.wait()


def until(condition) -> None:
    wait_for(condition, 60, lambda: f"still there: {left()}", interval=0.1)
