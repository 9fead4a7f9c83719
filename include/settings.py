"""Airloop's settings: the only place that reads the environment.

Every field is set by an environment variable of the same name with the prefix ``AIRLOOP_`` (``AIRLOOP_HOME``, ...).
The defaults are the *embedded* profile: one machine, SQLite and local files, servers on loopback.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, computed_field
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """What differs between machines; nothing here differs between projects."""

    model_config = SettingsConfigDict(env_prefix="AIRLOOP_", frozen=True, extra="forbid")

    home: Path = Field(REPOSITORY / "data", description="Where this machine keeps state: databases, logs, process ids.")
    data_root: str | None = Field(None, description="Root of the projects' data (path or URI); default: <home>/store.")
    ledger_url: str | None = Field(None, description="SQLAlchemy URL of the ledger; default: SQLite in <home>.")
    compute: Literal["process"] = Field("process", description="Where training steps run: child processes of the task.")
    training_threads: int = Field(min(os.cpu_count() or 1, 8), ge=1, description="OpenMP threads of one training step; its models are the same with any.")

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
