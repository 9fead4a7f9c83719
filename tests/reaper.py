"""End every process that a test run has left, also if the run itself was killed.

    python -m tests.reaper <mark> <folder> <process id of the run>

The run starts this program and holds its standard input open. When the input ends, the run has
ended. A process belongs to the run if its environment has ``AIRLOOP_TEST_RUN=<mark>``, if its
output goes to a file below ``folder``, if a process of the run started it, or if it is in the
session of such a process. The environment alone is not enough: some programs overwrite it with
their title. A person's shell or editor in ``folder`` is spared, because its output goes elsewhere.
"""

import os
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "AIRLOOP_TEST_RUN"
# Seconds for processes to end on their own before they are killed.
GRACE = 5.0


def start(mark: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Start the reaper for this process's test run."""
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.reaper", mark, str(folder), str(os.getpid())],
        env=environment,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def main(mark: str, folder: str, run: str) -> None:
    sys.stdin.buffer.read()
    # A run that ends by itself waits for this program.
    spared = {os.getpid(), int(run)}
    # The workers of the run end shortly after it.
    _, left = psutil.wait_procs(members(mark, folder, spared), timeout=GRACE)
    while left := [*left, *members(mark, folder, spared)]:
        for process in left:
            if process.is_running():
                print(
                    f"tests: ending what the run left: {process.pid} {' '.join(_of(process, 'cmdline') or [])[:120]}",
                    file=sys.stderr,
                    flush=True,
                )
        for end in ("terminate", "kill"):
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    getattr(process, end)()
            _, left = psutil.wait_procs(left, timeout=GRACE)
        time.sleep(0.1)


def members(mark: str, folder: str, spared: Collection[int] = ()) -> list[psutil.Process]:
    """Return the processes of the run, without those whose ids are ``spared``."""
    every = [
        process
        for process in psutil.process_iter()
        if process.pid not in spared and _of(process, "status") != psutil.STATUS_ZOMBIE
    ]
    by_pid = {process.pid: process for process in every if _is_marked(process, mark, folder)}
    while True:
        sessions = {session for pid in by_pid if (session := _session(pid)) == pid}
        more = [p for p in every if p.pid not in by_pid and (_of(p, "ppid") in by_pid or _session(p.pid) in sessions)]
        if not more:
            return list(by_pid.values())
        by_pid |= {process.pid: process for process in more}


def _is_marked(process: psutil.Process, mark: str, folder: str) -> bool:
    if (_of(process, "environ") or {}).get(MARK) == mark:
        return True
    return any(place.startswith(f"{folder}/") for place in _outputs(process.pid))


def _of(process: psutil.Process, name: str):
    try:
        return getattr(process, name)()
    except (psutil.Error, OSError):
        return None


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _outputs(pid: int) -> list[str]:
    """Return the files of the process's standard output and error."""
    paths = []
    for descriptor in (1, 2):
        with suppress(OSError):
            paths.append(str(Path(f"/proc/{pid}/fd/{descriptor}").readlink()))
    return paths


if __name__ == "__main__":
    main(*sys.argv[1:])
