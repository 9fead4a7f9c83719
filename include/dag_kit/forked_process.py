"""Run ``python -m module ...`` in a fork, without starting an interpreter or repeating imports.

The tasks of a warm scheduler (``config/airflow_local_settings.py``) have the heavy libraries in
memory already. A new interpreter would need 5 to 15 s to import them again for each training step.
The child is a fork with its own environment, output and process group.
"""

import ctypes
import logging
import os
import runpy
import signal
import sys
import traceback
import warnings
from typing import IO, NoReturn

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_PARENTS: list[object] = []


class ForkedProcess:
    """Run ``python -m <module> <arguments>`` in a fork of this process.

    It has the parts of ``subprocess.Popen`` that a task needs.

    Attributes:
        pid: The child's process id. The child leads its own process group.
        stdout: The child's standard output and error as lines of text.
    """

    def __init__(self, module: str, arguments: list[str], *, env: dict[str, str], cwd: str) -> None:
        parent = os.getpid()
        reader, writer = os.pipe()
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _become(module, arguments, env, cwd, writer, parent)
        os.close(writer)
        self.stdout: IO[str] = os.fdopen(reader, encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """Return the exit code, or None while the child runs.

        If a signal ended the child, the result is minus the signal's number.
        """
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """Wait for the end of the child and return its exit code."""
        code = self._reap(0)
        assert code is not None
        return code

    def _reap(self, options: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


def die_with_parent(parent: int) -> None:
    """Make a new child be killed when its parent ends, also by kill -9.

    Otherwise a task's retry would run concurrently with the orphan of its first try.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent ended before the line above.
        os._exit(1)


def _become(module: str, arguments: list[str], env: dict[str, str], cwd: str, output: int, parent: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        die_with_parent(parent)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # The child must not have the file descriptors that the task communicates through.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        # They are never closed, because they may own the descriptors 0, 1 and 2.
        _PARENTS.extend((sys.stdin, sys.stdout, sys.stderr))
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(fd, mode, buffering=1) for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        for handler in list(logging.root.handlers):
            logging.root.removeHandler(handler)
        # Airflow's function would write to a descriptor that is closed now. protobuf treats a
        # warning that cannot be shown as an error, which would break every ONNX export.
        warnings.showwarning = warnings._showwarning_orig  # type: ignore[attr-defined]
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
