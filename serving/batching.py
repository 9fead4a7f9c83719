"""Requests that come at the same moment go through the graph together.

No request waits for others: what has arrived by the time the event loop comes round is one batch. Alone, a request is a batch of one.
A graph that takes long runs in a thread, so that health checks and other models are answered meanwhile. A run in a thread has a deadline, and few requests
may wait for one: a graph that hangs must not hold the places of other models' requests.
"""

import asyncio
import logging
import math
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from serving.graph import Graph, limited
from serving.problems import unavailable

INLINE_SECONDS = 0.002  # a batch that takes longer runs in a thread: handing it over costs a tenth of that
MOST_ROWS = 256  # in one run: a big request must not hold up small ones for long
MOST_WAITING = 64  # requests that wait for one graph's thread
RUN_SECONDS = 10.0  # for one run in a thread; ONNX Runtime ends it before its next operator

log = logging.getLogger(__name__)
Numbers = Sequence[Sequence[float] | bytes]
Texts = Sequence[Sequence[str]]
Waiting = tuple[Numbers, Texts, "asyncio.Future[list[float]]"]


class Batcher:
    """The way into one graph. Belongs to the event loop that uses it."""

    def __init__(self, graph: Graph, *, always_in_thread: bool = False) -> None:
        self.graph = graph
        self._always_in_thread = always_in_thread
        self._waiting: list[Waiting] = []
        self._thread: _Thread | None = None
        self._in_thread = 0  # requests

    async def run(self, numbers: Numbers, texts: Texts) -> list[float]:
        """Answers for rows of the graph's columns. What the graph raises for them is raised here, and for nobody else's rows.

        Raises:
            Problem: 503, too many requests wait for this graph.
        """
        if self._in_thread >= MOST_WAITING:
            detail = f"{self._in_thread} requests wait for this model's graph; ask again in a moment"
            raise unavailable("model-busy", "The model is busy", detail)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[float]] = loop.create_future()
        self._waiting.append((numbers, texts, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush, loop)
        return await future

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting, self._waiting = self._waiting, []
        for batch in _batches(waiting):
            rows = sum(len(numbers) for numbers, _, _ in batch)
            if rows * self.graph.seconds <= INLINE_SECONDS and not self._always_in_thread:
                _tell(batch, self._answers(batch))
            else:
                self._in_thread += len(batch)
                if self._thread is None:
                    self._thread = _Thread()
                self._thread.run(lambda batch=batch: self._run_in_thread(loop, batch))  # type: ignore[misc]

    def _run_in_thread(self, loop: asyncio.AbstractEventLoop, batch: list[Waiting]) -> None:
        waiting = [entry for entry in batch if not entry[2].done()]  # the other requests have timed out
        answers: list[list[float] | Exception] | Exception = []
        try:
            if waiting:
                with limited(RUN_SECONDS):
                    answers = self._answers(waiting)
        except Exception as error:
            answers = error
        with suppress(RuntimeError):  # the loop is closed: the service has ended
            loop.call_soon_threadsafe(self._told, len(batch), waiting, answers)

    def _told(self, requests: int, batch: list[Waiting], answers: list[list[float] | Exception] | Exception) -> None:
        self._in_thread -= requests
        _tell(batch, answers)

    def _answers(self, batch: list[Waiting]) -> list[list[float] | Exception]:
        """For each request of a batch: its answers, or what went wrong."""
        try:
            if len(batch) == 1:
                return [self.graph.run(*batch[0][:2]).tolist()]
            answers = self.graph.run([row for numbers, _, _ in batch for row in numbers], [row for _, texts, _ in batch for row in texts]).tolist()
        except Exception as error:  # ONNX Runtime's own classes
            if len(batch) == 1:
                return [error]
            return [answer for one in batch for answer in self._answers([one])]  # each on its own: only who caused it gets it
        parts, start = [], 0
        for numbers, _, _ in batch:
            parts.append(answers[start : start + len(numbers)])
            start += len(numbers)
        return parts


class _Thread:
    """Runs work in a daemon thread, in order: one that hangs does not keep the process from ending, as an executor's would."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self._work,), name="model", daemon=True).start()

    def run(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def __del__(self) -> None:
        self._work.put(None)


def _work(waiting: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (work := waiting.get()) is not None:
        work()
        del work


def _batches(waiting: list[Waiting]) -> list[list[Waiting]]:
    if len(waiting) == 1 or sum(len(numbers) for numbers, _, _ in waiting) <= MOST_ROWS:
        return [waiting]
    batches: list[list[Waiting]] = []
    room = -math.inf
    for entry in waiting:
        if room < len(entry[0]):
            batches.append([])
            room = MOST_ROWS
        batches[-1].append(entry)
        room -= len(entry[0])
    return batches


def _tell(batch: list[Waiting], answers: list[list[float] | Exception] | BaseException) -> None:
    for number, (_, _, future) in enumerate(batch):
        if future.done():  # the request has timed out
            continue
        answer = answers if isinstance(answers, BaseException) else answers[number]
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
