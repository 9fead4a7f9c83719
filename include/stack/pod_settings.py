"""What the settings must say before training steps can be pods: told when the stack starts, and by a step that finds it changed since."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from include.settings import Settings


def pods_cannot(settings: Settings, mlflow: str) -> str | None:
    """Why no pod could do its work with these settings, and what to set; None: nothing is in the way.

    A pod template may put pods on the machine's own network, or mount its folders: then these are what pods find.

    Args:
        mlflow: the URI at which pods are told to find MLflow.
    """
    found = urlsplit(mlflow)
    if found.password:
        return (
            "MLflow's address holds a password, which would stand in the specification of each pod: take it out of MLFLOW_TRACKING_URI, and give pods "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD by the Kubernetes secret that AIRLOOP_STORAGE_SECRET names"
        )
    if settings.pod_template is not None:
        return None
    if _is_loopback(found.hostname or ""):
        return (
            f"AIRLOOP_COMPUTE=kubernetes, and MLflow is at {found.scheme}://{found.netloc}, where a pod finds itself alone: set AIRLOOP_HOST to an "
            "address of this machine that pods reach, or AIRLOOP_MLFLOW_URI to a server of yours"
        )
    if not settings.store.startswith("s3://"):
        return (
            f"AIRLOOP_COMPUTE=kubernetes, and the data lies in {settings.store}, a folder that no pod sees: set AIRLOOP_DATA_ROOT to s3://bucket/prefix "
            "(docs/runbooks/storage.md), or mount it in the pods by AIRLOOP_POD_TEMPLATE"
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
