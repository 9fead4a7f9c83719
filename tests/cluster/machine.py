"""Describe this machine for pods: the folders that they mount and the address that they use."""

import socket
import sys
from pathlib import Path
from typing import Any

import psutil

from include.settings import REPOSITORY
from tests.cluster.claims import on_claims
from tests.cluster.namespace import Cluster


def pod_template(cluster: Cluster, shared: Path | None = None, code: Path = REPOSITORY) -> dict[str, Any]:
    """Return a pod template that runs this checkout.

    The machine's /usr, Python and code are mounted read-only, and the test's folder if there is
    one.
    """
    python = Path(sys.executable)
    folders = {"usr": Path("/usr"), "venv": Path(sys.prefix), "python": Path(sys.base_prefix), "code": code}
    folders |= {
        f"links{n}": folder for n, folder in enumerate({link.parent for link in links(python)} - set(folders.values()))
    }
    mounts = [
        {"name": name, "mountPath": str(path), "readOnly": True}
        for name, path in folders.items()
        if not path.is_relative_to("/usr") or name == "usr"
    ]
    volumes = [{"name": m["name"], "hostPath": {"path": m["mountPath"], "type": "Directory"}} for m in mounts]
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}
    if shared:
        mounts.append({"name": "shared", "mountPath": str(shared)})
        volumes.append({"name": "shared", "hostPath": {"path": str(shared), "type": "Directory"}})
    container = {
        "name": "base",
        "image": "replaced",
        "workingDir": str(code),
        "env": [{"name": k, "value": v} for k, v in environment.items()],
        "volumeMounts": mounts,
    }
    spec = {"containers": [container], "volumes": on_claims(cluster.api, cluster.namespace, volumes)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "template"}, "spec": spec}


def links(path: Path) -> list[Path]:
    """Return the chain of links from a path to its file."""
    chain = []
    while path.is_symlink():
        path = path.parent / path.readlink()
        chain.append(path)
    return chain


def address_for_pods(cluster: Cluster) -> str:
    """Return an address of this machine that pods can reach."""
    addresses = {a.address for a in cluster.node.status.addresses}
    ours = {
        address.address
        for addresses_ in psutil.net_if_addrs().values()
        for address in addresses_
        if address.family == socket.AF_INET
    }
    return next(iter(addresses & ours), "127.0.0.1")
