"""Compute allowed connections from rendered NetworkPolicies, as Kubernetes defines them.

A connection is allowed if the egress side of its source and the ingress side of its destination
allow it. A side that no policy selects allows everything. Otherwise one rule of one policy must
match. https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

NAMESPACE = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Pod:
    """A pod. ``ports`` are the names of its container ports."""

    namespace: str
    labels: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """An address outside the cluster, or of a node."""

    address: str


def matches(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """Return whether a label selector matches. An empty one matches everything."""
    selector = selector or {}
    if any(labels.get(name) != value for name, value in (selector.get("matchLabels") or {}).items()):
        return False
    tests = {
        "In": lambda label, values: label in values,
        "NotIn": lambda label, values: label not in values,
        "Exists": lambda label, _: label is not None,
        "DoesNotExist": lambda label, _: label is None,
    }
    return all(
        tests[one["operator"]](labels.get(one["key"]), one.get("values", ()))
        for one in selector.get("matchExpressions") or ()
    )


def _is_peer(peer: dict[str, Any], end: Pod | Host, namespace: str) -> bool:
    if "ipBlock" in peer:
        # Network plugins differ in whether an ipBlock applies to pods, so no rule of ours may
        # depend on it.
        if not isinstance(end, Host):
            return False
        block, address = peer["ipBlock"], ip_address(end.address)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(one) for one in block.get("except", ())
        )
    if not isinstance(end, Pod):
        return False
    same = (
        matches(peer["namespaceSelector"], {NAMESPACE: end.namespace})
        if "namespaceSelector" in peer
        else end.namespace == namespace
    )
    return same and matches(peer.get("podSelector"), end.labels)


def _is_port(given: dict[str, Any], port: int, protocol: str, destination: Pod | Host) -> bool:
    wanted = given.get("port")
    if isinstance(wanted, str):
        wanted = destination.ports.get(wanted) if isinstance(destination, Pod) else None
    return given.get("protocol", "TCP") == protocol and ("port" not in given or wanted == port)


def _side(
    policies: list[dict[str, Any]],
    side: str,
    own: Pod | Host,
    other: Pod | Host,
    destination: Pod | Host,
    port: int,
    protocol: str,
) -> bool:
    if not isinstance(own, Pod):
        return True
    key, peers = ("ingress", "from") if side == "Ingress" else ("egress", "to")
    chosen = [
        p
        for p in policies
        if p["metadata"]["namespace"] == own.namespace and matches(p["spec"]["podSelector"], own.labels)
    ]
    chosen = [p for p in chosen if side in p["spec"]["policyTypes"]]
    rules = [(rule, p["metadata"]["namespace"]) for p in chosen for rule in p["spec"].get(key) or ()]
    return not chosen or any(
        (not rule.get("ports") or any(_is_port(one, port, protocol, destination) for one in rule["ports"]))
        and (not rule.get(peers) or any(_is_peer(peer, other, namespace) for peer in rule[peers]))
        for rule, namespace in rules
    )


def may_reach(
    policies: list[dict[str, Any]], source: Pod | Host, destination: Pod | Host, port: int, protocol: str = "TCP"
) -> bool:
    """Return whether the policies allow a connection."""
    leaves = _side(policies, "Egress", source, destination, destination, port, protocol)
    return leaves and _side(policies, "Ingress", destination, source, destination, port, protocol)
