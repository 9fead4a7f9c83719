"""Check the settings that training steps in pods need.

They are checked when the stack starts, and by each step in case they have changed since.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from include.settings import Settings


def validate_pod_settings(settings: Settings, mlflow: str) -> str | None:
    """Return why pods cannot work with these settings and what to set, or None if they can.

    A pod template may put pods on the machine's own network or mount its folders. Then pods can
    reach them.

    Args:
        mlflow: The URI of MLflow that pods get.
    """
    url = urlsplit(mlflow)
    if url.password:
        return (
            "MLflow's address holds a password, which would stand in the specification of each pod: take it out of"
            " MLFLOW_TRACKING_URI, and give pods MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD by the"
            " Kubernetes secret that AIRLOOP_STORAGE_SECRET names"
        )
    if settings.pod_template is not None:
        return None
    if _is_loopback(url.hostname or ""):
        return (
            f"AIRLOOP_COMPUTE=kubernetes, and MLflow is at {url.scheme}://{url.netloc}, where a pod finds itself alone:"
            " set AIRLOOP_HOST to an address of this machine that pods reach, or AIRLOOP_MLFLOW_URI to a server of"
            " yours"
        )
    if not settings.store.startswith("s3://"):
        return (
            f"AIRLOOP_COMPUTE=kubernetes, and the data lies in {settings.store}, a folder that no pod sees: set"
            " AIRLOOP_DATA_ROOT to s3://bucket/prefix (docs/runbooks/storage.md), or mount it in the pods by"
            " AIRLOOP_POD_TEMPLATE"
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
