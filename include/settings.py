"""Airloop's settings: the only place that reads the environment.

Every field is set by an environment variable of the same name with the prefix ``AIRLOOP_`` (``AIRLOOP_HOME``, ...), or by a file of that name in
``AIRLOOP_SECRETS_DIR``, or by a secret of AWS Secrets Manager (``AIRLOOP_SECRETS_ID``), or by a line of the settings file: ``.env`` in the repository,
or what ``AIRLOOP_ENV_FILE`` names (empty: none). The first of these that has a value wins. The defaults are the *embedded* profile: one machine,
SQLite and local files, servers on loopback.
"""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, computed_field, field_validator, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, InitSettingsSource, SecretsSettingsSource, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parent.parent
CODE = ("include", "feature_repo", "dags", "serving", "plugins", "config", "requirements.txt")  # a change of these makes another result
PLACEHOLDER = "CHANGE_ME"  # what stands in the .env.<profile>.example files where a secret belongs
# Also what people and images use where they mean to choose a password later.
WEAK = {"airflow", "admin", "airloop", "changeme", "default", "minioadmin", "password", "postgres", "redis", "secret"}
# Secrets that each part needs to start, outside embedded. A process that runs one part gets the secrets of that part only.
NEEDED = {
    "tasks": ("ledger_url", "feast_registry_url", "online_store_url", "mlflow_username", "mlflow_password", "serving_api_key"),
    "airflow": ("airflow_database_url", "airflow_fernet_key", "airflow_jwt_secret", "airflow_api_secret_key"),
    "accounts": ("airflow_admin_password",),
    "mlflow": (
        "mlflow_database_url", "mlflow_admin_password", "mlflow_flask_secret_key", "mlflow_username", "mlflow_password", "mlflow_reader_password",
    ),
    "serving": ("feast_registry_url", "online_store_url", "mlflow_reader_password", "serving_api_key"),
}  # fmt: skip
Part = Literal["tasks", "airflow", "accounts", "mlflow", "serving"]


class SettingsError(ValueError):
    """A setting is missing or wrong; the message names it and says what to do, and holds no secret."""


