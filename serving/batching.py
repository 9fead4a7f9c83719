"""Requests that come at the same moment go through the graph together.

No request waits for others: what has arrived by the time the event loop comes round is one batch. Alone, a request is a batch of one.
A graph that takes long runs in a thread, so that health checks and other models are answered meanwhile.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serving.graph import Graph

INLINE_SECONDS = 0.002  # a batch that takes longer runs in a thread: handing it over costs a tenth of that
MOST_ROWS = 256  # in one run: a big request must not hold up small ones for long

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
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, numbers: Numbers, texts: Texts) -> list[float]:
        """Answers for rows of the graph's columns. What the graph raises for them is raised here, and for nobody else's rows."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[float]] = loop.create_future()
        self._waiting.append((numbers, texts, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush, loop)
        return await future

    def close(self) -> None:
        """End the thread; what is in it is answered."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting, self._waiting = self._waiting, []
        for batch in _batches(waiting):
            rows = sum(len(numbers) for numbers, _, _ in batch)
            if rows * self.graph.seconds <= INLINE_SECONDS and not self._always_in_thread:
                _tell(batch, self._answers(batch))
            else:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(1, thread_name_prefix="model")
                running = loop.run_in_executor(self._pool, self._answers, batch)
                running.add_done_callback(lambda done, batch=batch: _tell(batch, done.exception() or done.result()))  # type: ignore[misc]

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
        if future.done():  # nobody waits any more: the request's time was over
            continue
        answer = answers if isinstance(answers, BaseException) else answers[number]
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
