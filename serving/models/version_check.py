"""Load and test model versions in a process that may be killed.

``serving/models/checker.py`` starts it with ``python -m serving.models.version_check``.

Each line of standard input is a JSON object with ``folder`` and ``hashes``. Each line of standard
output is a JSON object. It contains ``digests`` for a version that answers its golden requests, or
``error`` with ``kind``. Every version is tested in a fork, so a graph that crashes or exhausts
memory ends only its fork.
"""

import argparse
import json
import os
import resource
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving.models.bundle import Bundle, BundleError
from serving.models.untrusted import line
from serving.models.version_files import FileLimits

# Idle time after which the process exits. The next version starts another process.
IDLE_SECONDS = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serving.models.version_check")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-bytes", type=int, default=4 * 2**30, help="of one version's test")
    parser.add_argument("--cpu-seconds", type=int, default=60, help="of one version's test")
    parser.add_argument("--limits", type=json.loads, default={}, help="JSON of serving.models.version_files.FileLimits")
    given = parser.parse_args()
    answers = os.dup(1)
    os.dup2(2, 1)  # Output of libraries must not mix with answers.
    os.write(answers, b"{}\n")
    child = 0

    def end(*_: object) -> None:
        """Kill the fork and reap it, because init may not reap it in a container."""
        if child:
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    while select.select([0], [], [], IDLE_SECONDS)[0]:
        request = sys.stdin.buffer.readline()
        if not request:
            return
        # A signal between the fork and the assignment would leave a fork that nobody knows.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
            _limit(given.memory_bytes, given.cpu_seconds)
            os.write(answers, _line(check(json.loads(request), given.threads, FileLimits(**given.limits))))
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        child = 0
        if ended:
            os.write(
                answers, _line({"kind": "died", "error": f"signal {-ended}" if ended < 0 else f"exit code {ended}"})
            )


def check(request: dict[str, Any], threads: int, limits: FileLimits) -> dict[str, Any]:
    """Load and test one version."""
    try:
        bundle = Bundle.load(Path(request["folder"]), threads=threads, hashes=request["hashes"], limits=limits)
    except BundleError as error:
        return {"kind": "refused", "error": str(error)}
    except FileNotFoundError as error:
        return {"kind": "missing", "error": line(error)}
    except MemoryError:
        return {"kind": "refused", "error": "the version needs more memory than a test may use (SERVING_CHECK_BYTES)"}
    except Exception as error:
        return {"kind": "died", "error": line(error)}
    return {"digests": bundle.digests}


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    for which, most in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),  # Ends a test whose service has died.
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(which, (most, most))


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


if __name__ == "__main__":
    main()
