"""Token buckets: so many a second in the long run, so many at once.

Source: Turner, "New directions in communications (or which way to the information age?)", IEEE Communications 24 (1986).

Several workers share a caller's bucket through a file that all of them have mapped. Each bucket has a lock of its own in that file, so callers do not
wait for each other, and a worker that dies lets its lock go.
"""

import fcntl
import mmap
import os
import struct
import time
from hashlib import blake2b
from pathlib import Path

SLOTS = 4096
SLOT = struct.Struct("<Qddd")  # hash of the name, tokens, when they were counted (time.monotonic()), seconds until the bucket is full again
_PROBES = 32


class Bucket:
    """A bucket of one process.

    Args:
        rate: tokens a second.
        burst: tokens at once.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, float(burst)
        self._tokens, self._at = self.burst, time.monotonic()

    def take(self, amount: float = 1) -> float:
        """Take tokens. Return 0, or the seconds until it is worth another try.

        A take of more than one token needs only one: the bucket owes the rest. So a request of many rows is possible, and the rate holds in the long run.
        """
        self._tokens, self._at, wait = _taken(self._tokens, self._at, self.rate, self.burst, amount)
        return wait


class SharedBucket:
    """A bucket that all workers share. Same arguments and results as ``Bucket``."""

    def __init__(self, file: "SharedFile", name: str, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, float(burst)
        self._file, self._name = file, int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") or 1

    def take(self, amount: float = 1) -> float:
        """Take tokens; see ``Bucket.take``."""
        with self._file.slot(self._name) as slot:
            tokens, at = slot.read(self.burst)
            tokens, at, wait = _taken(tokens, at, self.rate, self.burst, amount)
            slot.write(tokens, at, (self.burst - tokens) / self.rate)
        return wait


def _taken(tokens: float, at: float, rate: float, burst: float, amount: float) -> tuple[float, float, float]:
    """Return tokens, time, and the seconds to wait."""
    # The clock is the system's, the same in all processes.
    now = time.monotonic()
    tokens = min(burst, tokens + max(0.0, now - at) * rate)
    if tokens >= min(1.0, burst):
        return tokens - amount, now, 0.0
    return tokens, now, (min(1.0, burst) - tokens) / rate


class SharedFile:
    """The file of all workers' buckets: ``SLOTS`` slots, found by the hash of a bucket's name."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, SLOTS * SLOT.size)
        self._map = mmap.mmap(self._descriptor, SLOTS * SLOT.size)

    def slot(self, name: int) -> "Slot":
        """Return the slot of a name, or a free one, which is locked within the ``with`` block."""
        return Slot(self._map, self._descriptor, name)


class Slot:
    """A locked slot of the file."""

    def __init__(self, shared: mmap.mmap, descriptor: int, name: int) -> None:
        self._map, self._descriptor, self._name = shared, descriptor, name
        self._at = 0
        self._is_mine = False

    def __enter__(self) -> "Slot":
        now = time.monotonic()
        first = self._name % SLOTS
        free = None
        for number in (*range(first, min(first + _PROBES, SLOTS)), *range(max(0, first + _PROBES - SLOTS))):
            name, _, at, full_after = SLOT.unpack_from(self._map, number * SLOT.size)
            if name == self._name:
                free = number
                break
            # A full bucket says nothing: its slot may be another's. A clock that began anew (a restarted machine) makes it free too.
            if free is None and (name == 0 or now > at + full_after or at > now):
                free = number
        self._at = (first if free is None else free) * SLOT.size
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, SLOT.size, self._at)
        self._is_mine = SLOT.unpack_from(self._map, self._at)[0] == self._name
        return self

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, SLOT.size, self._at)

    def read(self, burst: float) -> tuple[float, float]:
        """Return tokens and when they were counted; a full bucket if the slot was another's."""
        _, tokens, at, _ = SLOT.unpack_from(self._map, self._at)
        return (tokens, at) if self._is_mine else (burst, time.monotonic())

    def write(self, tokens: float, at: float, full_after: float) -> None:
        SLOT.pack_into(self._map, self._at, self._name, tokens, at, full_after)
