"""Static checks of docker-compose.yaml that apply to every service.

tests/compose runs the file. The last tests show that each check can fail.
"""

import json
import re
import shutil
import subprocess
import sys
from copy import deepcopy

import pytest
import yaml

from include.settings import REPOSITORY

FILE = REPOSITORY / "docker-compose.yaml"
OURS = ("airloop-airflow:", "airloop-mlflow:", "airloop-serving:")
# Access to secrets: a variable of the settings file -> services. A worker only runs tasks, so it
# has no secret of Airflow itself.
ADMIN = {"migrate", "airloop", "operations"}
CONTROL = ADMIN | {"api-server", "scheduler", "dag-processor", "triggerer"}
AIRFLOW = CONTROL | {"worker"}
WHO = {
    "POSTGRES_PASSWORD": {"postgres"},
    "AIRLOOP_DATABASE_ADMIN_URL": {"databases"},
    "AIRLOOP_AIRFLOW_DATABASE_URL": CONTROL | {"databases"},
    "AIRLOOP_LEDGER_URL": AIRFLOW | {"databases"},
    "AIRLOOP_FEAST_REGISTRY_URL": AIRFLOW | {"databases"},
    "AIRLOOP_FEAST_READONLY_URL": {"serving", "databases"},
    "AIRLOOP_MLFLOW_DATABASE_URL": {"mlflow", "databases", "operations"},
    "AIRLOOP_ONLINE_STORE_URL": AIRFLOW,
    "REDIS_PASSWORD": {"redis", "serving"},
    "CELERY_BROKER_PASSWORD": AIRFLOW | {"broker"},
    "AIRLOOP_AIRFLOW_FERNET_KEY": CONTROL,
    "AIRLOOP_AIRFLOW_JWT_SECRET": CONTROL,
    "AIRLOOP_AIRFLOW_API_SECRET_KEY": CONTROL,
    "AIRLOOP_AIRFLOW_ADMIN_PASSWORD": ADMIN,
    "AIRLOOP_MLFLOW_PASSWORD": AIRFLOW | {"mlflow"},
    "AIRLOOP_MLFLOW_READER_PASSWORD": {"mlflow", "serving"},
    "AIRLOOP_MLFLOW_ADMIN_PASSWORD": {"mlflow"},
    "AIRLOOP_MLFLOW_FLASK_SECRET_KEY": {"mlflow"},
    "AIRLOOP_SERVING_API_KEY": AIRFLOW | {"serving-keys"},
    "AIRLOOP_EDGE_SIGNING_KEY": {"operations"},
    "SERVING_METRICS_KEY": {"serving-keys", "prometheus"},
    "S3_ROOT_SECRET": {"s3", "buckets", "operations"},
    "S3_AIRFLOW_SECRET": AIRFLOW - {"operations"} | {"buckets"},
    "S3_MLFLOW_SECRET": {"mlflow", "buckets"},
    "S3_SERVING_SECRET": {"serving", "buckets"},
    "GRAFANA_ADMIN_PASSWORD": {"grafana"},
}
# Clients and servers. Any two services that share a network are listed here, or are clients of one
# server on it.
SERVERS = {
    "edge": "proxy",
    "proxy-airflow": "api-server",
    "proxy-mlflow": "mlflow",
    "proxy-serving": "serving",
    "proxy-grafana": "grafana",
    "proxy-metrics": "proxy",
    "airflow": "api-server",
    "airflow-postgres": "postgres",
    "airflow-redis": "redis",
    "airflow-s3": "s3",
    "airflow-mlflow": "mlflow",
    "airflow-serving": "serving",
    "airflow-metrics": "statsd-exporter",
    "celery": "broker",
    "mlflow-postgres": "postgres",
    "mlflow-s3": "s3",
    "serving-postgres": "postgres",
    "serving-redis": "redis",
    "serving-mlflow": "mlflow",
    "serving-s3": "s3",
    "serving-metrics": "serving",
    "statsd-metrics": "statsd-exporter",
    "grafana-prometheus": "prometheus",
}
# A network's clients are of one kind. Each kind has its own network to a server.
KINDS = {**dict.fromkeys(AIRFLOW | {"buckets", "databases"}, "airflow")}


