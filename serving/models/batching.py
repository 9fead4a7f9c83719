"""Run concurrent requests through a graph together.

Requests do not wait for others: all requests that arrived before the next step of the event loop
form one batch. A single request is a batch of one.

A slow graph runs in a thread, so that health checks and other models are still answered. A run in a
thread has a deadline, and only a limited number of requests may wait for it. So a graph that hangs
does not occupy the capacity of other models' requests.
"""

import asyncio
import logging
import math
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from serving.models.graph import Graph, limited
from serving.problems import unavailable

# A batch that takes longer than this runs in a thread. The handover costs a tenth of this time.
INLINE_SECONDS = 0.002
# Maximum number of rows in one run, so that a big request does not delay small ones for long.
MOST_ROWS = 256
# Maximum number of requests that wait for one graph's thread.
MOST_WAITING = 64
# Deadline of one run in a thread. ONNX Runtime stops the run before its next operator.
RUN_SECONDS = 10.0

log = logging.getLogger(__name__)
Numbers = Sequence[Sequence[float] | bytes]
Texts = Sequence[Sequence[str]]
Waiting = tuple[Numbers, Texts, "asyncio.Future[list[float]]"]


class Batcher:
    """The queue in front of one graph. It belongs to the event loop that uses it."""

    def __init__(self, graph: Graph, *, always_in_thread: bool = False) -> None:
        self.graph = graph
        self._always_in_thread = always_in_thread
        self._waiting: list[Waiting] = []
        self._thread: _Thread | None = None
        # The number of requests in the thread.
        self._in_thread = 0

    async def run(self, numbers: Numbers, texts: Texts) -> list[float]:
        """Return the predictions for rows of the graph's columns.

        An error that the graph raises for these rows does not affect the rows of other requests.

        Raises:
            ProblemError: 503 if too many requests wait for this graph.
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
                _tell(batch, self._answers(batch, self.graph.run_in_loop))
            else:
                self._in_thread += len(batch)
                if self._thread is None:
                    self._thread = _Thread()
                self._thread.run(lambda batch=batch: self._run_in_thread(loop, batch))  # type: ignore[misc]

    def _run_in_thread(self, loop: asyncio.AbstractEventLoop, batch: list[Waiting]) -> None:
        # The other requests have timed out.
        waiting = [entry for entry in batch if not entry[2].done()]
        answers: list[list[float] | Exception] | Exception = []
        try:
            if waiting:
                with limited(RUN_SECONDS):
                    answers = self._answers(waiting, self.graph.run)
        except Exception as error:
            answers = error
        # The event loop is closed because the service has stopped.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._answer_batch, len(batch), waiting, answers)

    def _answer_batch(
        self, requests: int, batch: list[Waiting], answers: list[list[float] | Exception] | Exception
    ) -> None:
        self._in_thread -= requests
        _tell(batch, answers)

    def _answers(
        self, batch: list[Waiting], run: Callable[[Numbers, Texts], np.ndarray]
    ) -> list[list[float] | Exception]:
        """Return the predictions or the error of each request of a batch."""
        try:
            if len(batch) == 1:
                return [run(*batch[0][:2]).tolist()]
            answers = run(
                [row for numbers, _, _ in batch for row in numbers], [row for _, texts, _ in batch for row in texts]
            ).tolist()
        except Exception as error:  # ONNX Runtime has its own exception classes.
            if len(batch) == 1:
                return [error]
            # Run each request alone, so that only the request that caused the error gets it.
            return [answer for one in batch for answer in self._answers([one], run)]
        parts, start = [], 0
        for numbers, _, _ in batch:
            parts.append(answers[start : start + len(numbers)])
            start += len(numbers)
        return parts


class _Thread:
    """Run work in order in a daemon thread.

    Unlike an executor's thread, a daemon thread that hangs does not keep the process from exiting.
    """

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
        if future.done():  # The request has timed out.
            continue
        answer = answers if isinstance(answers, BaseException) else answers[number]
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
