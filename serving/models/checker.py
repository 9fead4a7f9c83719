"""Test model versions in a child process with a deadline.

A graph under test cannot stop, crash or exhaust the service. This isolates faults but is not a
sandbox: the child runs as the service's own user.
"""

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from serving.models.untrusted import parse_object, printable
from serving.models.version_files import BundleError, FileLimits

# Time limit of the child's imports on a busy machine.
START_SECONDS = 60.0
END_SECONDS = 2.0
MOST_ANSWER = 64 * 2**10
ROOT = Path(__file__).resolve().parents[2]


class CheckError(RuntimeError):
    """Raised when a version's test has no result: it took too long, or its process ended."""


class Checker:
    """Test versions one after another in a child process, which is started on first use."""

    def __init__(self, *, seconds: float, memory_bytes: int, threads: int, limits: FileLimits) -> None:
        self.seconds, self.memory_bytes, self.threads, self.limits = seconds, memory_bytes, threads, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def check(self, folder: Path, hashes: str) -> dict[str, str]:
        """Load the version in a folder and run its golden requests.

        Args:
            hashes: The version's tag ``bundle_sha256``.

        Returns:
            Hex SHA-256 of the tested files, by name.

        Raises:
            BundleError: The version is refused.
            FileNotFoundError: A file is missing.
            CheckError: The test has no result within the deadline, or the process ended.
        """
        request = json.dumps({"folder": str(folder.absolute()), "hashes": hashes}).encode() + b"\n"
        try:
            try:
                answer = self._ask(self._started(), request, self.seconds)
            except ConnectionError:  # The idle child exited at this moment.
                answer = self._ask(self._started(), request, self.seconds)
        except TimeoutError:
            raise CheckError(
                f"the test of its golden requests did not end within {self.seconds:g} s (SERVING_CHECK_SECONDS); it was"
                " ended"
            ) from None
        except OSError as error:
            raise CheckError(f"the process that tests it ended: {error}") from None
        if isinstance(digests := answer.get("digests"), dict):
            return {str(name): str(value) for name, value in digests.items()}
        detail = printable(str(answer.get("error")))
        match answer.get("kind"):
            case "refused":
                raise BundleError(detail)
            case "missing":
                raise FileNotFoundError(detail)
        raise CheckError(f"the test of its golden requests crashed: {detail}")

    @property
    def cpu_seconds(self) -> int:
        """Return the CPU time limit of a test. A test reaches its deadline before this limit."""
        return int(self.seconds * (self.threads + 1)) + 10

    def warm(self) -> None:
        """Start the child if it is not running."""
        with suppress(CheckError, OSError):
            self._started()

    def reap(self) -> None:
        """Forget a child that has ended for want of work.

        Until then it stays in the table of processes.
        """
        if self._process is not None and self._process.poll() is not None:
            self._end()

    def close(self) -> None:
        """End the child."""
        self._closed = True
        process = self._process
        # The pipes stay open, because another thread may be reading from them.
        if process is not None:
            _kill(process)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise CheckError("the service ends")
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        command = [
            sys.executable,
            "-P",
            "-m",
            "serving.models.version_check",
            "--threads",
            str(self.threads),
            "--memory-bytes",
            str(self.memory_bytes),
        ]
        command += ["--cpu-seconds", str(self.cpu_seconds), "--limits", json.dumps(asdict(self.limits))]
        # The child does not inherit the service's environment, because it contains secrets.
        environment = {
            "PYTHONPATH": str(ROOT),
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }
        process = self._process = subprocess.Popen(
            command,
            cwd="/",
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._ask(process, b"", START_SECONDS)
        except OSError as error:
            raise CheckError(f"the process that tests versions does not start: {error}") from None
        return process

    def _ask(self, process: subprocess.Popen[bytes], request: bytes, seconds: float) -> dict[str, object]:
        """Write a line to the child and read one. Kill a child that does not answer.

        Raises:
            TimeoutError: The child did not send a line in time.
            OSError: The child ended.
        """
        assert process.stdin is not None and process.stdout is not None
        end, content, ready = time.monotonic() + seconds, b"", select.poll()
        ready.register(process.stdout, select.POLLIN)
        try:
            process.stdin.write(request)
            process.stdin.flush()
            while not content.endswith(b"\n"):
                left = end - time.monotonic()
                if left <= 0 or not ready.poll(left * 1000):
                    raise TimeoutError
                block = os.read(process.stdout.fileno(), MOST_ANSWER)
                content += block
                if not block:
                    raise ConnectionResetError("no answer")
                if len(content) > MOST_ANSWER:
                    raise OSError("its answer is too long")
            return parse_object(content, "its answer")
        except (OSError, ValueError) as error:
            self._end()
            if isinstance(error, ValueError):
                raise OSError(str(error)) from None
            raise

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a child and the process that it forked.

    The child reaps its fork on SIGTERM. If it does not end in time, both are killed.
    """
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A fork that the child left behind becomes this process's where it is init, as in a container.
    end = time.monotonic() + END_SECONDS
    with suppress(ChildProcessError):
        while time.monotonic() < end:
            if os.waitpid(-process.pid, os.WNOHANG) == (0, 0):
                time.sleep(0.01)


class Checkers:
    """A pool of checkers, one for each concurrent test."""

    def __init__(self, count: int, *, seconds: float, memory_bytes: int, threads: int, limits: FileLimits) -> None:
        self.seconds = seconds
        self._all = [
            Checker(seconds=seconds, memory_bytes=memory_bytes, threads=threads, limits=limits) for _ in range(count)
        ]
        self._free: queue.LifoQueue[Checker] = queue.LifoQueue()
        for checker in self._all:
            self._free.put(checker)
        self._passed: dict[tuple[str, ...], None] = {}

    def warm(self) -> None:
        """Start one child in the background, because its imports take half a second."""

        def start() -> None:
            checker = self._free.get()
            try:
                checker.warm()
            finally:
                self._free.put(checker)

        threading.Thread(target=start, name="checker", daemon=True).start()

    def check(self, folder: Path, hashes: str, digests: dict[str, str]) -> None:
        """Test the version in a folder, unless the same files have already passed.

        Args:
            digests: Hex SHA-256 of the files that the caller has read and will load.

        Raises:
            BundleError, FileNotFoundError, CheckError: See ``Checker.check``. FileNotFoundError is
                also raised if the tested files differ from ``digests``.
        """
        key = tuple(f"{name}:{digest}" for name, digest in sorted(digests.items()))
        if key in self._passed:
            return
        checker = self._free.get()
        try:
            tested = checker.check(folder, hashes)
        finally:
            self._free.put(checker)
        if tested != digests:
            raise FileNotFoundError(f"{folder} changed while it was tested")
        while len(self._passed) >= 1000:
            self._passed.pop(next(iter(self._passed)))
        self._passed[key] = None

    def reap(self) -> None:
        """Forget the children that have ended for want of work.

        Those of checkers in use are forgotten by their next test.
        """
        free = []
        with suppress(queue.Empty):
            while True:
                free.append(self._free.get_nowait())
        for checker in free:
            checker.reap()
        for checker in reversed(free):
            self._free.put(checker)

    def close(self) -> None:
        for checker in self._all:
            checker.close()