@pytest.fixture
def compose():
    return deepcopy(yaml.safe_load(FILE.read_text()))


def faults(compose: dict) -> list[str]:
    """Return the file's violations, one per line."""
    services = compose["services"]
    messages = [fault for name, service in services.items() for fault in _of_service(name, service)]
    messages += [
        f"{name} publishes ports" for name, service in services.items() if "ports" in service and name != "proxy"
    ]
    messages += [
        f"network {name} has a way out"
        for name, network in compose["networks"].items()
        if name != "edge" and not network.get("internal")
    ]
    messages += _of_networks(services, compose["networks"])
    messages += _of_secrets(services)
    return messages


def _of_service(name: str, service: dict):
    once, tool = service.get("restart") == "on-failure", service.get("profiles") == ["tools"]
    if not once and not tool:
        if service.get("restart") != "unless-stopped":
            yield f"{name} is not started again when it dies"
        check = service.get("healthcheck", {})
        if not {"test", "interval", "timeout", "retries", "start_period"} <= check.keys():
            yield f"{name} has no whole health check"
    if "mem_limit" not in service:
        yield f"{name} has no limit of memory"
    if not (
        service.get("read_only")
        and service.get("cap_drop") == ["ALL"]
        and "no-new-privileges:true" in service.get("security_opt", ())
    ):
        yield f"{name} may write its root, or has more rights than it needs"
    if (
        service.get("privileged")
        or service.get("network_mode", "none") != "none"
        or any("docker.sock" in str(v) for v in service.get("volumes", ()))
    ):
        yield f"{name} has the host's network, devices or engine"
    image = service["image"]
    pinned = r"\$\{[A-Z_]+:-[a-z]+\.io/[a-z-]+/[a-z-]+:v?\d+\.\d+(\.\d+)?@sha256:[0-9a-f]{64}\}"
    if not image.startswith(OURS) and not re.fullmatch(pinned, image):
        yield f"{name}'s image {image} is not pinned"
    for volume in service.get("volumes", ()):
        source, _, rest = volume.partition(":")
        if not rest or (source.startswith((".", "/")) and not rest.endswith(":ro")):
            yield f"{name}'s volume {volume} has no name, or lets it write to the host"


def _of_networks(services: dict, networks: dict):
    on = {
        network: {name for name, service in services.items() if network in service.get("networks", ())}
        for network in networks
    }
    for network, members in on.items():
        server = SERVERS.get(network)
        if server is None or server not in members:
            yield f"network {network} has no server"
            continue
        clients = {KINDS.get(name, name) for name in members - {server}}
        if network not in {"edge", "airflow"} and len(clients) != 1 or network == "edge" and clients:
            yield f"network {network} joins strangers: {sorted(clients)}"
    yield from (
        f"{name} is on the network of everybody"
        for name, s in services.items()
        if not s.get("networks") and s.get("network_mode") != "none"
    )


def _of_secrets(services: dict):
    has = {
        name: set(
            re.findall(
                r"\$\{([A-Z0-9_]+)", json.dumps({k: service.get(k) for k in ("environment", "command", "entrypoint")})
            )
        )
        for name, service in services.items()
    }
    for name, variables in has.items():
        secrets = {v for v in variables if re.search(r"SECRET|PASSWORD|_KEY$|_URL$|TOKEN", v)}
        yield from (
            f"{name} has {secret}, which is for {', '.join(sorted(WHO.get(secret, ['nobody that is known'])))}"
            for secret in sorted(secrets)
            if name not in WHO.get(secret, ())
        )
    text = json.dumps(services)
    for secret in sorted(WHO):
        # Celery's password is not needed without its profile, and an empty one gives no access.
        if not re.search(rf"\$\{{{secret}:\?run make secrets\}}", text) and secret != "CELERY_BROKER_PASSWORD":
            yield f"{secret} may be missing without a word"
    yield from (
        f"{secret} has a default"
        for secret in sorted(set(re.findall(r"\$\{([A-Z0-9_]*(?:SECRET|PASSWORD)[A-Z0-9_]*):-[^}]", text)))
    )


def test_every_service_is_limited_watched_closed_and_pinned(compose):
    assert faults(compose) == []


