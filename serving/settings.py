"""Read the service's settings from environment variables with the prefix ``SERVING_``."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The locations of the registry, the features and the log, independent of projects."""

    model_config = SettingsConfigDict(env_prefix="SERVING_", frozen=True, extra="ignore")

    profile: Literal["embedded", "compose", "kubernetes"] = Field(
        "embedded", description="Deployment profile. Outside embedded, the service does not start without keys."
    )
    keys_file: Path | None = Field(
        None,
        description=(
            "JSON file of hashed API keys with their roles (python -m serving.keys). If unset, only loopback callers"
            " are served."
        ),
    )
    workers: int = Field(
        1,
        ge=1,
        validation_alias=AliasChoices("SERVING_WORKERS", "WEB_CONCURRENCY"),
        description="Number of processes that share the port.",
    )
    models: str = Field(
        "", description="Comma-separated registered models. If empty, every model with a champion is served."
    )
    mlflow_uri: str = Field(
        "http://127.0.0.1:5000", description="Address of MLflow's tracking server and model registry."
    )
    feature_repo: Path = Field(
        Path(__file__).parent, description="Folder of the feature_store.yaml that configures the online store."
    )
    log_root: str | Path = Field(
        Path("data/store"),
        description=(
            "Folder or s3://bucket/prefix of the prediction log. The log is written to"
            " <log_root>/<project>/prediction_log/."
        ),
    )
    # The location of the bucket. Its credentials come from the standard variables and are not
    # settings.
    s3_endpoint: str | None = Field(None, validation_alias=AliasChoices("SERVING_S3_ENDPOINT", "AWS_ENDPOINT_URL"))
    s3_region: str | None = Field(
        None, validation_alias=AliasChoices("SERVING_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION")
    )
    cache: Path = Field(
        Path("data/serving/cache"),
        description="Folder of the cached model versions. With them, the service can start without the registry.",
    )
    poll_seconds: float = Field(
        1.0, gt=0, description="Seconds between two requests to the registry for the current champions."
    )
    feature_registry_seconds: float = Field(10.0, gt=0, description="Seconds between two reads of Feast's registry.")
    log_flush_seconds: float = Field(
        0.5, gt=0, le=1, description="Maximum seconds that a prediction stays in memory before it is written."
    )
    log_capacity: int = Field(
        100_000,
        ge=1,
        description="Maximum number of predictions that wait to be written. Further ones are dropped and counted.",
    )
    log_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description=(
            "Maximum bytes of memory for predictions that wait to be written. Further ones are dropped and counted."
        ),
    )
    registry_stale_seconds: float = Field(
        0,
        ge=0,
        description=(
            "The service reports itself degraded this many seconds after the registry's last answer. 0 means ten polls,"
            " but at least 30 s."
        ),
    )
    fetch_seconds: float = Field(120.0, gt=0, description="Deadline in seconds for downloading one model version.")
    check_seconds: float = Field(
        30.0,
        gt=0,
        description=(
            "Deadline in seconds for one model version to load and answer its golden requests in a child process."
        ),
    )
    check_bytes: int = Field(
        4 * 2**30, ge=2**28, description="Maximum bytes of memory of the child process that tests a model version."
    )
    max_model_bytes: int = Field(2**30, ge=1024, description="Maximum bytes of one model version's files.")
    max_model_files: int = Field(20, ge=3, description="Maximum number of files of one model version.")
    threads: int = Field(1, ge=1, description="Number of ONNX Runtime threads per model.")
    max_instances: int = Field(1000, ge=1, description="Maximum number of instances in one request.")
    max_bytes: int = Field(8 * 2**20, ge=1024, description="Maximum bytes of one request's body.")
    max_requests: int = Field(
        256,
        ge=1,
        description=(
            "Maximum number of requests that one worker answers concurrently. Further ones get 503 and Retry-After. "
            "With keys, one caller may use half of them."
        ),
    )
    max_rows: int = Field(
        50_000,
        ge=1,
        description=(
            "Maximum number of instances of all requests that one worker is answering. With keys, one caller may use"
            " half of them."
        ),
    )
    max_body_bytes: int = Field(
        128 * 2**20,
        ge=1024,
        description=(
            "Maximum bytes of all request bodies that one worker holds. With keys, one caller may use half of them."
        ),
    )
    max_connections: int = Field(
        1024,
        ge=1,
        description=(
            "Maximum number of connections of one worker. The number is lower if the process may open too few files,"
            " because some are reserved for the service itself."
        ),
    )
    max_connections_per_address: int = Field(
        512,
        ge=1,
        description=(
            "Maximum number of connections of one worker from one address. Behind a proxy, all connections come from"
            " the proxy's address."
        ),
    )
    max_header_bytes: int = Field(
        32 * 1024, ge=1024, description="Maximum bytes of a request's line and headers. Longer ones get 431."
    )
    max_headers: int = Field(
        100, ge=10, description="Maximum number of headers of a request. Requests with more get 431."
    )
    head_seconds: float = Field(
        10.0, gt=0, description="Seconds within which a request's line and headers must arrive."
    )
    request_seconds: float = Field(
        10.0, gt=0, description="Seconds within which a request's body must arrive and be answered."
    )
    hosts: str = Field(
        "",
        description=(
            "Comma-separated host names, in addition to localhost, that requests may send as Host if the service does"
            " not use keys."
        ),
    )
    access_log: Literal["off", "errors", "all"] = Field(
        "errors", description="Requests that are logged to standard output, as one JSON line each."
    )
    drain_seconds: float = Field(
        1.0,
        ge=0,
        le=600,
        description=(
            "Seconds between SIGTERM and the shutdown. Answers then close their connections, so that clients leave. 0"
            " disables the drain."
        ),
    )

    @field_validator("log_root")
    @classmethod
    def _is_a_folder_or_a_bucket(cls, value: str | Path) -> str | Path:
        text = str(value)
        if re.fullmatch(r"s3://[^/]+(/[^/]+)*/?", text):
            return text
        if "://" in text or ":/" in text:  # Path would turn two slashes into one.
            raise ValueError(
                f"'{value}' must be a folder or s3://bucket/prefix, because the prediction log is written there"
            )
        return Path(value)

    @model_validator(mode="after")
    def _closed_outside_embedded(self) -> Self:
        if self.profile != "embedded" and self.keys_file is None:
            raise ValueError(
                f"SERVING_KEYS_FILE is not set: in the profile {self.profile} the service is not open. Make keys:"
                " python -m serving.keys create"
            )
        return self

    @property
    def host_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.hosts.split(",") if name.strip())

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.models.split(",") if name.strip())
