"""Processes that a test kills or runs concurrently.

Their imports are preloaded, and they get exactly this process's settings.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import IO

# One server per pytest process, shared by all test files. It therefore preloads the modules that
# any of them needs. Its own environment, which may hold settings of another test, is not used.
_SERVED = multiprocessing.get_context("forkserver")
_SERVED.set_forkserver_preload(
    [
        "great_expectations.expectations",
        "include.data.ingest",
        "include.data.feed",
        "include.projects.flights.feed",
        # For training steps:
        "mlflow",
        "torch",
        "onnx",
        "onnxruntime",
        "skl2onnx",
        "sklearn.pipeline",
        "sklearn.ensemble",
        "sklearn.linear_model",
        "matplotlib.figure",
    ]
)


def child(work: Callable[..., None], *arguments, **variables: str) -> multiprocessing.Process:
    """Return a process that will run ``work(*arguments)``. It is not started yet.

    ``variables`` are added to this process's environment.
    """
    return _SERVED.Process(target=_in_environment, args=({**os.environ, **variables}, work, arguments))


class StepProcess:
    """Replace ``include.dag_kit.compute.start`` by a fork of the server with the same command line.

    A new interpreter would spend 5 s on imports.

    Attributes:
        pid: of the process, which leads its own process group.
        stdout: lines of text from its standard output and error.
    """

    def __init__(self, module: str, arguments: list[str]) -> None:
        from include.dag_kit.compute import child_environment

        reader, writer = os.pipe()
        self._process = _SERVED.Process(
            target=_in_environment, args=(child_environment(), _as_command, (module, arguments, DupFd(writer)))
        )
        self._process.start()
        os.close(writer)
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdout: IO[str] = os.fdopen(reader, encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _as_command(module: str, arguments: list[str], output: DupFd) -> None:
    from include.dag_kit.forked_process import die_with_parent

    os.setsid()
    # The parent is the server, which ends with the tests.
    die_with_parent(os.getppid())
    descriptor = output.detach()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _in_environment(environment: dict[str, str], work: Callable[..., None], arguments: tuple) -> None:
    from include.settings import get_settings

    os.environ.clear()
    os.environ.update(environment)
    get_settings.cache_clear()
    work(*arguments)
