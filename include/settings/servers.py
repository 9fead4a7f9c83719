"""The addresses of Airflow, MLflow and serving."""

from pydantic import Field, computed_field

from include.settings.profile import Profile


class Servers(Profile):
    """Addresses of the servers, on this machine or elsewhere."""

    # The addresses of servers that this stack does not run on this machine.
    airflow_uri: str | None = Field(None, description="Address of Airflow. Default: http://<host>:<airflow_port>.")
    mlflow_uri: str | None = Field(
        None,
        description=(
            "Address of an MLflow server that runs elsewhere. `airloop up` then does not start MLflow. Default:"
            " http://<host>:<mlflow_port>."
        ),
    )
    mlflow_artifacts: str | None = Field(
        None,
        description=(
            "Where MLflow's server stores the models' files: a folder or s3://bucket/prefix. "
            "Default: <data root>/_mlflow on S3, otherwise a folder in AIRLOOP_HOME."
        ),
    )
    serving_uri: str | None = Field(
        None,
        description=(
            "Address of a serving process that runs elsewhere. `airloop up` then does not start serving. Default:"
            " http://<host>:<serving_port>."
        ),
    )

    host: str = Field("127.0.0.1", description="Listen address of the embedded servers.")
    airflow_port: int = Field(8080, description="Port of Airflow's API server.")
    mlflow_port: int = Field(5000, description="Port of MLflow's server.")
    serving_port: int = Field(8000, description="Port of the serving process.")
    serving_timeout: float = Field(
        60,
        gt=0,
        description=(
            "Seconds within which serving must serve a new champion. Otherwise the previous champion is restored."
        ),
    )

    @computed_field
    @property
    def airflow_url(self) -> str:
        return (self.airflow_uri or f"http://{self.host}:{self.airflow_port}").rstrip("/")

    @computed_field
    @property
    def mlflow_url(self) -> str:
        return (self.mlflow_uri or f"http://{self.host}:{self.mlflow_port}").rstrip("/")

    @computed_field
    @property
    def serving_url(self) -> str:
        return (self.serving_uri or f"http://{self.host}:{self.serving_port}").rstrip("/")