def test_compose_itself_can_read_it(tmp_path):
    """Compose itself can parse the file.

    With all variables of the settings file it succeeds. Without them it reports which is missing.
    """
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed: apt-get install podman")
    env = tmp_path / "settings"
    env.write_text("".join(f"{name}=x\n" for name in WHO))

    def config(file):
        command = [sys.executable, "-m", "podman_compose", "--env-file", str(file), "--file", str(FILE), "config"]
        return subprocess.run(
            command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, check=False
        )

    read = config(env)
    assert read.returncode == 0, read.stderr
    assert yaml.safe_load(read.stdout)["services"].keys() >= {
        "postgres",
        "redis",
        "s3",
        "mlflow",
        "api-server",
        "scheduler",
        "serving",
        "proxy",
        "grafana",
    }
    env.write_text("".join(f"{name}=x\n" for name in WHO if name != "S3_ROOT_SECRET"))
    refused = config(env)
    assert refused.returncode != 0 and "run make secrets" in refused.stdout + refused.stderr


def test_the_stack_s_parts_are_those_of_the_issue(compose):
    wanted = {
        "postgres",
        "redis",
        "s3",
        "mlflow",
        "api-server",
        "scheduler",
        "dag-processor",
        "triggerer",
        "worker",
        "serving",
        "proxy",
        "prometheus",
        "grafana",
    }
    assert wanted <= compose["services"].keys()
    assert compose["services"]["worker"]["profiles"] == compose["services"]["broker"]["profiles"] == ["celery"]
    assert compose["services"]["postgres"]["networks"] and "celery" not in compose["services"]["redis"]["networks"]


@pytest.mark.parametrize(
    "service, key, value, fault",
    [
        ("mlflow", "ports", ["5000:5000"], "mlflow publishes ports"),
        ("redis", "healthcheck", {"test": ["CMD", "true"]}, "redis has no whole health check"),
        ("scheduler", "restart", "no", "scheduler is not started again when it dies"),
        ("serving", "mem_limit", None, "serving has no limit of memory"),
        ("api-server", "cap_drop", [], "api-server may write its root, or has more rights than it needs"),
        ("grafana", "image", "grafana/grafana:latest", "grafana's image grafana/grafana:latest is not pinned"),
        (
            "redis",
            "image",
            "${X:-docker.io/library/redis:7.4.9}",
            "redis's image ${X:-docker.io/library/redis:7.4.9} is not pinned",
        ),
        (
            "worker",
            "environment",
            {"X": "${AIRLOOP_AIRFLOW_FERNET_KEY:?run make secrets}"},
            (
                "worker has AIRLOOP_AIRFLOW_FERNET_KEY, which is for airloop, api-server, dag-processor, migrate,"
                " operations, scheduler, triggerer"
            ),
        ),
        (
            "scheduler",
            "environment",
            {"X": "${AIRLOOP_AIRFLOW_ADMIN_PASSWORD:?run make secrets}"},
            "scheduler has AIRLOOP_AIRFLOW_ADMIN_PASSWORD, which is for airloop, migrate, operations",
        ),
        ("s3", "volumes", ["./data:/data"], "s3's volume ./data:/data has no name, or lets it write to the host"),
        (
            "proxy",
            "networks",
            [
                "edge",
                "mlflow-postgres",
                "proxy-airflow",
                "proxy-mlflow",
                "proxy-serving",
                "proxy-grafana",
                "proxy-metrics",
            ],
            "network mlflow-postgres joins strangers: ['mlflow', 'proxy']",
        ),
        (
            "serving",
            "environment",
            {"X": "${S3_ROOT_SECRET:?run make secrets}"},
            "serving has S3_ROOT_SECRET, which is for buckets, operations, s3",
        ),
        (
            "postgres",
            "environment",
            {"POSTGRES_PASSWORD": "${POSTGRES_PASSWORD:-postgres}"},
            "POSTGRES_PASSWORD has a default",
        ),
    ],
)
def test_a_fault_is_seen(service, key, value, fault, compose):
    if value is None:
        del compose["services"][service][key]
    else:
        compose["services"][service][key] = value
    assert fault in faults(compose)


def test_a_network_with_a_way_out_is_seen(compose):
    compose["networks"]["airflow-postgres"] = {}
    assert "network airflow-postgres has a way out" in faults(compose)
