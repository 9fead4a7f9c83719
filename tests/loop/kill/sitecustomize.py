"""In every Python process of the tested stack: dies by kill -9 right after a chosen function has done its work, once for each line of the list.

AIRLOOP_TEST_KILLS names a file with lines ``module:function``. A process that finds its function there takes the line out, then dies. The product
knows nothing of this.
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
    """Take the point out of the list; True for the one process that did."""
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
