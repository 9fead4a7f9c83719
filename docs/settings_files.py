"""Write the files .env.<profile>.example from the settings: `make docs`. A test compares them.

A variable's comment is the description of its field in ``include.settings``. Variables that only
another program reads (Compose, boto3) are described here. A variable with a value of the profile is
set. The others are comments with their defaults.
"""

import textwrap
from typing import NamedTuple

from include.settings import REPOSITORY, Settings

PROFILES = ("embedded", "compose", "kubernetes")
# Set by `airloop try` and by the Job of a training step, never by a person.
INTERNAL = ("rendezvous", "worker_index", "worker_address", "sample_days")


class Variable(NamedTuple):
    """A variable of the file.

    Attributes:
        value: Its value, or None if it is written as a comment with its default.
    """

    name: str
    about: str
    value: str | None = None
    default: str = ""


CHANGE_ME = (
    "copies this file to .env, readable only by its owner, and replaces each CHANGE_ME with a generated secret. "
    "CHANGE_ME_X becomes the value of the variable X. Existing values are not changed. Nothing starts while a "
    "CHANGE_ME is left. See docs/runbooks/profiles.md."
)
# Paragraphs at the top of each file.
HEADS = {
    "embedded": (
        "Settings of one machine: SQLite, local files, servers on loopback. Every setting is optional.",
        (
            "To change a setting, run cp .env.embedded.example .env, then remove its # and edit it. An environment"
            " variable has priority over this file."
        ),
    ),
    "compose": (
        "Settings of the stack in docker-compose.yaml.",
        f"`make secrets` {CHANGE_ME}",
        (
            "A container gets only the variables that docker-compose.yaml names. `airloop` commands on this host read"
            " all of them."
        ),
    ),
    "kubernetes": (
        (
            "Settings of the stack on Kubernetes. `airloop kubernetes-secrets` prints the secrets of each part "
            "(deploy/helm/README.md)."
        ),
        f"`airloop init-env --profile kubernetes` {CHANGE_ME}",
        "The addresses are examples. Replace them.",
    ),
}
SECTIONS = {
    "Profile": ("profile", "home", "projects", "dags_folder", "git_sha", "notify"),
    "Where secrets come from": ("secrets_dir", "secrets_backend", "secrets_prefix", "secrets_id", "secrets_profile"),
    "Stores": (
        "database_admin_url",
        "airflow_database_url",
        "mlflow_database_url",
        "feast_registry_url",
        "feast_readonly_url",
        "ledger_url",
        "optuna_url",
        "online_store_url",
    ),
    "Users and keys": (
        "auth_manager",
        "airflow_admin_password",
        "airflow_fernet_key",
        "airflow_jwt_secret",
        "airflow_api_secret_key",
        "mlflow_username",
        "mlflow_password",
        "mlflow_secret",
        "mlflow_reader_password",
        "mlflow_admin_password",
        "mlflow_flask_secret_key",
        "serving_api_key",
        "edge_signing_key",
    ),
    "Servers": (
        "host",
        "airflow_port",
        "mlflow_port",
        "serving_port",
        "airflow_uri",
        "mlflow_uri",
        "mlflow_artifacts",
        "serving_uri",
        "serving_timeout",
    ),
    "Data on an object store": (
        "data_root",
        "storage_connection",
        "storage_secret",
        "storage_service_account",
        "storage_role",
        "remote_logs",
    ),
    "Training": (
        "compute",
        "pools",
        "training_threads",
        "checkpoint_every_steps",
        "worker_restarts",
        "rendezvous_timeout",
        "kubernetes_connection",
        "kubernetes_namespace",
        "training_image",
        "pod_template",
        "priority_classes",
    ),
    "This machine": ("parallelism", "preload_libraries", "restart"),
}


def _databases(host: str) -> dict[str, str]:
    """Return the URLs of the stores: each has its own user and database.

    Passwords are generated.
    """
    users = {
        "airflow_database_url": "airflow",
        "mlflow_database_url": "mlflow",
        "feast_registry_url": "feast",
        "ledger_url": "ledger",
    }
    urls = {
        setting: f"postgresql://airloop_{user}:CHANGE_ME@{host}:5432/airloop_{user}" for setting, user in users.items()
    }
    return urls | {"feast_readonly_url": f"postgresql://airloop_feast_reader:CHANGE_ME@{host}:5432/airloop_feast"}


