"""A table of allowed connections matches the rendered policies.

It assumes a cluster whose network plugin enforces NetworkPolicies.
"""

from itertools import product
from typing import Any

import pytest

from tests.helm import MISSING, PROGRAM, HelmError, one, render
from tests.unit.helm.network import Host, Pod, may_reach

pytestmark = pytest.mark.skipif(not PROGRAM, reason=MISSING)


def ours(part: str, **ports: int) -> Pod:
    return Pod("ml", {"app.kubernetes.io/name": f"airloop-{part}", "app.kubernetes.io/instance": "loop"}, ports)


def airflow(component: str) -> Pod:
    return Pod("airflow", {"tier": "airflow", "release": "airflow", "component": component})


# Ends of connections.
ENDS: dict[str, Pod | Host] = {
    "mlflow": ours("mlflow", http=5000),
    "serving": ours("serving", http=8000),
    "training": Pod("airloop-training", {"airloop/step": "fit"}),
    **{
        name: airflow(name)
        for name in (
            "api-server",
            "scheduler",
            "dag-processor",
            "triggerer",
            "worker",
            "statsd",
            "run-airflow-migrations",
            "cleanup",
        )
    },
    "ingress": Pod("ingress-nginx"),
    "prometheus": Pod("monitoring"),
    "stranger": Pod("default"),
    "neighbour": Pod("ml", {"app": "other"}),
    "dns": Pod("kube-system", {"k8s-app": "kube-dns"}),
    "system": Pod("kube-system", {"app": "other"}),
    "postgres": Host("10.0.16.5"),
    "redis": Host("10.0.16.6"),
    "store": Host("52.219.0.1"),
    "kubernetes": Host("10.96.0.1"),
    "metadata": Host("169.254.169.254"),
    "internet": Host("203.0.113.7"),
}
PORTS = {
    "mlflow": (5000, "TCP"),
    "serving": (8000, "TCP"),
    "training": (29500, "TCP"),
    "api-server": (8080, "TCP"),
    "scheduler": (8793, "TCP"),
    "dag-processor": (8793, "TCP"),
    "triggerer": (8794, "TCP"),
    "worker": (8793, "TCP"),
    "statsd": (9125, "UDP"),
    "dns": (53, "UDP"),
    "system": (53, "UDP"),
    "postgres": (5432, "TCP"),
    "redis": (6379, "TCP"),
    "store": (443, "TCP"),
    "kubernetes": (6443, "TCP"),
    "metadata": (80, "TCP"),
    "internet": (80, "TCP"),
}
# Source -> destinations, each at its port. All other connections of our pods must be refused.
TABLE = {
    "mlflow": {"dns", "store", "postgres"},
    "serving": {"dns", "store", "postgres", "redis", "mlflow"},
    "training": {"dns", "store", "mlflow", "training"},
    "api-server": {"dns", "store", "postgres", "kubernetes", "mlflow", "serving", "triggerer", "statsd"},
    "scheduler": {"dns", "postgres", "kubernetes", "statsd"},
    "dag-processor": {"dns", "postgres", "statsd"},
    "triggerer": {"dns", "store", "postgres", "kubernetes", "statsd"},
    "worker": {"dns", "store", "postgres", "redis", "kubernetes", "mlflow", "serving", "api-server", "statsd"},
    "run-airflow-migrations": {"dns", "postgres"},
    "statsd": set(), "cleanup": set(),  # components that no policy names
    "ingress": {"serving", "api-server"},
    "prometheus": {"serving"},
    "stranger": set(), "neighbour": set(), "internet": set(), "system": set(),
}  # fmt: skip
OURS = {
    "mlflow",
    "serving",
    "training",
    "api-server",
    "scheduler",
    "dag-processor",
    "triggerer",
    "worker",
    "statsd",
    "run-airflow-migrations",
    "cleanup",
}


