"""Print what Airflow reports about itself as one line of JSON. For ``airloop doctor``.

Run ``python -m include.dag_kit.checkup`` in Airflow's environment. The output is:

``{"dags": 6, "import_errors": {file: last line}, "pools": {name: slots} or an error, "connections":
{id: null or {what, fix}}}``
"""

import json
import sys
from contextlib import redirect_stdout
from typing import Any

from include.settings import Settings, get_settings


def checkup(settings: Settings) -> dict[str, Any]:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(settings.dags_folder))
    errors = {str(file): trace.strip().splitlines()[-1] for file, trace in bag.import_errors.items()}
    return {"dags": len(bag.dags), "import_errors": errors, "pools": _pools(), "connections": _connections(settings)}


def _pools() -> dict[str, int] | str:
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with create_session() as session:
            return {pool.pool: pool.slots for pool in session.query(Pool)}
    except SQLAlchemyError as error:
        return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def _connections(settings: Settings) -> dict[str, dict[str, str] | None]:
    results: dict[str, dict[str, str] | None] = {}
    if settings.storage_connection:
        results[settings.storage_connection] = _storage(settings)
    if settings.compute == "kubernetes":
        results[settings.kubernetes_connection] = _cluster(settings)
    return results


def _storage(settings: Settings) -> dict[str, str] | None:
    """Probe the object store with exactly the credentials that tasks get."""
    from include.dag_kit.storage import ConnectionNotFoundError, export_storage_env
    from include.data import storage

    try:
        export_storage_env()
        for root in filter(None, (settings.store, settings.remote_logs)):
            storage.probe(root)
    except (ConnectionNotFoundError, storage.StorageUnavailableError) as error:
        what, _, fix = str(error).partition(" To do: ")
        return {"what": what, "fix": fix or "docs/runbooks/storage.md"}
    return None


def _cluster(settings: Settings) -> dict[str, str] | None:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

    where = (
        f"AIRLOOP_KUBERNETES_CONNECTION is '{settings.kubernetes_connection}', namespace"
        f" {settings.kubernetes_namespace}"
    )
    try:
        hook = KubernetesHook(conn_id=settings.kubernetes_connection)
        hook.core_v1_client.list_namespaced_pod(settings.kubernetes_namespace, limit=1, _request_timeout=10)
    # Errors come from Airflow, the Kubernetes client or urllib3.
    except Exception as error:
        message = " ".join(str(getattr(error, "reason", None) or error).split())[:300]
        return {
            "what": f"{where}: the cluster does not list pods: {message}",
            "fix": "mend the connection (kubeconfig, in-cluster), or its rights: docs/runbooks/train.md",
        }
    return None


if __name__ == "__main__":
    # Standard output is reserved for the result, and libraries may print to it.
    with redirect_stdout(sys.stderr):
        result = checkup(get_settings())
    print(json.dumps(result))
