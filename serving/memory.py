"""Keep the memory of a process that runs for months flat.

Nothing of this changes what is allocated. It changes what the allocators keep for later after it was freed: with bodies, registry entries and log files of
all sizes they keep a little more every minute.
"""

import ctypes
import os

# Parameters of glibc's mallopt.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
# A larger block is a mapping of its own, and goes back to the system when it is freed. A fixed threshold: glibc raises its own with each such block.
OWN_MAPPING = 256 * 1024
# Seconds between two times at which free pages between blocks that are in use go back to the system.
TRIM_SECONDS = 30.0


def choose_pools() -> None:
    """Have Arrow allocate as everything else does. To be called before Arrow is imported, also for child processes."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def bound_what_is_kept() -> None:
    """Have the C library return large blocks to the system, and keep few pools. Without effect on other C libraries than glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, 2)
    mallopt(M_MMAP_THRESHOLD, OWN_MAPPING)


def return_free_pages() -> bool:
    """Give free pages between blocks that are in use back to the system; False: this C library cannot. It takes milliseconds, without Python's lock."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True
