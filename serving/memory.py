"""Keep the memory of a long-running process constant.

This module does not change what is allocated. It limits the freed memory that the allocators
retain. With bodies, registry entries and log files of all sizes, that memory grows every minute.
"""

import ctypes
import os

# Parameters of glibc's mallopt.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
# A larger block gets its own mapping, which is returned to the system when it is freed. The
# threshold is fixed, because glibc otherwise raises it with each such block.
OWN_MAPPING = 256 * 1024
# Interval in seconds at which free pages between used blocks are returned to the system.
TRIM_SECONDS = 30.0


def choose_pools() -> None:
    """Let Arrow use the system allocator.

    Call this before Arrow is imported. It also applies to child processes.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def bound_what_is_kept() -> None:
    """Let the C library return large blocks to the system and keep few pools. Needs glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, 2)
    mallopt(M_MMAP_THRESHOLD, OWN_MAPPING)


def return_free_pages() -> bool:
    """Return free pages between used blocks to the system. Return False if not supported.

    The call takes milliseconds and releases Python's lock.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True
