"""Which of several files makes a function fail, when only the function over all of them is known to."""

from collections.abc import Callable
from typing import TypeVar, cast

from include import outages

File = TypeVar("File")
Result = TypeVar("Result")


def without_guilty(attempt: Callable[[list[File]], Result], files: list[File]) -> tuple[Result, list[tuple[File, Exception]]]:
    """The result for all files but those with which the attempt raises an exception.

    The guilty file is the last one of the shortest beginning of the list that raises, found by halves. So a few files among many cost a few attempts each.

    Args:
        attempt: the same files give the same result; it changes nothing.

    Returns:
        The result, and the guilty files, each with its exception.

    Raises:
        Exception: the attempt's own, if no file is to blame: a server is away, it fails without any file and with each of them alone, or it fails
            with all of them and with none of them alone.
    """
    good = list(files)
    guilty: list[tuple[File, Exception]] = []
    while True:
        result, error = _tried(attempt, good)
        if error is not None:
            result, error = _tried(attempt, good)  # it may have been a chance
        if error is None:
            return cast(Result, result), guilty
        if _tried(attempt, [])[1] is None:
            low, high = 0, len(good)  # the first `low` files do no harm, the first `high` do
            while high - low > 1:
                middle = (low + high) // 2
                found = _tried(attempt, good[:middle])[1]
                if found is None:
                    low = middle
                else:
                    high, error = middle, found
            guilty.append((good.pop(high - 1), error))
            continue
        alone = [(file, _tried(attempt, [file])[1]) for file in good]
        if all(found is not None for _, found in alone) or all(found is None for _, found in alone):
            raise error
        guilty += [(file, found) for file, found in alone if found is not None]
        good = [file for file, found in alone if found is None]


def _tried(attempt: Callable[[list[File]], Result], files: list[File]) -> tuple[Result | None, Exception | None]:
    try:
        return attempt(files), None
    except Exception as error:
        if outages.away(error):
            raise
        return None, error
