"""Training steps and their workers."""

import os
from typing import Literal

from pydantic import Field

from include.settings.profile import Profile


class Training(Profile):
    """Where training steps run, and how the workers of a fit meet."""

    compute: Literal["process", "kubernetes"] = Field(
        "process", description="Where training steps run: process (child processes of the task) or kubernetes (pods)."
    )
    training_threads: int = Field(
        min(os.cpu_count() or 1, 8),
        ge=1,
        description=(
            "Number of OpenMP threads of a training step that runs as a process. A pod uses one thread per core."
        ),
    )
    checkpoint_every_steps: int = Field(
        500,
        ge=1,
        description=(
            "Number of steps between two checkpoints of a neural network's fit. It also saves one at the end of each"
            " epoch."
        ),
    )
    worker_restarts: int = Field(
        3,
        ge=0,
        description="How often the workers of one fit are restarted from the checkpoint after a worker is lost.",
    )
    rendezvous: str | None = Field(
        None,
        description=(
            "Address (host:port) where the workers of a fit meet, one worker per pod. The Job sets it. If unset, they"
            " run on one machine."
        ),
    )
    rendezvous_timeout: int = Field(
        900,
        gt=0,
        description="Seconds that a worker waits for the other workers, while nodes start and images are pulled.",
    )
    worker_index: int = Field(0, ge=0, description="Index of this pod among the workers of a fit. The Job sets it.")
    worker_address: str | None = Field(
        None, description="Address of this pod for the other workers of a fit. The Job sets it."
    )
