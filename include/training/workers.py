"""The workers that fit one model together, seen from inside one of them: which rows are its own, and how they add up what each has found.

Every global batch is cut into as many slices as there are workers. The gradient of a batch is the sum over all its rows divided by their
number, wherever they were, so one worker and many take the same steps, up to the rounding of sums.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from include.projects.base import Candidate
from include.training.checkpoint import Checkpoints

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# A worker on a node that was lost closes no connection: so long the others wait for it. Longer than any export, upload or download between two steps.
SILENCE = timedelta(minutes=10)
OTHERS_LOST = 75  # EX_TEMPFAIL of sysexits.h: a worker's exit code that says that it ended only because another one did
# What gloo and NCCL say when another worker is gone; the store has exceptions of its own.
GONE = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "timed out waiting", "application timeout", "remote process")


@dataclass(frozen=True)
class Workers:
    """This process' place among the workers of a fit; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that prints, keeps checkpoints, and tells what all have made."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This worker's slice of a batch of so many rows; slices differ by one row at most, and may be empty."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def together(self, network):
        """The network as one whose gradients are the mean over all workers (torch's DistributedDataParallel)."""
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        # With this flag its buckets stay as they are. Otherwise it sorts them anew after the first step, which with three workers and more
        # rounds sums otherwise: a fit that went on from a checkpoint would not be the same bit for bit.
        return DistributedDataParallel(network, find_unused_parameters=True)

    def total(self, value):
        """The sum of a tensor over all workers."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.all_reduce(value)
        return value

    def of_the_first(self, content: bytes) -> bytes:
        """What the first worker holds, for all: two that read one file at two times might read two."""
        if self.size == 1:
            return content
        import torch.distributed

        told: list[Any] = [content]
        torch.distributed.broadcast_object_list(told, src=0)
        return told[0]


ALONE = Workers()
_present = ALONE


@dataclass(frozen=True)
class FitRun:
    """How a fit is run: by which workers, on which device, with which checkpoints. It changes nothing in what is learned."""

    workers: Workers = ALONE
    device: str = "cpu"
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    @classmethod
    def of(cls, candidate: Candidate, checkpoints: Checkpoints) -> "FitRun":
        """As this process was started: alone, or by the launcher as one of several workers."""
        return cls(_present, device_of(candidate), checkpoints)


def device_of(candidate: Candidate) -> str:
    """``cuda:<n>`` for a candidate of a GPU class where there is one, else ``cpu``."""
    if not candidate.compute.startswith("gpu"):
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        print(f"{candidate.name}: compute class {candidate.compute}, but no CUDA device is seen here: on the CPU", flush=True)
        return "cpu"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is not deterministic, and torch refuses it
    return f"cuda:{torch.distributed.get_node_local_rank(fallback_rank=0)}"


@contextmanager
def joined(candidate: Candidate, meeting: str | None) -> Iterator[Workers]:
    """Join the other workers that the launcher started; all leave together, when the first one has told what they made.

    Args:
        meeting: folder in which workers of one machine find each other; None: at the address that torchrun gives in the environment.
    """
    global _present
    import torch.distributed as dist

    device = device_of(candidate)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])  # torchrun's, as is the number of this try
    store = dist.FileStore(f"{meeting}/try-{os.environ['TORCHELASTIC_RESTART_COUNT']}", size) if meeting else None
    try:
        dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", store=store, rank=rank, world_size=size, timeout=SILENCE)
        _present = Workers(rank, size)
        yield _present
        dist.barrier()  # a worker that left earlier could not be started again with the others if one of them died now
    except RuntimeError as error:
        if not _lost_another(error):
            raise
        print(f"worker {rank} of {size} ends, since another one is gone: {error}", flush=True)
        sys.exit(OTHERS_LOST)
    finally:
        _present = ALONE
    dist.destroy_process_group()


def _lost_another(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistNetworkError | dist.DistStoreError) or any(words in str(error).lower() for words in GONE)


def die_with(launcher: int) -> None:
    """A worker is in a process group of its own, and must not outlive who started it: a retry would work beside it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        sys.exit("the launcher died before this worker had begun")
