"""The stores of data and their addresses."""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, computed_field, field_validator

from include.settings.errors import FIX, SettingsError
from include.settings.profile import Profile
from include.settings.repository import REPOSITORY
from include.settings.secrets import plain


class Stores(Profile):
    """Folders, databases and the online store."""

    home: Path = Field(
        REPOSITORY / "data", description="Folder for the state of this machine: databases, logs and process ids."
    )
    data_root: str | None = Field(
        None, description="Root of the projects' data: a path or s3://bucket/prefix. Default: store in AIRLOOP_HOME."
    )

    # The stores. Outside embedded: postgresql://user:password@host:5432/database. Each database has
    # its own user. `airloop create-databases` creates them.
    airflow_database_url: SecretStr | None = Field(
        None, description="URL of Airflow's metadata database. Default: SQLite in AIRLOOP_HOME."
    )
    mlflow_database_url: SecretStr | None = Field(
        None,
        description="URL of MLflow's backend database. Default: SQLite in AIRLOOP_HOME. Only MLflow's server needs it.",
    )
    feast_registry_url: SecretStr | None = Field(
        None, description="URL of the database of Feast's registry. Default: SQLite in AIRLOOP_HOME."
    )
    feast_readonly_url: SecretStr | None = Field(
        None,
        description=(
            "URL of the database of Feast's registry with a read-only user, for serving. Default:"
            " AIRLOOP_FEAST_REGISTRY_URL."
        ),
    )
    ledger_url: SecretStr | None = Field(
        None, description="URL of the ledger's database. Default: SQLite in AIRLOOP_HOME."
    )
    optuna_url: SecretStr | None = Field(
        None,
        description=(
            "URL of the database for Optuna's studies. Default: the ledger's database, or a file in AIRLOOP_HOME if the"
            " ledger uses SQLite."
        ),
    )
    online_store_url: SecretStr | None = Field(
        None,
        description=(
            "URL of Feast's online store: redis://:password@host:6379/0, or rediss:// for TLS. Default: SQLite in"
            " AIRLOOP_HOME."
        ),
    )
    database_admin_url: SecretStr | None = Field(
        None, description="URL of Postgres with a superuser. Only `airloop create-databases` uses it."
    )

    @computed_field
    @property
    def store(self) -> str:
        """Return the root under which each project has a folder."""
        return self.data_root or str(self.home / "store")

    # These contain a password. They are not computed fields, because repr() shows those.
    @property
    def airflow_database(self) -> str:
        return self._store_url("airflow_database_url", "airflow/airflow.db?timeout=30")

    @property
    def mlflow_database(self) -> str:
        return self._store_url("mlflow_database_url", "mlflow/mlflow.db")

    @property
    def feast_registry(self) -> str:
        # Feast needs the psycopg driver.
        return self._store_url("feast_registry_url", "feast/registry.db", driver="psycopg")

    @property
    def feast_registry_to_read(self) -> str:
        """Return the URL with which serving opens Feast's registry."""
        return (
            with_driver(plain(self.feast_readonly_url), "psycopg") if self.feast_readonly_url else self.feast_registry
        )

    @property
    def ledger(self) -> str:
        return self._store_url("ledger_url", "ledger.db")

    @property
    def studies(self) -> str:
        """Return the URL of the database for Optuna's studies.

        With SQLite, the studies have their own file. Otherwise they are in the ledger's database,
        in a separate schema.
        """
        if self.optuna_url:
            return with_driver(plain(self.optuna_url))
        return f"sqlite:///{self.home / 'studies.db'}" if self.ledger.startswith("sqlite") else self.ledger

    def _store_url(self, name: str, file: str, driver: str = "psycopg2") -> str:
        """Return the field's URL with its driver.

        In the embedded profile, the default is a SQLite file in the home.
        """
        if url := plain(getattr(self, name)):
            return with_driver(url, driver)
        if self.profile != "embedded":
            raise SettingsError(f"AIRLOOP_PROFILE is {self.profile}, but AIRLOOP_{name.upper()} is not set. {FIX}")
        return f"sqlite:///{self.home / file}"

    @property
    def feast_environment(self) -> dict[str, str]:
        """Return the environment of ``feature_repo/feature_store.yaml`` and the Feast modules."""
        return {
            "AIRLOOP_FEAST_REGISTRY": self.feast_registry,
            "AIRLOOP_FEAST_ONLINE_STORE": json.dumps(self._online_store()),
            "AIRLOOP_FEAST_SOURCES": self.store,
        }

    def _online_store(self) -> dict[str, str]:
        """Return Feast's own configuration of the online store."""
        if self.online_store_url is None:
            if self.profile != "embedded":
                raise SettingsError(
                    f"AIRLOOP_PROFILE is {self.profile}, but AIRLOOP_ONLINE_STORE_URL is not set. {FIX}"
                )
            return {"type": "sqlite", "path": str(self.home / "feast" / "online.db")}
        url = urlsplit(self.online_store_url.get_secret_value())
        given = {"username": url.username, "password": url.password}
        # Feast parses values that look like JSON. Without quotes, a password of digits would become
        # a number.
        options = [f"{name}={json.dumps(unquote(value))}" for name, value in given.items() if value]
        options += [f"db={url.path.strip('/') or 0}", *(["ssl=true"] if url.scheme == "rediss" else [])]
        return {"type": "redis", "connection_string": ",".join((f"{url.hostname}:{url.port or 6379}", *options))}

    @field_validator("online_store_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = urlsplit(value.get_secret_value())
        if url.scheme not in ("redis", "rediss") or not url.hostname or not re.fullmatch(r"/?\d*", url.path):
            raise ValueError(
                "AIRLOOP_ONLINE_STORE_URL must be written as redis://:password@host:6379/0 (or rediss:// for TLS)"
            )
        if "," in unquote(url.password or "") + unquote(url.username or ""):
            raise ValueError(
                "AIRLOOP_ONLINE_STORE_URL has a comma in its user or password, which Feast would interpret as its end."
                " Choose another password"
            )
        return value


def with_driver(url: str, driver: str = "psycopg2") -> str:
    """Return the URL with an explicit driver.

    The default driver of ``postgresql://`` depends on the version of SQLAlchemy, and some images
    lack some drivers.
    """
    return re.sub("^postgres(ql)?://", f"postgresql+{driver}://", url)
