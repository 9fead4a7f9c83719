"""Token buckets, which limit a long-term rate and the size of a burst.

Source: Turner, "New directions in communications (or which way to the information age?)", IEEE
Communications 24 (1986).

Several workers share a caller's bucket through a memory-mapped file. Each bucket has its own lock
in that file, so callers do not wait for each other. The kernel releases the lock of a worker that
dies.
"""

import fcntl
import mmap
import os
import struct
import time
from hashlib import blake2b
from pathlib import Path

SLOTS = 4096
# Hash of the name, tokens, time of that count (time.monotonic()), seconds until the bucket is full.
SLOT = struct.Struct("<Qddd")
_PROBES = 32


class Bucket:
    """A bucket of one process.

    Args:
        rate: Tokens per second.
        burst: Maximum number of tokens in the bucket.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, float(burst)
        self._tokens, self._at = self.burst, time.monotonic()

    def take(self, amount: float = 1) -> float:
        """Take tokens. Return 0, or the seconds to wait before the next try.

        Taking several tokens requires only one: the bucket goes into debt for the rest. So a
        request of many rows is possible, and the long-term rate still holds.
        """
        self._tokens, self._at, wait = _taken(self._tokens, self._at, self.rate, self.burst, amount)
        return wait


class SharedBucket:
    """A bucket that all workers share. It has the same arguments and results as ``Bucket``."""

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
    """Return the remaining tokens, the current time, and the seconds to wait."""
    # The system's monotonic clock is the same in all processes.
    now = time.monotonic()
    tokens = min(burst, tokens + max(0.0, now - at) * rate)
    if tokens >= min(1.0, burst):
        return tokens - amount, now, 0.0
    return tokens, now, (min(1.0, burst) - tokens) / rate


class SharedFile:
    """The file of all workers' buckets: ``SLOTS`` slots, addressed by the hash of the name."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, SLOTS * SLOT.size)
        self._map = mmap.mmap(self._descriptor, SLOTS * SLOT.size)

    def slot(self, name: int) -> "Slot":
        """Return the slot of a name, or a free slot. It is locked within the ``with`` block."""
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
            # A full bucket does not hold any information, so its slot may be reused. A slot is also
            # free if its time is in the future: the clock started again because the machine was
            # restarted.
            if free is None and (name == 0 or now > at + full_after or at > now):
                free = number
        self._at = (first if free is None else free) * SLOT.size
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, SLOT.size, self._at)
        self._is_mine = SLOT.unpack_from(self._map, self._at)[0] == self._name
        return self

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, SLOT.size, self._at)

    def read(self, burst: float) -> tuple[float, float]:
        """Return the tokens and their time, or a full bucket if the slot was another bucket's."""
        _, tokens, at, _ = SLOT.unpack_from(self._map, self._at)
        return (tokens, at) if self._is_mine else (burst, time.monotonic())

    def write(self, tokens: float, at: float, full_after: float) -> None:
        SLOT.pack_into(self._map, self._at, self._name, tokens, at, full_after)
