"""Test model versions in a child process with a deadline, so that no graph can stop, crash or exhaust the service while it is tested.

This isolates faults but is not a sandbox: the child runs as the service's own user.
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

from serving.untrusted import parse_object, printable
from serving.version_files import BundleError, Limits

START_SECONDS = 60.0  # for the child's imports, on a busy machine
END_SECONDS = 2.0
MOST_ANSWER = 64 * 2**10
ROOT = Path(__file__).resolve().parents[1]


class CheckError(RuntimeError):
    """A version's test had no result: it took too long, or its process ended."""


class Checker:
    """Tests versions one after another in a child process, which is started when it is needed."""

    def __init__(self, *, seconds: float, memory_bytes: int, threads: int, limits: Limits) -> None:
        self.seconds, self.memory_bytes, self.threads, self.limits = seconds, memory_bytes, threads, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def check(self, folder: Path, hashes: str) -> dict[str, str]:
        """Load the version in a folder and let it answer its golden requests.

        Args:
            hashes: the version's tag ``bundle_sha256``.

        Returns:
            Hex SHA-256 of the tested files, by name.

        Raises:
            BundleError: the version is refused.
            FileNotFoundError: a file is missing.
            CheckError: there was no result within the deadline, or the process ended.
        """
        request = json.dumps({"folder": str(folder.absolute()), "hashes": hashes}).encode() + b"\n"
        try:
            try:
                answer = self._ask(self._started(), request, self.seconds)
            except ConnectionError:  # the child had nothing to do, and ended at this moment
                answer = self._ask(self._started(), request, self.seconds)
        except TimeoutError:
            raise CheckError(f"the test of its golden requests did not end within {self.seconds:g} s (SERVING_CHECK_SECONDS); it was ended") from None
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
        """What a test may use: more than it can within its deadline."""
        return int(self.seconds * (self.threads + 1)) + 10

    def warm(self) -> None:
        """Start the child, if there is none."""
        with suppress(CheckError, OSError):
            self._started()

    def close(self) -> None:
        """End the child."""
        self._closed = True
        process = self._process
        if process is not None:  # its pipes are left to the thread that may be reading them
            _kill(process)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise CheckError("the service ends")
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        command = [sys.executable, "-P", "-m", "serving.version_check", "--threads", str(self.threads), "--memory-bytes", str(self.memory_bytes)]
        command += ["--cpu-seconds", str(self.cpu_seconds), "--limits", json.dumps(asdict(self.limits))]
        # No variable of the service: secrets are among them.
        environment = {"PYTHONPATH": str(ROOT), "PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
        process = self._process = subprocess.Popen(
            command, cwd="/", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            self._ask(process, b"", START_SECONDS)
        except OSError as error:
            raise CheckError(f"the process that tests versions does not start: {error}") from None
        return process

    def _ask(self, process: subprocess.Popen[bytes], request: bytes, seconds: float) -> dict[str, object]:
        """Write a line to the child and read one; a child that does not answer is killed.

        Raises:
            TimeoutError: no line within the time.
            OSError: the child ended.
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
    """End a child and its fork. The child reaps its fork when it is asked to end; both are killed if it does not."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Checkers:
    """A pool of checkers, one for each concurrent test."""

    def __init__(self, count: int, *, seconds: float, memory_bytes: int, threads: int, limits: Limits) -> None:
        self.seconds = seconds
        self._all = [Checker(seconds=seconds, memory_bytes=memory_bytes, threads=threads, limits=limits) for _ in range(count)]
        self._free: queue.LifoQueue[Checker] = queue.LifoQueue()
        for checker in self._all:
            self._free.put(checker)
        self._passed: dict[tuple[str, ...], None] = {}

    def warm(self) -> None:
        """Start one child in the background: its imports take half a second."""

        def start() -> None:
            checker = self._free.get()
            try:
                checker.warm()
            finally:
                self._free.put(checker)

        threading.Thread(target=start, name="checker", daemon=True).start()

    def check(self, folder: Path, hashes: str, digests: dict[str, str]) -> None:
        """Test the version in a folder, unless these files have passed already.

        Args:
            digests: hex SHA-256 of the files that the caller has read, and will load.

        Raises:
            BundleError, FileNotFoundError, CheckError: as ``Checker.check`` does; or the tested files are others.
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

    def close(self) -> None:
        for checker in self._all:
            checker.close()
