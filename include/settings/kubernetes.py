"""The cluster of the training pods."""

import re
from pathlib import Path

from pydantic import Field, field_validator

from include.settings.profile import Profile


class Kubernetes(Profile):
    """The cluster, and the image, pools and priorities of the training pods."""

    kubernetes_connection: str = Field(
        "kubernetes_default",
        description=(
            "Airflow connection of the Kubernetes cluster. Its extras select in-cluster access or a kubeconfig."
        ),
    )
    kubernetes_namespace: str = Field("airloop-training", description="Kubernetes namespace of the training pods.")
    training_image: str | None = Field(
        None,
        description=(
            "Image of the training pods, for AIRLOOP_COMPUTE=kubernetes: repository@sha256:... (required in the profile"
            " kubernetes) or a fixed tag."
        ),
    )
    pod_template: Path | None = Field(
        None,
        description=(
            "YAML file of a pod that training pods extend. It contains a site's own volumes, sidecars and DNS settings."
        ),
    )
    pools: str | None = Field(
        None,
        description=(
            "Slots of the Airflow pools, one pool per compute class, for example cpu=4,gpu_a=2. Default:"
            " AIRLOOP_PARALLELISM for cpu."
        ),
    )
    priority_classes: str | None = Field(
        None,
        description=(
            "PriorityClasses of the training pods by compute class, with * for all other classes:"
            " gpu_a=airloop-gpu,*=airloop-preemptible."
        ),
    )

    @field_validator("priority_classes")
    @classmethod
    def _classes(cls, value: str | None) -> str | None:
        for part in (value or "").split(","):
            if part.strip() and not re.fullmatch(
                r"(\*|[a-z][a-z0-9_]{1,39})=[a-z0-9]([a-z0-9.-]*[a-z0-9])?", part.strip()
            ):
                raise ValueError(
                    f"AIRLOOP_PRIORITY_CLASSES contains '{part.strip()}'. Write each entry as compute"
                    " class=PriorityClass, for example gpu_a=airloop-gpu"
                )
        return value

    def priority_class(self, compute: str) -> str | None:
        """Return the PriorityClass of a compute class's pods, or None for the cluster's default."""
        named = dict(part.strip().split("=") for part in (self.priority_classes or "").split(",") if part.strip())
        return named.get(compute, named.get("*"))


def unpinned(image: str) -> str | None:
    """Return what is wrong with an image that is not named by its digest, or None if it is."""
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return None
    return (
        f"'{image}', and a tag can move to another image: write repository@sha256:..., with the digest that `docker"
        " push` printed"
    )
