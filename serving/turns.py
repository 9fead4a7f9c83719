"""Share the event loop and threads between requests and callers."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# A turn takes about a third of a millisecond.
ROWS = 32


async def in_turns(make: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
    """Return the results of ``make`` for all items.

    ``make`` is called with at most ``ROWS`` items at a time, in their order.
    """
    if len(items) <= ROWS:
        return make(items)
    results: list[Result] = []
    for start in range(0, len(items), ROWS):
        if start:
            await asyncio.sleep(0)
        results += make(items[start : start + ROWS])
    return results


class CallerTurns:
    """Threads for slow work, of which one caller has one at a time.

    So no caller waits for all the work that another one has sent.

    Belongs to the event loop that uses it.
    """

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(threads, "turns")
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._waiting: Counter[str] = Counter()

    async def run(self, caller: str, work: Callable[[], Result]) -> Result:
        """Return what ``work`` returns, when it is the caller's turn.

        What it raises is raised here.
        """
        turn = self._turns.setdefault(caller, asyncio.Semaphore())
        self._waiting[caller] += 1
        try:
            async with turn:
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting[caller] -= 1
            if not self._waiting[caller]:
                del self._turns[caller], self._waiting[caller]