def policies(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    manifests = [one for one in render(values) if one["kind"] == "NetworkPolicy"]
    for policy in manifests:
        policy["metadata"].setdefault("namespace", "ml")
    return manifests


def table(rules: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return source -> reachable destinations for all pairs that include one of our pods."""
    pairs = ((a, b) for a, b in product(TABLE, PORTS) if a in OURS or b in OURS)
    reached = [(a, b) for a, b in pairs if may_reach(rules, ENDS[a], ENDS[b], *PORTS[b])]
    return {name: {b for a, b in reached if a == name} for name in TABLE}


def test_who_may_reach_whom():
    assert table(policies()) == TABLE


@pytest.mark.parametrize(
    "name", ["loop-mlflow", "loop-serving", "loop-training", "loop-airflow", "loop-airflow-api-server"]
)
def test_a_missing_policy_would_be_seen(name):
    assert table([one for one in policies() if one["metadata"]["name"] != name]) != TABLE


def test_no_port_but_those_of_the_table_is_open():
    """Only the ports in the table are open.

    Every port of every address in the table is checked. A rule without ports would fail here.
    """
    rules = policies()
    for source, target, port in product(OURS, ENDS, (22, 80, 2379, 8443, 9000, 10250)):
        workers = source == target == "training"  # torchrun chooses its ports
        assert may_reach(rules, ENDS[source], ENDS[target], port) is workers, (source, target, port)


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("", 443),
        ("https://s3.example.com", 443),
        ("http://s3.example.com", 80),
        ("http://minio.example.com:9000", 9000),
        ("https://s3.example.com:8443/path", 8443),
        ("http://s3:7070", 7070),
        ("http://[fd00::5]:9000", 9000),
        ("http://[fd00::5]", 80),
    ],
)
def test_the_object_store_s_port_is_that_of_its_endpoint(endpoint, port):
    rules = policies({"storage.endpoint": endpoint})
    others = {443, 80, 9000, 8443, 7070} - {port}
    for name in ("mlflow", "serving", "training"):
        assert may_reach(rules, ENDS[name], ENDS["store"], port), name
        assert not [other for other in others if may_reach(rules, ENDS[name], ENDS["store"], other)], name


def test_a_store_in_the_cluster_is_chosen_by_its_pods():
    minio = Pod("minio", {"app": "minio"})
    to = [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "minio"}},
            "podSelector": {"matchLabels": {"app": "minio"}},
        }
    ]
    rules = policies({"storage.endpoint": "http://minio.minio:9000", "network.storage.to": to})
    for name in ("mlflow", "serving", "training", "worker"):
        assert may_reach(rules, ENDS[name], minio, 9000)
        assert not may_reach(rules, ENDS[name], Pod("minio"), 9000) and not may_reach(
            rules, ENDS[name], ENDS["internet"], 9000
        )


def test_mlflow_elsewhere_is_reached_at_its_port():
    elsewhere = {"mlflow.enabled": False, "serving.mlflowUri": "https://mlflow.example.com:8443"}
    rules = policies(elsewhere | {"network.mlflow.to": [{"ipBlock": {"cidr": "198.51.100.9/32"}}]})
    for name in ("serving", "training", "worker", "api-server"):
        assert may_reach(rules, ENDS[name], Host("198.51.100.9"), 8443), name
        assert not may_reach(rules, ENDS[name], ENDS["internet"], 8443), name


def test_prometheus_reads_metrics_from_where_it_is_said_to_run():
    where = [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}},
            "podSelector": {"matchLabels": {"app": "prometheus"}},
        }
    ]
    rules = policies({"serving.metrics.from": where, "airflow.networkPolicy.metricsFrom": where})
    prometheus = Pod("observability", {"app": "prometheus"})
    assert may_reach(rules, prometheus, ENDS["serving"], 8000) and may_reach(rules, prometheus, ENDS["statsd"], 9102)
    assert not may_reach(rules, Pod("observability"), ENDS["serving"], 8000) and not may_reach(
        rules, ENDS["prometheus"], ENDS["serving"], 8000
    )
    assert not may_reach(policies({"serving.metrics.enabled": False}), ENDS["prometheus"], ENDS["serving"], 8000)


def test_the_service_monitor_has_a_key_of_its_own():
    assert not [monitor for monitor in render() if monitor["kind"] == "ServiceMonitor"]
    monitor = one(render({"serving.metrics.serviceMonitor.enabled": True}), "ServiceMonitor")["spec"]
    (endpoint,) = monitor["endpoints"]
    assert (endpoint["path"], endpoint["port"]) == ("/metrics", "http")
    assert endpoint["authorization"]["credentials"] == {"name": "airloop-serving-metrics", "key": "key"}
    assert (
        monitor["selector"]["matchLabels"].items()
        <= one(render(), "Service", "loop-serving")["metadata"]["labels"].items()
    )


@pytest.mark.parametrize(
    "values, message",
    [
        ({"network.dns.to": []}, "/network/dns/to"),
        ({"network.storage.to": [{"ipBlock": {}}]}, "/network/storage/to/0/ipBlock"),
        ({"serving.networkPolicy.extraEgress": [{}]}, "/serving/networkPolicy/extraEgress/0"),
        ({"serving.networkPolicy.from": [{"pods": {}}]}, "/serving/networkPolicy/from/0"),
        ({"serving.metrics.from": []}, "/serving/metrics/from"),
        ({"airflow.networkPolicy.extraEgress": {"webserver": []}}, "/airflow/networkPolicy/extraEgress"),
        ({"network.database.port": "5432"}, "/network/database/port"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(values, message):
    with pytest.raises(HelmError, match=message):
        render(values)