class Settings(BaseSettings):
    """What differs between machines; nothing here differs between projects."""

    # An empty variable is none at all; an error does not show what was given, which may be a secret.
    model_config = SettingsConfigDict(
        env_prefix="AIRLOOP_", frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True, dotenv_filtering="match_prefix"
    )

    profile: Literal["embedded", "compose", "kubernetes"] = Field(
        "embedded", description="embedded: one machine, no secrets to choose. compose, kubernetes: real stores, and no start without real secrets."
    )
    secrets_dir: Path | None = Field(None, description="Folder of files, one a secret, named like its variable: Docker's /run/secrets, a Kubernetes volume.")
    # docs/runbooks/access.md
    secrets_backend: Literal["files", "aws"] = Field("files", description="Of Airflow's connections and variables: files in secrets_dir, or Secrets Manager.")
    secrets_prefix: str = Field("airloop", description="They are <prefix>/connections/<id> and <prefix>/variables/<name> in AWS Secrets Manager.")
    secrets_id: str | None = Field(None, description="Secret of AWS Secrets Manager that holds the settings' own secrets, as a JSON object of variables.")
    secrets_profile: str | None = Field(None, description="Profile of the AWS credentials file for Secrets Manager; none: as this process may otherwise.")

    home: Path = Field(REPOSITORY / "data", description="Where this machine keeps state: databases, logs, process ids.")
    data_root: str | None = Field(None, description="Root of the projects' data: a path, or s3://bucket/prefix; default: <home>/store.")

    # The stores. Outside embedded: postgresql://user:password@host:5432/database, each with a user of its own, made by `airloop databases`.
    airflow_database_url: SecretStr | None = Field(None, description="URL of Airflow's metadata; default: SQLite in <home>.")
    mlflow_database_url: SecretStr | None = Field(None, description="URL of MLflow's backend; default: SQLite in <home>. Only MLflow's server needs it.")
    feast_registry_url: SecretStr | None = Field(None, description="URL of Feast's registry; default: SQLite in <home>.")
    feast_reader_url: SecretStr | None = Field(None, description="The same database as a user who only reads, for serving; default: feast_registry_url.")
    ledger_url: SecretStr | None = Field(None, description="URL of the ledger; default: SQLite in <home>.")
    studies_url: SecretStr | None = Field(None, description="URL of the searches' studies; default: a file in <home>, or with a ledger elsewhere: there.")
    online_store_url: SecretStr | None = Field(None, description="Feast's online store: redis://:password@host:6379/0, or rediss://; default: SQLite.")
    database_admin_url: SecretStr | None = Field(None, description="URL of a Postgres superuser, for `airloop databases` alone; no service needs it.")

    # Where the servers are for who calls them, when they are not this stack's own on this machine, and as whom they are called.
    airflow_uri: str | None = Field(None, description="Airflow's address, when it is not http://<host>:<airflow_port>.")
    mlflow_uri: str | None = Field(None, description="MLflow's address, when it is not http://<host>:<mlflow_port>. Then `airloop up` starts none.")
    mlflow_artifacts: str | None = Field(
        None, description="Where MLflow's server keeps the models' files: a folder or s3://bucket/prefix; default: <data root>/_mlflow on S3, else in <home>."
    )
    serving_uri: str | None = Field(None, description="Serving's address, when it is not http://<host>:<serving_port>. Then `airloop up` starts none.")
    auth_manager: Literal["simple", "fab"] | None = Field(None, description="Airflow's users: simple (one developer) or fab (roles); default: by the profile.")
    airflow_admin_password: SecretStr | None = Field(None, description="Password of Airflow's user admin; embedded: made at the first start.")
    airflow_fernet_key: SecretStr | None = Field(
        None, description="Encrypts what Airflow stores: 32 random bytes in URL-safe base64; embedded: made. To change it: NEW,OLD."
    )
    airflow_jwt_secret: SecretStr | None = Field(None, description="Signs Airflow's tokens; the same for all its processes; embedded: made.")
    airflow_api_secret_key: SecretStr | None = Field(None, description="Signs the API server's cookies; the same for all its copies; embedded: made.")
    mlflow_username: str | None = Field(None, description="As whom tasks and serving log in to MLflow; none: it asks nobody.")
    mlflow_password: SecretStr | None = Field(None, description="... and with which password.")
    mlflow_reader_password: SecretStr | None = Field(None, description="Password of MLflow's user reader, as whom serving logs in; none: as mlflow_username.")
    mlflow_admin_password: SecretStr | None = Field(None, description="Password of MLflow's user admin; with it MLflow asks everybody who he is.")
    mlflow_flask_secret_key: SecretStr | None = Field(None, description="Signs MLflow's own cookies and forms; for MLflow's server alone.")
    serving_api_key: SecretStr | None = Field(None, description="With which the house's own tasks call serving; none: it asks nobody.")
    edge_signing_key: SecretStr | None = Field(
        None, description="Signs what `airloop export` makes (Ed25519): 32 random bytes in URL-safe base64; embedded: made."
    )

    compute: Literal["process", "kubernetes"] = Field("process", description="Where training steps run: child processes of the task, or pods.")
    training_threads: int = Field(
        min(os.cpu_count() or 1, 8),
        ge=1,
        description="OpenMP threads of a step that is a process; a pod has as many as cores.",
    )
    checkpoint_steps: int = Field(500, ge=1, description="A fit of many steps keeps a checkpoint each so many, and at the end of each epoch.")
    worker_restarts: int = Field(3, ge=0, description="How often the workers of one fit are started again, from the checkpoint, when one is lost.")
    rendezvous: str | None = Field(None, description="host:port at which the workers of a fit meet, one a pod; set by the Job. None: on one machine.")
    rendezvous_timeout: int = Field(900, gt=0, description="Seconds that a worker waits for the others: nodes come up and images are pulled.")
    worker_index: int = Field(0, ge=0, description="This pod's place among the workers; set by the Job.")
    worker_address: str | None = Field(None, description="This pod's address; set by the Job.")

    # Data on an object store; see docs/runbooks/storage.md.
    storage_connection: str | None = Field(None, description="Airflow connection (amazon provider) of the object store; none: the variables AWS_* as they are.")
    storage_secret: str | None = Field(None, description="Kubernetes secret whose keys are the variables AWS_*, for pods.")
    mlflow_secret: str | None = Field(None, description="Kubernetes secret with MLFLOW_TRACKING_USERNAME and _PASSWORD for pods; none: storage_secret.")
    storage_service_account: str | None = Field(None, description="Service account whose projected token gives pods access, instead of a secret.")
    storage_role: str | None = Field(None, description="Role (ARN) that the service account's token is exchanged for.")
    remote_logs: str | None = Field(None, description="Where Airflow keeps the tasks' logs too: s3://bucket/prefix, through storage_connection.")

    kubernetes_connection: str = Field("kubernetes_default", description="Airflow connection of the cluster: in-cluster or a kubeconfig, by its extras.")
    kubernetes_namespace: str = Field("airloop-training", description="Where training pods are made.")
    training_image: str | None = Field(
        None, description="Image of the training pods, for compute=kubernetes: repository@sha256:... (profile kubernetes), or a fixed tag."
    )
    pod_template: Path | None = Field(None, description="YAML of a pod that training pods are built upon: a site's own volumes, sidecars, DNS.")
    pools: str | None = Field(None, description="Slots of the Airflow pools, one a compute class: cpu=4,gpu_a=2. Default: parallelism for cpu.")
    priority_classes: str | None = Field(
        None, description="PriorityClasses of the training pods by compute class, * for the others: gpu_a=airloop-gpu,*=airloop-preemptible."
    )
    git_sha: str | None = Field(None, description="The commit that this code is at, where there is no repository to ask (an image).")

    host: str = Field("127.0.0.1", description="Address that the embedded servers listen on.")
    airflow_port: int = Field(8080, description="Where Airflow's own server listens.")
    mlflow_port: int = Field(5000, description="Where MLflow listens.")
    serving_port: int = Field(8000, description="Where serving listens.")
    serving_timeout: float = Field(60, gt=0, description="Seconds within which serving must serve a new champion, else the old one is put back.")
    preload: bool = Field(True, description="Import heavy third-party libraries once, in the scheduler, not in each task.")
    restart: bool = Field(True, description="Restart a process of the embedded stack that died, with back-off.")
    parallelism: int = Field(4, ge=2, description="Tasks that run at once on this machine.")
    projects: str | None = Field(None, description="Comma-separated project names; default: every folder of include/projects.")
    dags_folder: Path = Field(REPOSITORY / "dags", description="Folder of the DAG files.")
    # docs/lifecycle.md
    notify: str | None = Field(
        None, description="Who is told when the loop gives something up: module:function, called with a dict, or an address that takes it as JSON by POST."
    )
    sample_days: float | None = Field(None, gt=0, description="Set by `airloop try`: the days that its sample spans; see Project.on_sample.")

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings):
        """The environment, then files of secrets, then AWS Secrets Manager, then the settings file."""
        file = DotEnvSettingsSource(settings_cls, env_file=settings_file())
        said = file() | env_settings()
        folder = said.get("secrets_dir")
        if folder and not Path(folder).is_dir():
            raise SettingsError(f"AIRLOOP_SECRETS_DIR is '{folder}', which is no folder")
        kept_away = InitSettingsSource(settings_cls, _from_secrets_manager(said.get("secrets_id"), said.get("secrets_profile")))
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, secrets_dir=folder), kept_away, file

    @field_validator("data_root", "remote_logs", "mlflow_artifacts")
    @classmethod
    def _root(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or "://" not in value:
            return value
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/?#]+)*/?", value):
            raise ValueError(f"AIRLOOP_{(info.field_name or '').upper()} is '{value}'; an object store is written s3://bucket or s3://bucket/prefix")
        return value.rstrip("/")

    @field_validator("notify")
    @classmethod
    def _hook(cls, value: str | None) -> str | None:
        if value is None or re.fullmatch(r"https?://[^\s]+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", value):
            return value
        raise ValueError("AIRLOOP_NOTIFY is neither an address (https://...) nor a function (package.module:function)")

    @field_validator("priority_classes")
    @classmethod
    def _classes(cls, value: str | None) -> str | None:
        for part in (value or "").split(","):
            if part.strip() and not re.fullmatch(r"(\*|[a-z][a-z0-9_]{1,39})=[a-z0-9]([a-z0-9.-]*[a-z0-9])?", part.strip()):
                raise ValueError(f"AIRLOOP_PRIORITY_CLASSES has '{part.strip()}'; write each as compute class=PriorityClass, like gpu_a=airloop-gpu")
        return value

    @model_validator(mode="after")
    def _one_way_in(self):
        if self.storage_secret and self.storage_service_account:
            raise ValueError("AIRLOOP_STORAGE_SECRET and AIRLOOP_STORAGE_SERVICE_ACCOUNT are both set: pods get at the object store in one way, take one away")
        needed = ["mlflow_username", "mlflow_password", *(["mlflow_flask_secret_key"] if self.mlflow_admin_password else [])]
        lacks = [f"AIRLOOP_{name.upper()}" for name in needed if not getattr(self, name)]
        asks = self.mlflow_username or self.mlflow_password or self.mlflow_admin_password
        if self.profile == "embedded" and asks and lacks:  # elsewhere: see require
            raise ValueError(f"MLflow is to ask who one is (AIRLOOP_MLFLOW_ADMIN_PASSWORD, _USERNAME or _PASSWORD is set), and {', '.join(lacks)} is missing")
        if self.mlflow_username and self.mlflow_username.lower() in ("admin", "reader"):
            raise ValueError(f"AIRLOOP_MLFLOW_USERNAME is '{self.mlflow_username}', an account of its own in MLflow; take another name, airloop say")
        if self.compute == "kubernetes" and self.mlflow_password and not (self.mlflow_secret or self.storage_secret):
            raise ValueError("AIRLOOP_COMPUTE is kubernetes and MLflow asks who one is: AIRLOOP_MLFLOW_SECRET must name a Kubernetes secret for pods")
        if self.profile == "kubernetes" and self.training_image and (fault := unpinned(self.training_image)):
            raise ValueError(f"AIRLOOP_TRAINING_IMAGE is {fault}")
        if self.remote_logs and not self.storage_connection:
            raise ValueError("AIRLOOP_REMOTE_LOGS needs AIRLOOP_STORAGE_CONNECTION: Airflow gets at its logs through a connection only")
        return self

    @model_validator(mode="after")
    def _real_secrets(self):
        """Outside embedded whatever secret is given is a real one, and every store a real one too. Which must be given: ``require``."""
        if self.profile == "embedded":
            return self
        wrong = [f"AIRLOOP_{name.upper()} {fault}" for name in secret_fields() if (value := getattr(self, name)) and (fault := _fault(name, value))]
        if self.auth_manager == "simple":
            wrong.append("AIRLOOP_AUTH_MANAGER is 'simple', which is for one developer's machine; take it away")
        if wrong:
            raise ValueError("\n".join((*wrong, _FIX)))
        return self

    def require(self, *parts: Part) -> None:
        """Make sure that these parts have all their secrets; without a word of which part: all of them.

        Raises:
            SettingsError: names every missing one.
        """
        needed = dict.fromkeys(name for part in parts or NEEDED for name in NEEDED[part])
        missing = [f"AIRLOOP_{name.upper()}" for name in needed if not getattr(self, name)]
        if missing and self.profile != "embedded":
            raise SettingsError(f"AIRLOOP_PROFILE is {self.profile}, and it has no {', '.join(missing)}. {_FIX}")

    def priority_class(self, compute: str) -> str | None:
        """The PriorityClass of a compute class's pods; None: the cluster's default."""
        named = dict(part.strip().split("=") for part in (self.priority_classes or "").split(",") if part.strip())
        return named.get(compute, named.get("*"))

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

    @computed_field
    @property
    def store(self) -> str:
        """Root under which each project has a folder."""
        return self.data_root or str(self.home / "store")

    @property
    def users(self) -> Literal["simple", "fab"]:
        """Airflow's auth manager."""
        return self.auth_manager or ("simple" if self.profile == "embedded" else "fab")

    # With a password in them, so no computed fields: those are shown by repr().
    @property
    def airflow_database(self) -> str:
        return self._store_url("airflow_database_url", "airflow/airflow.db?timeout=30")

    @property
    def mlflow_database(self) -> str:
        return self._store_url("mlflow_database_url", "mlflow/mlflow.db")

    @property
    def feast_registry(self) -> str:
        return self._store_url("feast_registry_url", "feast/registry.db", driver="psycopg")  # as Feast wants it

    @property
    def feast_registry_to_read(self) -> str:
        """As serving opens it."""
        return _with_driver(_plain(self.feast_reader_url), "psycopg") if self.feast_reader_url else self.feast_registry

    @property
    def ledger(self) -> str:
        return self._store_url("ledger_url", "ledger.db")

    @property
    def studies(self) -> str:
        """On SQLite a file of their own; elsewhere the ledger's database, where Optuna's tables have a schema of their own."""
        if self.studies_url:
            return _with_driver(_plain(self.studies_url))
        return f"sqlite:///{self.home / 'studies.db'}" if self.ledger.startswith("sqlite") else self.ledger

    def _store_url(self, name: str, file: str, driver: str = "psycopg2") -> str:
        """What the field says, with its driver; else a SQLite file in the home, which is for ``embedded`` alone."""
        if url := _plain(getattr(self, name)):
            return _with_driver(url, driver)
        if self.profile != "embedded":
            raise SettingsError(f"AIRLOOP_PROFILE is {self.profile}, and it has no AIRLOOP_{name.upper()}. {_FIX}")
        return f"sqlite:///{self.home / file}"

    def environment(self) -> dict[str, str]:
        """The environment variables from which another process reads these same settings; secrets that are files stay files."""
        values = {name: _plain(getattr(self, name)) for name in type(self).model_fields if not self._is_in_a_file(name)}
        # It has all of them, so it reads no settings file of its own, and asks nobody for secrets.
        values.pop("secrets_id")
        return {f"AIRLOOP_{name.upper()}": str(value) for name, value in values.items() if value is not None} | {"AIRLOOP_ENV_FILE": ""}

    def _is_in_a_file(self, name: str) -> bool:
        if self.secrets_dir is None or name not in secret_fields():
            return False
        files = {file.name.lower(): file for file in self.secrets_dir.iterdir()}
        file = files.get(f"airloop_{name}")
        return file is not None and file.read_text().strip() == _plain(getattr(self, name))

    @property
    def feast_environment(self) -> dict[str, str]:
        """What ``feature_repo/feature_store.yaml`` and the Feast modules expect in the environment."""
        return {
            "AIRLOOP_FEAST_REGISTRY": self.feast_registry,
            "AIRLOOP_FEAST_ONLINE_STORE": json.dumps(self._online_store()),
            "AIRLOOP_FEAST_SOURCES": self.store,
        }

    def _online_store(self) -> dict[str, str]:
        """Feast's own configuration of the online store."""
        if self.online_store_url is None:
            if self.profile != "embedded":
                raise SettingsError(f"AIRLOOP_PROFILE is {self.profile}, and it has no AIRLOOP_ONLINE_STORE_URL. {_FIX}")
            return {"type": "sqlite", "path": str(self.home / "feast" / "online.db")}
        url = urlsplit(self.online_store_url.get_secret_value())
        given = {"username": url.username, "password": url.password}
        # Feast takes what looks like JSON for JSON: a password of digits would become a number.
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
            raise ValueError("AIRLOOP_ONLINE_STORE_URL is not written redis://:password@host:6379/0 (or rediss:// for TLS)")
        if "," in unquote(url.password or "") + unquote(url.username or ""):
            raise ValueError("AIRLOOP_ONLINE_STORE_URL has a comma in its user or password, which Feast takes for the end of it; choose another password")
        return value


def unpinned(image: str) -> str | None:
    """Return what is wrong with an image that is not named by its digest; None: nothing."""
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return None
    return f"'{image}', and a tag can move to another image: write repository@sha256:..., with the digest that `docker push` printed"


_FIX = "`airloop secrets` makes what is missing in the settings file (docs/runbooks/profiles.md)."


@lru_cache
def secret_fields() -> tuple[str, ...]:
    """The names of the fields that hold secrets."""
    return tuple(name for name, field in Settings.model_fields.items() if SecretStr in getattr(field.annotation, "__args__", (field.annotation,)))


# Nothing phones home: Evidently and whoever else honours the first, Great Expectations, Feast, MLflow (whose telemetry also changes the environment while
# others read it).
QUIET = {
    "DO_NOT_TRACK": "1", "GX_ANALYTICS_ENABLED": "false", "FEAST_USAGE": "False", "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime, from 1.29 on; unlike the others' it begins with the import
}  # fmt: skip
# Variables of Airflow's own secrets: its database, the key of its connections, the keys of its tokens and of its sessions. Tasks need none of them.
CONTROL = (
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__API__SECRET_KEY",
)  # fmt: skip
# Variables with other secrets that our processes use. Airflow masks its own only after tasks are forked.
CREDENTIALS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", *CONTROL)


def known_secrets(environment: Mapping[str, str]) -> list[str]:
    """All that must not show in what this process writes: the settings' secrets, the passwords in their URLs, and what ``environment`` has for others."""
    settings = get_settings()
    found = [value.get_secret_value() for name in secret_fields() if (value := getattr(settings, name))]
    found += [environment[name] for name in CREDENTIALS if environment.get(name)]
    # In whatever variable a URL with a password stands: Airflow's own databases and brokers, connections, whatever a site has added.
    for password in [password for value in (*found, *environment.values()) if (password := _password_in(value))]:
        found += [password, unquote(password)]  # in a URL it is written with escapes, and a library may tell it without
    return list(dict.fromkeys(found))


def _password_in(value: str) -> str | None:
    """Of a URL, or of an Airflow connection as JSON."""
    try:
        return json.loads(value).get("password") if value.startswith("{") else urlsplit(value).password if "://" in value else None
    except (ValueError, AttributeError):  # no JSON, no such URL, or no text for a password
        return None


def settings_file() -> Path | None:
    """The settings file, if there is one.

    Raises:
        SettingsError: AIRLOOP_ENV_FILE names one that is not there.
    """
    named = os.environ.get("AIRLOOP_ENV_FILE")
    if named == "":
        return None
    file = usual_settings_file()
    if named and not file.is_file():
        raise SettingsError(f"AIRLOOP_ENV_FILE is '{named}', which is not there")
    return file if file.is_file() else None


def usual_settings_file() -> Path:
    """Where it is, or would be."""
    return Path(os.environ.get("AIRLOOP_ENV_FILE") or REPOSITORY / ".env")


def hand_on_standard_variables() -> None:
    """Put the settings file's lines ``AWS_...`` into this process's environment, where boto3 and others look for them; what is there already stays.

    Also serving's file of keys: whoever names one there means the service to be closed. And that nothing phones home.

    For the `airloop` command: whatever it starts inherits them, as far as they are its business.
    """
    file = settings_file()
    for name, value in (dotenv_values(file) if file else {}).items():
        if (name.startswith("AWS_") or name == "SERVING_KEYS_FILE") and value:
            os.environ.setdefault(name, value)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def _with_driver(url: str, driver: str = "psycopg2") -> str:
    """The bare word is another driver with each version of SQLAlchemy, and not every image has every driver."""
    return re.sub("^postgres(ql)?://", f"postgresql+{driver}://", url)


def _from_secrets_manager(secret_id: str | None, profile: str | None) -> dict[str, str]:
    """The settings that a secret of AWS Secrets Manager holds.

    Raises:
        SettingsError: it cannot be read, or holds something that is no setting.
    """
    if not secret_id:
        return {}
    from include.secrets_manager import SecretsManagerError, read

    try:
        found = {name.lower().removeprefix("airloop_"): value for name, value in read(secret_id, profile).items() if value}
    except SecretsManagerError as error:
        raise SettingsError(f"AIRLOOP_SECRETS_ID is '{secret_id}': {error}") from None
    if unknown := sorted(found.keys() - Settings.model_fields.keys()):
        raise SettingsError(f"AIRLOOP_SECRETS_ID is '{secret_id}', and there is no setting AIRLOOP_{unknown[0].upper()}, which it holds; correct its name")
    return found


def _plain(value):
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _fault(name: str, value: SecretStr) -> str | None:
    """What is wrong with a secret, in words that do not tell it."""
    text = value.get_secret_value()
    if PLACEHOLDER in text:
        return f"is the placeholder {PLACEHOLDER}"
    if not name.endswith("_url"):
        if text.lower() in WEAK:
            return "is a word that everybody tries first"
        keys = text.split(",") if name == "airflow_fernet_key" else [text]  # while a key is changed, the new one and the old one
        if name in ("airflow_fernet_key", "edge_signing_key") and not all(re.fullmatch(r"[A-Za-z0-9_-]{43}=", key) for key in keys):
            return "is not 32 bytes in URL-safe base64"
        return "is shorter than 12 characters" if len(text) < 12 else None
    scheme = "redis" if name == "online_store_url" else "postgresql"
    url = urlsplit(text)
    if not re.match(f"{scheme}s?([+]|$)", url.scheme.replace("postgres:", "postgresql:")):
        return f"begins with '{url.scheme}://'; outside the profile embedded it is {scheme}://..."
    if not url.password:
        return "has no password"
    return "has a password that everybody tries first" if unquote(url.password).lower() in WEAK | {url.username or ""} else None


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    try:
        settings = Settings()
    except ValidationError as error:
        raise SettingsError(_in_words(error)) from None  # pydantic's own words have the fields' names, not the variables'
    return settings.model_copy(update={"home": settings.home.resolve()})


def _in_words(error: ValidationError) -> str:
    lines = []
    for one in error.errors(include_url=False, include_input=False):
        name = "".join(f"AIRLOOP_{str(part).upper()}: " for part in one["loc"][:1])
        said = one["msg"].removeprefix("Value error, ")
        lines.append(f"{name}no such setting" if one["type"] == "extra_forbidden" else said if said.startswith("AIRLOOP_") else name + said)
    return "\n".join(lines)


@lru_cache
def git_sha() -> str:
    """Return the commit that this code is at: as the settings say, else as the repository says, else "unknown"; "<commit>-dirty": changed since."""
    if known := get_settings().git_sha:
        return known
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=normal", "--", *CODE)
    except FileNotFoundError:  # no git
        return "unknown"
    return "unknown" if commit is None else f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str | None:
    """Return what git prints; None: it refuses, as where there is no repository."""
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
