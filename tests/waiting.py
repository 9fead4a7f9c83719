"""Wait in tests until a condition is true."""

import time
from collections.abc import Callable
from typing import Any


def wait_for(
    condition: Callable[[], Any],
    timeout: float = 20,
    explain: Callable[[], Any] = lambda: "",
    *,
    interval: float = 0.02,
) -> Any:
    """Wait until the condition is true and return its value.

    Raises:
        TimeoutError: the condition is not true in time. The message contains the result of
            ``explain``.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s: {explain()}")
        time.sleep(interval)
    return value
