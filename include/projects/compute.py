"""Compute classes: what a training step may ask of the machine that it runs on. A class is also the Airflow pool of its name.

On one machine a class is only its pool and its time limit; on Kubernetes it is the pod's resources, the nodes that it may go to, and how long it waits.
"""

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(k|M|G|T|Ki|Mi|Gi|Ti)?$", description="Bytes as Kubernetes writes them: 512Mi, 2Gi.")]


class Toleration(BaseModel):
    """A taint of nodes that the class's pods put up with; fields as in Kubernetes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _fits_together(self):
        if self.operator == "Exists" and self.value is not None:  # the API server would refuse each pod
            raise ValueError(f"the toleration of {self.key} has the value '{self.value}' and operator Exists, which compares none: say operator='Equal'")
        return self


class ComputeClass(BaseModel):
    """Resources and time limits of one training step. Each default stands beside its reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Most models here are trees on small tables, and a GPU that waits is the dearest thing in the house.
    gpus: int = Field(0, ge=0, description="GPUs of one step; it takes as many slots of its pool (a step without GPU takes one).")
    gpu_resource: str = Field("nvidia.com/gpu", description="The name by which the cluster's device plugin counts them.")
    # One: training pins its threads (AIRLOOP_TRAINING_THREADS). A request only: a limit would throttle the moments in which a step reads tables.
    cpu: float = Field(1, gt=0, description="Cores that the pod is sure to get.")
    # Request and limit are one figure: what a pod uses beyond its request, the node takes back by killing somebody, not always the guilty one.
    memory: Quantity = Field("2Gi", description="Memory of the first try; a pod that needs more is killed and tried again with twice as much.")
    # Three tries at most (2, 4, 8 GiB): what needs more is a leak or another class.
    memory_max: Quantity = Field("8Gi", description="The most that a retry may get.")
    # The root is read-only; this is /tmp, where models are downloaded and plots drawn. Without a limit one step could fill the node's disk.
    ephemeral_storage: Quantity = Field("4Gi", description="Disk of the node that the pod may write, /tmp above all.")
    node_selector: dict[str, str] = Field({}, description="Labels of the nodes that have this class's GPU.")
    tolerations: tuple[Toleration, ...] = Field((), description="GPU nodes are often tainted, so that nothing else goes there.")
    # One image would carry CUDA's gigabytes to nodes that have no GPU.
    image: str | None = Field(None, description="This class's own training image (CUDA, say); default: AIRLOOP_TRAINING_IMAGE.")
    # What the longest fit should ever take. A step that runs longer hangs, as far as anyone can tell from outside.
    timeout: timedelta = Field(timedelta(hours=1), description="A step that runs longer than this is killed.")
    # A cluster that grows brings a GPU node in five to fifteen minutes; beyond that somebody has to look.
    schedule_timeout: timedelta = Field(timedelta(minutes=30), description="A pod that no node has room for is given up after this.")
    # Told apart from the above, as it means something else: pulling a CUDA image of several GB to a new node. Airflow's default of two minutes is too short.
    start_timeout: timedelta = Field(timedelta(minutes=15), description="From having a node to running.")
    # Kubernetes' own default is five minutes. A kubelet that restarts is back in one, and must not cost an hour's fit; a lost node should not cost five.
    node_lost_after: timedelta = Field(timedelta(minutes=2), description="A node that does not answer for this long is given up, and the pod tried again.")

    @model_validator(mode="after")
    def _rises(self):
        if in_bytes(self.memory_max) < in_bytes(self.memory):
            raise ValueError(f"memory_max {self.memory_max} is below memory {self.memory}; give at least as much")
        return self

    @property
    def slots(self) -> int:
        """Slots of the pool that a step takes."""
        return max(1, self.gpus)

    @property
    def memory_sizes(self) -> tuple[str, ...]:
        """The sizes that tries go through: doubled each time, the last one is ``memory_max``."""
        sizes, number, unit = [self.memory], *_split(self.memory)
        while (number := number * 2) * UNITS[unit] < in_bytes(self.memory_max):
            sizes.append(f"{number}{unit}")
        return (*sizes, self.memory_max) if in_bytes(self.memory_max) > in_bytes(self.memory) else tuple(sizes)

    def memory_after(self, used_up: list[str]) -> str | None:
        """The size for the next try when pods with these sizes were killed for memory; None: there is none bigger."""
        most = max(map(in_bytes, used_up), default=0)
        return next((size for size in self.memory_sizes if in_bytes(size) > most), None)


def in_bytes(quantity: str) -> int:
    """``2Gi`` -> 2147483648.

    Raises:
        ValueError: it is not written as Kubernetes writes whole bytes.
    """
    number, unit = _split(quantity)
    return number * UNITS[unit]


def _split(quantity: str) -> tuple[int, str]:
    match = re.fullmatch(r"([0-9]+)([A-Za-z]*)", quantity)
    if not match or match[2] not in UNITS:
        raise ValueError(f"'{quantity}' is no quantity of bytes; write it like 512Mi or 2Gi")
    return int(match[1]), match[2]
