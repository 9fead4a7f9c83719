"""Access to the object store."""

from pydantic import Field

from include.settings.profile import Profile


class ObjectStore(Profile):
    """Access to data on an object store. See docs/runbooks/storage.md."""

    storage_connection: str | None = Field(
        None,
        description=(
            "Airflow connection (amazon provider) of the object store. If unset, tasks use the variables AWS_* of their"
            " environment."
        ),
    )
    storage_secret: str | None = Field(
        None, description="Kubernetes secret whose keys are the variables AWS_* for training pods."
    )
    mlflow_secret: str | None = Field(
        None,
        description=(
            "Kubernetes secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for training pods. Default:"
            " AIRLOOP_STORAGE_SECRET."
        ),
    )
    storage_service_account: str | None = Field(
        None,
        description=(
            "Kubernetes service account whose projected token gives training pods access to the object store, instead"
            " of a secret."
        ),
    )
    storage_role: str | None = Field(
        None, description="AWS role (ARN) that pods assume with the token of AIRLOOP_STORAGE_SERVICE_ACCOUNT."
    )
    remote_logs: str | None = Field(
        None,
        description=(
            "Where Airflow also stores the tasks' logs: s3://bucket/prefix. It uses AIRLOOP_STORAGE_CONNECTION."
        ),
    )
