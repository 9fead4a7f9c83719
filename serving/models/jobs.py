"""Run background jobs, at most one per key, and let one thread collect their results."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any

Job = tuple[Hashable, Callable[[], Any]]


class Jobs:
    """Run jobs in daemon threads.

    Args:
        lanes: The number of concurrent jobs per lane. A lane that is full of slow jobs does not
            delay the jobs of another lane.
    """

    def __init__(self, lanes: dict[str, int]) -> None:
        self._room = dict(lanes)
        self._waiting: dict[str, deque[Job]] = {lane: deque() for lane in lanes}
        self._lock = threading.Lock()
        self._running: set[Hashable] = set()
        self._results: queue.Queue[tuple[Hashable, Any]] = queue.Queue()

    def busy(self, key: Hashable) -> bool:
        """Return True if a job of this key waits, runs, or has a result that was not collected."""
        return key in self._running

    def start(self, key: Hashable, lane: str, work: Callable[[], Any]) -> None:
        """Run a job when its lane has a free slot. ``work`` returns a result and never raises."""
        assert key not in self._running
        self._running.add(key)
        with self._lock:
            self._waiting[lane].append((key, work))
            if not self._room[lane]:
                return
            self._room[lane] -= 1
        threading.Thread(target=self._run, args=(lane,), name=f"models-{lane}", daemon=True).start()

    def results(self, seconds: float) -> Iterator[tuple[Hashable, Any]]:
        """Yield the keys and results of finished jobs.

        The iteration ends when all jobs are finished, or after ``seconds``.
        """
        end = time.monotonic() + seconds
        while self._running:
            try:
                key, result = self._results.get(timeout=max(0.0, end - time.monotonic()) or 1e-6)
            except queue.Empty:
                return
            self._running.discard(key)
            yield key, result

    def _run(self, lane: str) -> None:
        while True:
            with self._lock:
                if not self._waiting[lane]:
                    self._room[lane] += 1
                    return
                key, work = self._waiting[lane].popleft()
            self._results.put((key, work()))
