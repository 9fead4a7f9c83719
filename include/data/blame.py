"""Find the files that make a function fail if it can only be called on all files together."""

from collections.abc import Callable
from typing import TypeVar, cast

from include import outages

File = TypeVar("File")
Result = TypeVar("Result")


def without_guilty(
    attempt: Callable[[list[File]], Result], files: list[File]
) -> tuple[Result, list[tuple[File, Exception]]]:
    """Return the result for all files except those with which the attempt raises an exception.

    The guilty file is the last one of the shortest prefix of the list that raises, found by
    bisection. So a few guilty files among many cost a few attempts each.

    Args:
        attempt: a function that is deterministic and does not change anything.

    Returns:
        The result, and the guilty files, each with its exception.

    Raises:
        Exception: the attempt's own exception if no file is to blame. A server is unavailable, the
            attempt fails without files and with each file alone, or it fails with all files and
            with none of them alone.
    """
    good = list(files)
    guilty: list[tuple[File, Exception]] = []
    while True:
        result, error = _tried(attempt, good)
        if error is not None:
            result, error = _tried(attempt, good)  # the failure may have been transient
        if error is None:
            return cast(Result, result), guilty
        if _tried(attempt, [])[1] is None:
            # The first `low` files succeed, the first `high` files fail.
            low, high = 0, len(good)
            while high - low > 1:
                middle = (low + high) // 2
                failure = _tried(attempt, good[:middle])[1]
                if failure is None:
                    low = middle
                else:
                    high, error = middle, failure
            guilty.append((good.pop(high - 1), error))
            continue
        alone = [(file, _tried(attempt, [file])[1]) for file in good]
        if all(failure is not None for _, failure in alone) or all(failure is None for _, failure in alone):
            raise error
        guilty += [(file, failure) for file, failure in alone if failure is not None]
        good = [file for file, failure in alone if failure is None]


def _tried(attempt: Callable[[list[File]], Result], files: list[File]) -> tuple[Result | None, Exception | None]:
    try:
        return attempt(files), None
    except Exception as error:
        if outages.outage_of(error):
            raise
        return None, error
