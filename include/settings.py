"""Airloop's settings: the only place that reads the environment.

Every field is set by an environment variable of the same name with the prefix ``AIRLOOP_`` (``AIRLOOP_HOME``, ...).
The defaults are the *embedded* profile: one machine, SQLite and local files, servers on loopback.
"""

import os
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, computed_field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """What differs between machines; nothing here differs between projects."""

    model_config = SettingsConfigDict(env_prefix="AIRLOOP_", frozen=True, extra="forbid")

    home: Path = Field(REPOSITORY / "data", description="Where this machine keeps state: databases, logs, process ids.")
    data_root: str | None = Field(None, description="Root of the projects' data: a path, or s3://bucket/prefix; default: <home>/store.")
    ledger_url: str | None = Field(None, description="SQLAlchemy URL of the ledger; default: SQLite in <home>.")
    studies_url: str | None = Field(None, description="SQLAlchemy URL of the searches' studies; default: beside the ledger, see ``studies``.")
    compute: Literal["process", "kubernetes"] = Field("process", description="Where training steps run: child processes of the task, or pods.")
    training_threads: int = Field(min(os.cpu_count() or 1, 8), ge=1, description="OpenMP threads of one training step; its models are the same with any.")
    checkpoint_steps: int = Field(500, ge=1, description="A fit of many steps keeps a checkpoint each so many, and at the end of each epoch.")
    worker_restarts: int = Field(3, ge=0, description="How often the workers of one fit are started again, from the checkpoint, when one is lost.")
    rendezvous: str | None = Field(None, description="host:port at which the workers of a fit meet, one a pod; set by the Job. None: on one machine.")
    rendezvous_timeout: int = Field(900, gt=0, description="Seconds that a worker waits for the others: nodes come up and images are pulled.")
    worker_index: int = Field(0, ge=0, description="This pod's place among the workers; set by the Job.")
    worker_address: str | None = Field(None, description="This pod's address; set by the Job.")

    # Data on an object store; see docs/runbooks/storage.md.
    storage_connection: str | None = Field(None, description="Airflow connection (amazon provider) of the object store; none: the variables AWS_* as they are.")
    storage_secret: str | None = Field(None, description="Kubernetes secret whose keys are the variables AWS_*, for pods.")
    storage_service_account: str | None = Field(None, description="Service account whose projected token gives pods access, instead of a secret.")
    storage_role: str | None = Field(None, description="Role (ARN) that the service account's token is exchanged for.")
    remote_logs: str | None = Field(None, description="Where Airflow keeps the tasks' logs too: s3://bucket/prefix, through storage_connection.")

    kubernetes_connection: str = Field("kubernetes_default", description="Airflow connection of the cluster: in-cluster or a kubeconfig, by its extras.")
    kubernetes_namespace: str = Field("airloop-training", description="Where training pods are made.")
    training_image: str | None = Field(None, description="Image of the training pods; needed with compute=kubernetes. A tag that never moves.")
    pod_template: Path | None = Field(None, description="YAML of a pod that training pods are built upon: a site's own volumes, sidecars, DNS.")
    pools: str | None = Field(None, description="Slots of the Airflow pools, one a compute class: cpu=4,gpu_a=2. Default: parallelism for cpu.")
    git_sha: str | None = Field(None, description="The commit that this code is at, where there is no repository to ask (an image).")

    host: str = Field("127.0.0.1", description="Address that the embedded servers listen on.")
    airflow_port: int = 8080
    mlflow_port: int = 5000
    serving_port: int = 8000
    serving_timeout: float = Field(60, gt=0, description="Seconds within which serving must serve a new champion, else the old one is put back.")
    preload: bool = Field(True, description="Import heavy third-party libraries once, in the scheduler, not in each task.")
    parallelism: int = Field(4, ge=2, description="Tasks that run at once on this machine.")
    projects: str | None = Field(None, description="Comma-separated project names; default: every folder of include/projects.")
    dags_folder: Path = Field(REPOSITORY / "dags", description="Folder of the DAG files.")
    sample_days: float | None = Field(None, gt=0, description="Set by `airloop try`: the days that its sample spans; see Project.on_sample.")

    @field_validator("data_root", "remote_logs")
    @classmethod
    def _root(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or "://" not in value:
            return value
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/?#]+)*/?", value):
            raise ValueError(f"AIRLOOP_{(info.field_name or '').upper()} is '{value}'; an object store is written s3://bucket or s3://bucket/prefix")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _one_way_in(self):
        if self.storage_secret and self.storage_service_account:
            raise ValueError("AIRLOOP_STORAGE_SECRET and AIRLOOP_STORAGE_SERVICE_ACCOUNT are both set: pods get at the object store in one way, take one away")
        if self.remote_logs and not self.storage_connection:
            raise ValueError("AIRLOOP_REMOTE_LOGS needs AIRLOOP_STORAGE_CONNECTION: Airflow gets at its logs through a connection only")
        return self

    @computed_field
    @property
    def airflow_url(self) -> str:
        return f"http://{self.host}:{self.airflow_port}"

    @computed_field
    @property
    def mlflow_url(self) -> str:
        return f"http://{self.host}:{self.mlflow_port}"

    @computed_field
    @property
    def serving_url(self) -> str:
        return f"http://{self.host}:{self.serving_port}"

    @computed_field
    @property
    def store(self) -> str:
        """Root under which each project has a folder."""
        return self.data_root or str(self.home / "store")

    @computed_field
    @property
    def ledger(self) -> str:
        return self.ledger_url or f"sqlite:///{self.home / 'ledger.db'}"

    @computed_field
    @property
    def studies(self) -> str:
        """On SQLite a file of their own; elsewhere the ledger's database, where Optuna's tables have a schema of their own."""
        return self.studies_url or (f"sqlite:///{self.home / 'studies.db'}" if self.ledger.startswith("sqlite") else self.ledger)

    def environment(self) -> dict[str, str]:
        """The environment variables from which another process reads these same settings."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {f"AIRLOOP_{name.upper()}": str(value) for name, value in values.items() if value is not None}

    @property
    def feast_environment(self) -> dict[str, str]:
        """What ``feature_repo/feature_store.yaml`` and the Feast modules expect in the environment."""
        return {
            "AIRLOOP_FEAST_REGISTRY": f"sqlite:///{self.home / 'feast' / 'registry.db'}",
            "AIRLOOP_FEAST_ONLINE": str(self.home / "feast" / "online.db"),
            "AIRLOOP_FEAST_SOURCES": self.store,
        }


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    settings = Settings()
    return settings.model_copy(update={"home": settings.home.resolve()})


@lru_cache
def git_sha() -> str:
    """The commit that this code is at: as the settings say, else as the repository says, else "unknown"."""
    if known := get_settings().git_sha:
        return known
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"
