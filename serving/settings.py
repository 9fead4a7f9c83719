"""The service's settings, read from environment variables with the prefix ``SERVING_``."""

import re
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where the registry, the features and the log are; nothing about any project."""

    model_config = SettingsConfigDict(env_prefix="SERVING_", frozen=True, extra="ignore")

    profile: Literal["embedded", "compose", "kubernetes"] = Field("embedded", description="Outside embedded the service does not start without keys.")
    keys_file: Path | None = Field(None, description="JSON of hashed API keys with their roles (python -m serving.keys); none: loopback callers only.")
    workers: int = Field(1, ge=1, validation_alias=AliasChoices("SERVING_WORKERS", "WEB_CONCURRENCY"), description="Processes that share the port.")
    models: str = Field("", description="Comma-separated registered models; empty: every one that has a champion.")
    mlflow_uri: str = Field("http://127.0.0.1:5000", description="MLflow's tracking server and model registry.")
    feature_repo: Path = Field(Path(__file__).parent, description="Folder of the feature_store.yaml whose online store is read.")
    log_root: str | Path = Field(Path("data/store"), description="A folder or s3://bucket/prefix: the prediction log is <log_root>/<project>/prediction_log/.")
    # Where the bucket is; who may write there is said by the standard credentials, which are no settings.
    s3_endpoint: str | None = Field(None, validation_alias=AliasChoices("SERVING_S3_ENDPOINT", "AWS_ENDPOINT_URL"))
    s3_region: str | None = Field(None, validation_alias=AliasChoices("SERVING_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"))
    cache: Path = Field(Path("data/serving/cache"), description="Where model versions are kept, to start from when the registry is away.")
    poll_seconds: float = Field(1.0, gt=0, description="How often the registry is asked who is champion.")
    feature_registry_seconds: float = Field(10.0, gt=0, description="How often Feast's registry is read again.")
    log_flush_seconds: float = Field(0.5, gt=0, le=1, description="How old a prediction may grow in memory before it is written.")
    log_capacity: int = Field(100_000, ge=1, description="Predictions that may wait to be written; more are dropped and counted.")
    log_bytes: int = Field(256 * 2**20, ge=2**20, description="Bytes of memory for predictions that wait to be written; more are dropped and counted.")
    registry_stale_seconds: float = Field(
        0, ge=0, description="Age of the registry's last answer at which the service reports itself degraded; 0: ten polls, at least 30 s."
    )
    fetch_seconds: float = Field(120.0, gt=0, description="Deadline for downloading one model version.")
    check_seconds: float = Field(30.0, gt=0, description="Deadline for one model version to load and answer its golden requests, in a child process.")
    check_bytes: int = Field(4 * 2**30, ge=2**28, description="Memory of that child process.")
    max_model_bytes: int = Field(2**30, ge=1024, description="Bytes of one model version's files.")
    max_model_files: int = Field(20, ge=3, description="Files of one model version.")
    threads: int = Field(1, ge=1, description="ONNX Runtime's threads per model.")
    max_instances: int = Field(1000, ge=1, description="Instances in one request.")
    max_bytes: int = Field(8 * 2**20, ge=1024, description="Bytes of one request's body.")
    max_requests: int = Field(
        256, ge=1, description="Requests that one worker answers at once; more get 503 and Retry-After. With keys, one caller may use half of them."
    )
    max_rows: int = Field(50_000, ge=1, description="Instances of those requests; with keys, half of them of one caller.")
    max_body_bytes: int = Field(128 * 2**20, ge=1024, description="Bytes of all bodies that one worker holds; with keys, half of them of one caller.")
    max_connections: int = Field(
        1024, ge=1, description="Connections of one worker. Fewer, if the process may not open so many files: some are kept for the service itself."
    )
    max_connections_per_address: int = Field(512, ge=1, description="... of one address. Behind a proxy all connections come from its address.")
    max_header_bytes: int = Field(32 * 1024, ge=1024, description="Bytes of a request's line and headers; more get 431.")
    max_headers: int = Field(100, ge=10, description="Headers of a request; more get 431.")
    head_seconds: float = Field(10.0, gt=0, description="For a request's line and headers.")
    request_seconds: float = Field(10.0, gt=0, description="For a request's body and its answer.")
    hosts: str = Field("", description="Without keys: comma-separated names, besides localhost, that requests may name as Host.")
    access_log: Literal["off", "errors", "all"] = Field("errors", description="Requests that are written to standard output, a line of JSON each.")
    drain_seconds: float = Field(1.0, ge=0, le=600, description="Between SIGTERM and the end: answers close their connections, so that callers leave. 0: none.")

    @field_validator("log_root")
    @classmethod
    def _is_a_folder_or_a_bucket(cls, value: str | Path) -> str | Path:
        text = str(value)
        if re.fullmatch(r"s3://[^/]+(/[^/]+)*/?", text):
            return text
        if "://" in text or ":/" in text:  # Path makes one slash of two
            raise ValueError(f"'{value}' is neither a folder nor s3://bucket/prefix: the prediction log cannot be written there")
        return Path(value)

    @model_validator(mode="after")
    def _closed_outside_embedded(self):
        if self.profile != "embedded" and self.keys_file is None:
            raise ValueError(f"SERVING_KEYS_FILE is not set: in the profile {self.profile} the service is not open. Make keys: python -m serving.keys create")
        return self

    @property
    def host_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.hosts.split(",") if name.strip())

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.models.split(",") if name.strip())
