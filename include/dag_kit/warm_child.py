"""A child process that begins where its parent stands: ``python -m module ...`` without the interpreter's start and its imports.

The tasks of a warm scheduler (``config/airflow_local_settings.py``) have the heavy libraries in memory already; a fresh interpreter needs 5 to
15 s to import them again, for each training step. The child is a fork with an environment, an output and a process group of its own.
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

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_PARENTS: list[object] = []


class WarmChild:
    """``python -m <module> <arguments>``, run in a fork of this process. Has of ``subprocess.Popen`` what a task needs.

    Attributes:
        pid: of the child, which leads its own process group.
        stdout: lines of text; its standard output and error.
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
        """The exit code, or None while it runs; minus the signal's number if one ended it."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """Waits for its end; gives the exit code."""
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
    """In a new child: be killed when the parent ends, also by kill -9; else a task's retry would work beside the orphan of its first try."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended before the line above


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
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what the task talks through is not the child's
        _PARENTS.extend((sys.stdin, sys.stdout, sys.stderr))  # never closed: they may stand for 0, 1 and 2
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode, buffering=1) for fd, mode in ((0, "r"), (1, "w"), (2, "w")))
        for handler in list(logging.root.handlers):
            logging.root.removeHandler(handler)
        # Airflow's would write to what is closed now; a warning that cannot be shown is an error to protobuf, and so to every ONNX export.
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
