"""The training loop of torch networks: sliced global batches and checkpoints.

The result does not depend on interruptions. All random choices are a function of only the seed and
the step: the rows of a batch, and the units that dropout drops. They are drawn for the whole batch
and then sliced. So a fit does not depend on the number of workers, and a checkpoint does not need a
generator's state.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from include.settings import get_settings
from include.training.trainers.base import SEED
from include.training.workers import FitRun

ORDER, DROPOUT = 0, 1  # the purposes of a seed


class BatchDropout(torch.nn.Module):
    """Dropout (Srivastava et al. 2014) drawn for the whole batch: a worker takes its slice."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self._seed, self._count, self._mine = 0, 0, slice(None)

    def begin(self, seed: int, count: int, mine: slice) -> None:
        """Prepare a step: ``count`` rows in the batch, of which ``mine`` are in this worker."""
        self._seed, self._count, self._mine = seed, count, mine

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training or self.share == 0:
            return values
        generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.rand(self._count, *values.shape[1:], generator=generator)[self._mine]
        return values * (drawn >= self.share).to(values) / (1 - self.share)


def train_network(
    network: torch.nn.Module,
    rows: torch.Tensor,
    target: torch.Tensor,
    *,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epochs: int,
    batch_size: int,
    run: FitRun,
) -> list[float]:
    """Train in place. Resume from the run's checkpoint if there is one.

    The optimizer and the schedule take a step for each batch.

    Args:
        rows: [n, inputs], all of them in every worker. They are moved to the run's device batch by
            batch.
        target: [n, outputs].
        loss_of: the sum of the losses of a slice's rows (``reduction="sum"``).

    Returns:
        The mean training loss of each epoch.
    """
    workers, every, device = run.workers, get_settings().checkpoint_every_steps, run.device
    steps = -(-len(rows) // batch_size)
    first_step, curve, total = _go_on(network, optimizer, schedule, steps, epochs, run)
    together = workers.together(network)
    dropouts = [module for module in network.modules() if isinstance(module, BatchDropout)]
    order = torch.empty(0, dtype=torch.int64)
    for step in range(first_step, epochs * steps):
        epoch, place = divmod(step, steps)
        if place == 0 or step == first_step:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_seed(ORDER, epoch)))
        batch = order[place * batch_size : (place + 1) * batch_size]
        mine = workers.share(len(batch))
        for number, dropout in enumerate(dropouts):
            dropout.begin(_seed(DROPOUT, step, number), len(batch), mine)
        optimizer.zero_grad()
        with warnings.catch_warnings():
            # None is unused; see Workers.together.
            warnings.filterwarnings("ignore", "find_unused_parameters=True")
            lost = loss_of(together(rows[batch[mine]].to(device)), target[batch[mine]].to(device))
        # DistributedDataParallel averages over workers. With this factor, the average is the
        # gradient of the batch's mean loss, however the rows are distributed.
        (lost * (workers.size / len(batch))).backward()
        optimizer.step()
        schedule.step()
        total += lost.detach().double()
        ended = place == steps - 1
        if ended or (step + 1) % every == 0:
            total = workers.total(total)
            if ended:
                curve.append(float(total) / len(rows))
                total = torch.zeros_like(total)
            if workers.first:
                if ended:
                    print(f"epoch {epoch + 1}/{epochs}: training loss {curve[-1]:.4f}", flush=True)
                parts = {"model": network, "optimizer": optimizer, "schedule": schedule}
                state = {name: part.state_dict() for name, part in parts.items()}
                run.checkpoints.save({"step": step + 1, "curve": curve, "total": float(total), **state})
            else:
                total = torch.zeros_like(total)  # the first worker holds the sum
    return curve


def _go_on(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    steps: int,
    epochs: int,
    run: FitRun,
) -> tuple[int, list[float], torch.Tensor]:
    """Return the first remaining step, the curve so far, and the epoch's summed loss so far."""
    stored = run.workers.of_the_first(run.checkpoints.load() if run.workers.first else b"")
    checkpoint: dict[str, Any] | None = run.checkpoints.state(stored)
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    if checkpoint is None:
        return 0, [], total
    network.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    schedule.load_state_dict(checkpoint["schedule"])
    if run.workers.first:
        total += checkpoint["total"]
        epoch, place = divmod(checkpoint["step"], steps)
        where = f"epoch {epoch + 1}/{epochs}" if epoch < epochs else f"the end of epoch {epochs}/{epochs}"
        print(f"resuming from {where}{f', step {place + 1}/{steps}' if place else ''}", flush=True)
    return checkpoint["step"], checkpoint["curve"], total


def _seed(*what: int) -> int:
    """Return a seed that is unique to one purpose and one step."""
    return int(np.random.SeedSequence([SEED, *what]).generate_state(1, np.uint64)[0] >> np.uint64(1))