KEYS = {
    "airflow_admin_password": "CHANGE_ME",
    "airflow_fernet_key": "CHANGE_ME",
    "airflow_jwt_secret": "CHANGE_ME",
    "airflow_api_secret_key": "CHANGE_ME",
    "mlflow_username": "airloop",
    "mlflow_password": "CHANGE_ME",
    "mlflow_reader_password": "CHANGE_ME",
    "mlflow_admin_password": "CHANGE_ME",
    "mlflow_flask_secret_key": "CHANGE_ME",
    "serving_api_key": "CHANGE_ME",
    "edge_signing_key": "CHANGE_ME",
}
VALUES: dict[str, dict[str, str]] = {
    "embedded": {},
    "compose": {
        "profile": "compose",
        "database_admin_url": "postgresql://postgres:CHANGE_ME_POSTGRES_PASSWORD@postgres:5432/postgres",
        **_databases("postgres"),
        "online_store_url": "redis://:CHANGE_ME_REDIS_PASSWORD@redis:6379/0",
        **KEYS,
    },
    "kubernetes": {
        "profile": "kubernetes",
        "database_admin_url": "postgresql://postgres:CHANGE_ME@postgres.example.org:5432/postgres",
        **_databases("postgres.example.org"),
        "online_store_url": "rediss://:CHANGE_ME@redis.example.org:6379/0",
        **KEYS,
        "airflow_uri": "http://airflow-api-server.airflow.svc:8080",
        "mlflow_uri": "http://airloop-mlflow.airloop.svc:5000",
        "serving_uri": "http://airloop-serving.airloop.svc:8000",
        "data_root": "s3://airloop-data",
        "storage_connection": "airloop_store",
        "storage_secret": "airloop-storage",
        "remote_logs": "s3://airloop-data/_logs",
        "compute": "kubernetes",
        "training_image": (
            "registry.example.org/airloop-training@sha256:0000000000000000000000000000000000000000000000000000000000000000"
        ),
    },
}
AWS = (
    Variable("AWS_ENDPOINT_URL", "URL of the S3 server. Default: Amazon S3."),
    Variable("AWS_REGION", "Region of the object store.", default="us-east-1"),
    Variable("AWS_ACCESS_KEY_ID", "Account for the object store (docs/runbooks/storage.md)."),
    Variable("AWS_SECRET_ACCESS_KEY", "Secret key of that account."),
)
EXTRAS: dict[str, dict[str, tuple[Variable, ...]]] = {
    "embedded": {"Data on an object store": AWS},
    "compose": {
        "Stores": (
            Variable(
                "POSTGRES_PASSWORD",
                "Password of the superuser of Postgres, which creates the other users.",
                "CHANGE_ME",
            ),
            Variable("REDIS_PASSWORD", "Password of Redis, the online store.", "CHANGE_ME"),
            Variable("CELERY_BROKER_PASSWORD", "Password of the queue of the optional Celery workers.", "CHANGE_ME"),
        ),
        "Data on an object store": (
            Variable(
                "S3_ROOT_SECRET",
                "Secret key of the S3 server's root account, which creates buckets and users.",
                "CHANGE_ME",
            ),
            Variable("S3_AIRFLOW_SECRET", "Secret key of the S3 user airflow, for tasks.", "CHANGE_ME"),
            Variable("S3_MLFLOW_SECRET", "Secret key of the S3 user mlflow.", "CHANGE_ME"),
            Variable(
                "S3_SERVING_SECRET",
                "Secret key of the S3 user serving, which may write the prediction log.",
                "CHANGE_ME",
            ),
        ),
        "Users and keys": (
            Variable("SERVING_METRICS_KEY", "API key with which Prometheus reads the metrics of serving.", "CHANGE_ME"),
            Variable("GRAFANA_ADMIN_PASSWORD", "Password of Grafana's user admin.", "CHANGE_ME"),
        ),
        "Servers": (
            Variable(
                "SITE_DOMAIN",
                "Domain of the proxy's hosts: airflow.DOMAIN, mlflow.DOMAIN, serving.DOMAIN and grafana.DOMAIN.",
                default="localhost",
            ),
            Variable(
                "SITE_TLS",
                "internal for certificates of the proxy's own authority, or an e-mail address for certificates of Let's"
                " Encrypt.",
                default="internal",
            ),
            Variable(
                "PROXY_ADDRESS",
                "Address on which the proxy listens. Default: all addresses of this machine.",
                default="0.0.0.0",
            ),
            Variable("HTTP_PORT", "Port for HTTP, which redirects to HTTPS.", default="80"),
            Variable("HTTPS_PORT", "Port for HTTPS.", default="443"),
        ),
        "This machine": (
            Variable("COMPOSE_PROFILES", "celery starts separate workers for tasks. It requires the next variable."),
            Variable("AIRFLOW_EXECUTOR", "CeleryExecutor if there are Celery workers.", default="LocalExecutor"),
            Variable("SCHEDULER_MEMORY", "Memory limit of the scheduler and its tasks.", default="8g"),
            Variable("WORKER_MEMORY", "Memory limit of a Celery worker.", default="8g"),
        ),
        "Images": (
            Variable("IMAGE_TAG", "Tag of the four images that are built here.", default="compose"),
            Variable(
                "TORCH",
                "Build of torch in Airflow's image: cpu, cu130, or empty for the default of the package index.",
                default="cpu",
            ),
            Variable("GIT_SHA", "Commit from which the images are built. `make compose-up` sets it."),
            *(
                Variable(f"{name}_IMAGE", about)
                for name, about in {
                    "POSTGRES": (
                        "Image of Postgres, for example in your own registry. Default: the pinned image, as for the"
                        " following ones."
                    ),
                    "REDIS": "Image of Redis.",
                    "VERSITYGW": "Image of the S3 server.",
                    "CADDY": "Image of the proxy.",
                    "STATSD_EXPORTER": "Image of the StatsD exporter.",
                    "PROMETHEUS": "Image of Prometheus.",
                    "GRAFANA": "Image of Grafana.",
                }.items()
            ),
        ),
    },
    "kubernetes": {
        "Data on an object store": AWS,
        "Users and keys": (
            Variable(
                "SERVING_METRICS_KEY",
                "API key with which Prometheus reads the metrics of serving. It allows nothing else.",
                "CHANGE_ME",
            ),
        ),
    },
}


