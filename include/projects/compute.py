"""Compute classes: the resources of a training step. A class is also the Airflow pool of its name.

On one machine a class is only its pool and its time limit. On Kubernetes it is also the pod's
resources, the nodes that it may use, and its waiting times.
"""

import re
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
Quantity = Annotated[
    str,
    Field(
        pattern=r"^[1-9][0-9]*(k|M|G|T|Ki|Mi|Gi|Ti)?$",
        description="Bytes in the notation of Kubernetes, for example 512Mi or 2Gi.",
    ),
]


class Toleration(BaseModel):
    """A taint of nodes that the class's pods tolerate. The fields are those of Kubernetes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        # The API server would refuse each pod.
        if self.operator == "Exists" and self.value is not None:
            raise ValueError(
                f"the toleration of {self.key} has the value '{self.value}' and operator Exists, which does not compare"
                " values: use operator='Equal'"
            )
        return self


class ComputeClass(BaseModel):
    """Resources and time limits of one training step. Comments give the reasons of defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Most models here are trees on small tables, and an idle GPU is expensive.
    gpus: int = Field(
        0,
        ge=0,
        description="Number of GPUs of one step. The step takes as many slots of its pool, or one slot without a GPU.",
    )
    gpu_resource: str = Field(
        "nvidia.com/gpu", description="Resource name that the cluster's device plugin gives to these GPUs."
    )
    # One core: training limits its threads (AIRLOOP_TRAINING_THREADS). This is only a request,
    # because a limit would throttle the pod while it reads tables.
    cpu: float = Field(1, gt=0, description="Number of cores that the pod is guaranteed to get.")
    # Request and limit are equal. If pods use more than their request, the node may kill any pod to
    # reclaim memory, not only the one that uses too much.
    memory: Quantity = Field(
        "2Gi", description="Memory of the first try. A pod that needs more is killed and retried with twice as much."
    )
    # At most three tries (2, 4, 8 GiB). A step that needs more has a leak or needs another class.
    memory_max: Quantity = Field("8Gi", description="Maximum memory of a retry.")
    # The root file system is read-only. This is /tmp, where models are downloaded and plots drawn.
    # Without a limit one step could fill the node's disk.
    ephemeral_storage: Quantity = Field(
        "4Gi", description="Disk space of the node that the pod may use, mainly in /tmp."
    )
    node_selector: dict[str, str] = Field({}, description="Labels of the nodes with this class's GPU.")
    tolerations: tuple[Toleration, ...] = Field(
        (), description="Taints that the pods tolerate. GPU nodes are often tainted to keep other pods away."
    )
    # A single image would put gigabytes of CUDA on nodes without a GPU.
    image: str | None = Field(
        None, description="Training image of this class, for example with CUDA. Default: AIRLOOP_TRAINING_IMAGE."
    )
    # An upper limit for the longest fit. A step that runs longer is assumed to hang.
    timeout: timedelta = Field(
        timedelta(hours=1), description="Time limit of a step. A step that runs longer is killed."
    )
    # An autoscaling cluster adds a GPU node in 5 to 15 minutes. After a longer wait an operator
    # must intervene.
    schedule_timeout: timedelta = Field(
        timedelta(minutes=30), description="A pod that does not fit on any node is given up after this time."
    )
    # Separate from the above, because it covers pulling a CUDA image of several GB to a new node.
    # Airflow's default of two minutes is too short.
    start_timeout: timedelta = Field(
        timedelta(minutes=15), description="Time limit from the assignment to a node until the pod runs."
    )
    # The default of Kubernetes is five minutes. A kubelet that restarts is back in one minute, and
    # must not cost an hour's fit. A lost node should not cost five.
    node_lost_after: timedelta = Field(
        timedelta(minutes=2),
        description="A node that does not respond for this long is considered lost, and its pod is retried.",
    )

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if in_bytes(self.memory_max) < in_bytes(self.memory):
            raise ValueError(f"memory_max {self.memory_max} is below memory {self.memory}; give at least as much")
        return self

    @property
    def slots(self) -> int:
        """Return the number of pool slots that a step takes."""
        return max(1, self.gpus)

    @property
    def memory_sizes(self) -> tuple[str, ...]:
        """Return the memory sizes of successive tries: doubled each time, up to ``memory_max``."""
        sizes, number, unit = [self.memory], *_split(self.memory)
        while (number := number * 2) * UNITS[unit] < in_bytes(self.memory_max):
            sizes.append(f"{number}{unit}")
        return (*sizes, self.memory_max) if in_bytes(self.memory_max) > in_bytes(self.memory) else tuple(sizes)

    def memory_after(self, used_up: list[str]) -> str | None:
        """Return the memory size for the next try after pods with these sizes were killed.

        Return None if there is no larger size.
        """
        most = max(map(in_bytes, used_up), default=0)
        return next((size for size in self.memory_sizes if in_bytes(size) > most), None)


def in_bytes(quantity: str) -> int:
    """Convert a quantity to bytes: ``2Gi`` -> 2147483648.

    Raises:
        ValueError: it is not in Kubernetes' notation for whole bytes.
    """
    number, unit = _split(quantity)
    return number * UNITS[unit]


def _split(quantity: str) -> tuple[int, str]:
    match = re.fullmatch(r"([0-9]+)([A-Za-z]*)", quantity)
    if not match or match[2] not in UNITS:
        raise ValueError(f"'{quantity}' is not a quantity of bytes; write it like 512Mi or 2Gi")
    return int(match[1]), match[2]
