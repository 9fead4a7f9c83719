"""Kill a Python process of the tested stack right after a chosen function, once per listed line.

Every process of the stack imports this module. AIRLOOP_TEST_KILLS names a file with lines
``module:function``. A process that finds its function there removes the line, and then sends itself
SIGKILL. The product does not depend on this module.
"""

import fcntl
import functools
import importlib.abc
import importlib.machinery
import os
import signal
import sys

LIST = os.environ.get("AIRLOOP_TEST_KILLS", "")


def _take(point: str) -> bool:
    """Remove the point from the list. Return True only in the process that removed it."""
    if not os.path.exists(LIST):
        return False
    with open(LIST, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        points = file.read().split()
        if point not in points:
            return False
        points.remove(point)
        file.seek(0)
        file.truncate()
        file.write("\n".join(points))
        return True


def _deadly(real, point: str):
    @functools.wraps(real)
    def wrapped(*args, **kwargs):
        result = real(*args, **kwargs)
        if _take(point):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if not name.startswith("include.") or not os.path.exists(LIST):
            return None
        with open(LIST) as file:
            points = [p.split(":") for p in file.read().split()]
        functions = [function for module, function in points if module == name]
        spec = importlib.machinery.PathFinder.find_spec(name, path) if functions else None
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                for function in functions:
                    setattr(module, function, _deadly(getattr(module, function), f"{name}:{function}"))

            spec.loader.exec_module = exec_module
        return spec


if LIST:
    sys.meta_path.insert(0, _Finder())