def page(profile: str) -> str:
    """Return the text of .env.<profile>.example."""
    lines = []
    for paragraph in HEADS[profile]:
        lines += [*(f"# {line}" for line in textwrap.wrap(paragraph, 118)), "#"]
    lines.append("# Generated by `make docs` from include/settings/ and docs/settings_files.py.")
    extras = EXTRAS[profile]
    for title in dict.fromkeys((*SECTIONS, *extras)):
        lines += ["", f"# --- {title} ".ljust(100, "-")]
        for variable in (*(_setting(profile, name) for name in SECTIONS.get(title, ())), *extras.get(title, ())):
            lines += ["", *(f"# {line}" for line in textwrap.wrap(variable.about, 118))]
            lines.append(
                f"# {variable.name}={variable.default}"
                if variable.value is None
                else f"{variable.name}={variable.value}"
            )
    return "\n".join(lines) + "\n"


def _setting(profile: str, name: str) -> Variable:
    field = Settings.model_fields[name]
    default = "" if field.default is None else str(field.default)
    if name in ("home", "dags_folder"):  # a path on the machine that wrote this file
        default = str(field.default.relative_to(REPOSITORY))
    if name == "training_threads":
        default = ""  # the cores of the machine that wrote this file
    assert field.description, f"{name} has no description"
    return Variable(f"AIRLOOP_{name.upper()}", field.description, VALUES[profile].get(name), default)


def main() -> None:
    for profile in PROFILES:
        (REPOSITORY / f".env.{profile}.example").write_text(page(profile))
        print(f".env.{profile}.example is written")


if __name__ == "__main__":
    main()
