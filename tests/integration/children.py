"""Processes that a test kills, or runs beside each other: with the imports behind them, and with this process's settings and no others."""

import multiprocessing
import os
from collections.abc import Callable

# One server per pytest process, whatever file starts it: so it has all that any of them wants, and its own environment, in which
# another test's settings may be left over, counts for nothing.
_SERVED = multiprocessing.get_context("forkserver")
_SERVED.set_forkserver_preload(["great_expectations.expectations", "include.data.ingest", "include.projects.flights.feed"])


def child(work: Callable[..., None], *arguments, **variables: str) -> multiprocessing.Process:
    """``work(*arguments)`` in a process of its own, not yet started; ``variables`` on top of this environment."""
    return _SERVED.Process(target=_in_environment, args=({**os.environ, **variables}, work, arguments))


def _in_environment(environment: dict[str, str], work: Callable[..., None], arguments: tuple) -> None:
    from include.settings import get_settings

    os.environ.clear()
    os.environ.update(environment)
    get_settings.cache_clear()
    work(*arguments)
