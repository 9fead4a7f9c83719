"""Write the files .env.<profile>.example from the settings: `make docs`. A test compares them.

A variable's comment is its field's description in ``include.settings``; what only another program
reads (Compose, boto3) is explained here. Variables that the profile gives a value stand as they
are, the others as a comment with their default.
"""

import textwrap
from typing import NamedTuple

from include.settings import REPOSITORY, Settings

PROFILES = ("embedded", "compose", "kubernetes")
# Set by `airloop try` and by the Job of a training step, never by a person.
INTERNAL = ("rendezvous", "worker_index", "worker_address", "sample_days")


class Variable(NamedTuple):
    """One that is no setting of ours.

    ``value`` None: a comment, with ``default`` behind the name.
    """

    name: str
    about: str
    value: str | None = None
    default: str = ""


HEADS = {
    "embedded": (
        """\
        Settings of one machine: SQLite, local files, servers on loopback. Nothing has to be set.

        To change something: cp .env.embedded.example .env, take away the # and edit. The environment wins over the file."""  # noqa: E501
    ),
    "compose": (
        """\
        Settings of the stack in docker-compose.yaml.

        `make secrets` copies this file to .env (for its owner's eyes only) and puts a secret of its own in each place of CHANGE_ME; CHANGE_ME_X is that of
        the variable X. It never touches a value that is there. As long as one CHANGE_ME is left, nothing starts. See docs/runbooks/profiles.md.

        Containers are given what docker-compose.yaml passes on to them by name. A setting that it does not name is for `airloop` commands on this host."""  # noqa: E501
    ),
    "kubernetes": (
        """\
        Settings of the stack on Kubernetes: `airloop kubernetes-secrets` makes of them what each part is told (deploy/helm/README.md).

        `airloop init-env --profile kubernetes` copies this file to .env and puts a secret of its own in each place of CHANGE_ME; CHANGE_ME_X is that of the
        variable X. It never touches a value that is there. As long as one CHANGE_ME is left, nothing starts. See docs/runbooks/profiles.md.
        The addresses are examples: write your own."""  # noqa: E501
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
    Variable("AWS_ENDPOINT_URL", "Where the S3 server is; none: Amazon's."),
    Variable("AWS_REGION", "Its region.", default="us-east-1"),
    Variable("AWS_ACCESS_KEY_ID", "As whom the object store is used: docs/runbooks/storage.md."),
    Variable("AWS_SECRET_ACCESS_KEY", "... and the secret."),
)
EXTRAS: dict[str, dict[str, tuple[Variable, ...]]] = {
    "embedded": {"Data on an object store": AWS},
    "compose": {
        "Stores": (
            Variable("POSTGRES_PASSWORD", "Of Postgres's superuser, who makes the others.", "CHANGE_ME"),
            Variable("REDIS_PASSWORD", "Of Redis, the online store.", "CHANGE_ME"),
            Variable("CELERY_BROKER_PASSWORD", "Of the queue of the opt-in Celery workers.", "CHANGE_ME"),
        ),
        "Data on an object store": (
            Variable("S3_ROOT_SECRET", "Of the S3 server's root account, who makes buckets and users.", "CHANGE_ME"),
            Variable("S3_AIRFLOW_SECRET", "Of its user airflow: the tasks.", "CHANGE_ME"),
            Variable("S3_MLFLOW_SECRET", "Of its user mlflow.", "CHANGE_ME"),
            Variable("S3_SERVING_SECRET", "Of its user serving, who may write the prediction log.", "CHANGE_ME"),
        ),
        "Users and keys": (
            Variable("SERVING_METRICS_KEY", "With which Prometheus reads serving's metrics.", "CHANGE_ME"),
            Variable("GRAFANA_ADMIN_PASSWORD", "Of Grafana's user admin.", "CHANGE_ME"),
        ),
        "Servers": (
            Variable(
                "SITE_DOMAIN",
                "The proxy answers at airflow.<it>, mlflow.<it>, serving.<it>, grafana.<it>.",
                default="localhost",
            ),
            Variable(
                "SITE_TLS",
                "internal: certificates of the proxy's own authority. An e-mail address: Let's Encrypt's.",
                default="internal",
            ),
            Variable(
                "PROXY_ADDRESS", "This machine's address on which the proxy listens; default: all.", default="0.0.0.0"
            ),
            Variable("HTTP_PORT", "Its port, which only leads to the next one.", default="80"),
            Variable("HTTPS_PORT", "... with TLS.", default="443"),
        ),
        "This machine": (
            Variable("COMPOSE_PROFILES", "celery: tasks run in workers of their own; with the next variable."),
            Variable("AIRFLOW_EXECUTOR", "CeleryExecutor where there are workers.", default="LocalExecutor"),
            Variable("SCHEDULER_MEMORY", "Limit of the scheduler and the tasks that it runs.", default="8g"),
            Variable("WORKER_MEMORY", "Limit of a Celery worker.", default="8g"),
        ),
        "Images": (
            Variable("IMAGE_TAG", "Of the four that are built here.", default="compose"),
            Variable(
                "TORCH",
                "Build of torch in the image of Airflow: cpu, cu130, or empty for whatever the index offers.",
                default="cpu",
            ),
            Variable("GIT_SHA", "The commit that they are built of; `make compose-up` says it."),
            *(
                Variable(f"{name}_IMAGE", about)
                for name, about in {
                    "POSTGRES": "Copies of others' images in a registry of your own; default: the pinned ones.",
                    "REDIS": "...",
                    "VERSITYGW": "...",
                    "CADDY": "...",
                    "STATSD_EXPORTER": "...",
                    "PROMETHEUS": "...",
                    "GRAFANA": "...",
                }.items()
            ),
        ),
    },
    "kubernetes": {
        "Data on an object store": AWS,
        "Users and keys": (
            Variable("SERVING_METRICS_KEY", "Opens serving's metrics, and nothing else, to Prometheus.", "CHANGE_ME"),
        ),
    },
}


def page(profile: str) -> str:
    """Return the text of .env.<profile>.example."""
    lines = [f"# {line}".rstrip() for line in textwrap.dedent(HEADS[profile]).splitlines()]
    lines.append("# Made by `make docs` from include/settings/ and docs/settings_files.py.")
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
    if name in ("home", "dags_folder"):  # a path of whoever made this file
        default = str(field.default.relative_to(REPOSITORY))
    if name == "training_threads":
        default = ""  # this machine's cores
    assert field.description, f"{name} has no description"
    return Variable(f"AIRLOOP_{name.upper()}", field.description, VALUES[profile].get(name), default)


def main() -> None:
    for profile in PROFILES:
        (REPOSITORY / f".env.{profile}.example").write_text(page(profile))
        print(f".env.{profile}.example is written")


if __name__ == "__main__":
    main()
