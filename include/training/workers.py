"""The workers that fit one model together, from the view of one of them.

It defines which rows a worker has, and how the workers add up their results. Every global batch is
cut into as many slices as there are workers. The gradient of a batch is the sum over all its rows
divided by their number, whichever worker has them. So one worker and many take the same steps, up
to the rounding of sums.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from include.projects.base import Candidate
from include.training.checkpoint import Checkpoints

if TYPE_CHECKING:
    import torch

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# A worker on a lost node does not close its connections. The others wait this long. It is longer
# than any export, upload or download between two steps.
PEER_TIMEOUT = timedelta(minutes=10)
# EX_TEMPFAIL of sysexits.h: the exit code of a worker that ended only because another one did.
OTHERS_LOST = 75
# Errors of gloo and NCCL when another worker is gone. The store has its own exceptions.
PEER_LOST_PHRASES = (
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "connection refused",
    "timed out waiting",
    "application timeout",
    "remote process",
)


@dataclass(frozen=True)
class Workers:
    """This process' place among the workers of a fit. By default it is the only one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Return whether this worker prints, keeps checkpoints and writes the result."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this worker's slice of a batch of ``count`` rows.

        Slices differ by at most one row, and may be empty.
        """
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def together(self, network: "torch.nn.Module") -> "torch.nn.Module":
        """Return the network with gradients averaged over all workers.

        It uses torch's DistributedDataParallel.
        """
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        # This flag keeps the buckets unchanged. Otherwise they are reordered after the first step.
        # With three or more workers that changes the rounding of sums, so a resumed fit would not
        # be bit-identical.
        return DistributedDataParallel(network, find_unused_parameters=True)

    def total(self, value: "torch.Tensor") -> "torch.Tensor":
        """Return the sum of a tensor over all workers."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.all_reduce(value)
        return value

    def of_the_first(self, content: bytes) -> bytes:
        """Return the first worker's content in all workers.

        If two workers read a file at different times, they could get different contents.
        """
        if self.size == 1:
            return content
        import torch.distributed

        contents: list[Any] = [content]
        torch.distributed.broadcast_object_list(contents, src=0)
        first: bytes = contents[0]
        return first


SINGLE_WORKER = Workers()
_present = SINGLE_WORKER


@dataclass(frozen=True)
class FitRun:
    """How a fit is run: workers, device and checkpoints. It does not affect the result."""

    workers: Workers = SINGLE_WORKER
    device: str = "cpu"
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    @classmethod
    def from_candidate(cls, candidate: Candidate, checkpoints: Checkpoints) -> "FitRun":
        """Return the run of this process: alone, or one of the launcher's workers."""
        return cls(_present, device_of(candidate), checkpoints)


def device_of(candidate: Candidate) -> str:
    """Return ``cuda:<n>`` for a candidate of a GPU class if there is a GPU, else ``cpu``."""
    if not candidate.compute.startswith("gpu"):
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        print(
            f"{candidate.name}: compute class {candidate.compute}, but no CUDA device is seen here: on the CPU",
            flush=True,
        )
        return "cpu"
    # Otherwise cuBLAS is not deterministic, and torch refuses it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return f"cuda:{torch.distributed.get_node_local_rank(fallback_rank=0)}"


@contextmanager
def joined(candidate: Candidate, meeting: str | None) -> Iterator[Workers]:
    """Join the other workers that the launcher started.

    All leave together, when the first one has written the result.

    Args:
        meeting: folder in which workers of one machine find each other. None: use the address that
            torchrun sets in the environment.
    """
    global _present
    import torch.distributed as dist

    device = device_of(candidate)
    # Set by torchrun, like the number of this try.
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(f"{meeting}/try-{os.environ['TORCHELASTIC_RESTART_COUNT']}", size) if meeting else None
    try:
        dist.init_process_group(
            "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
            store=store,
            rank=rank,
            world_size=size,
            timeout=PEER_TIMEOUT,
        )
        _present = Workers(rank, size)
        yield _present
        # A worker that left earlier could not be restarted with the others if one of them died now.
        dist.barrier()
    except RuntimeError as error:
        if not _lost_another(error):
            raise
        print(f"worker {rank} of {size} ends, since another one is gone: {error}", flush=True)
        sys.exit(OTHERS_LOST)
    finally:
        _present = SINGLE_WORKER
    dist.destroy_process_group()


def _lost_another(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistNetworkError | dist.DistStoreError) or any(
        words in str(error).lower() for words in PEER_LOST_PHRASES
    )


def die_with(launcher: int) -> None:
    """Let the kernel kill this worker when its launcher dies.

    A worker is in its own process group. If it outlived its launcher, a retry would run
    concurrently with it.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        sys.exit("the launcher died before this worker had begun")
