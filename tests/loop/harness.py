"""Run the same short replay through a real stack on any store, and compare the results.

On S3 everything is stored there: landing zone, tables, manifests, training sets, reports, MLflow's
artifacts, task logs, and serving's log. Airflow's processes have a connection and no credentials of
their own. A task therefore writes only with credentials that it was handed.
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from include import ledger
from include.data import layout, storage, tables
from include.demo.replay import Replay, ReplayStep
from include.projects import get_project
from include.settings import REPOSITORY, Settings, secret_fields
from include.stack.accounts.access import mlflow_credentials
from include.stack.api import AirflowApi
from include.stack.stores.databases import make_databases
from include.training.tracking import tracking_client
from tests.cluster.machine import address_for_pods, pod_template
from tests.cluster.namespace import Cluster, until
from tests.conftest import CALM
from tests.homes import forget_home
from tests.integration.s3.conftest import forget
from tests.loop.leaks import accounts
from tests.loop.probe import PROBE, PROBES
from tests.ports import free_port
from tests.stores import Postgres, Redis, settings_on

FLIGHTS = get_project("flights")
# With only four weeks, no candidate beats the baseline. The gate would refuse, and nothing would be
# deployed, scored or served.
BEGIN, FIRST, SECOND = (datetime(*day, 10, tzinfo=UTC) for day in ((2012, 12, 30), (2013, 2, 12), (2013, 2, 15)))
STAGES = ("ingest", "build_features", "train", "deploy", "score", "monitor")
STEPS = (
    ReplayStep("history", BEGIN, FIRST, first_model=True),
    ReplayStep("three days", FIRST, SECOND, bad_files=("negative_distance", "missing_column")),
)


class Silent:
    step = stage = note = staticmethod(lambda _: None)


@dataclass(frozen=True)
class House:
    """A running stack. This process uses its home.

    Attributes:
        kind: name of the stack in comparisons: "files", "s3", "real" or "killed".
    """

    kind: str
    settings: Settings
    api: AirflowApi


@contextmanager
def a_house(
    kind: str,
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    s3=None,
    cluster: Cluster | None = None,
    servers=(),
    environment: Mapping[str, str] | None = None,
) -> Iterator[House]:
    """Start a stack on files, or on the stores and the cluster that are given.

    With ``s3``, data is stored on S3. With ``cluster``, training steps are pods. With ``servers``,
    the databases are on Postgres and Redis.
    """
    for name in [name for name in os.environ if name.startswith(("AWS_", "AIRFLOW_CONN_", "MLFLOW_S3_"))]:
        patch.delenv(name)
    shutil.copytree(REPOSITORY / "dags", folder / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "dags" / "probe.py").write_text(PROBE)
    ports = {name: free_port("") for name in ("airflow_port", "mlflow_port", "serving_port")}
    # The tests kill and start processes themselves.
    settings = Settings(
        home=folder / "home", dags_folder=folder / "dags", projects="flights", parallelism=3, restart=False, **ports
    )
    given = {}
    if s3:
        bucket, given = s3.make_bucket(), s3.variables
        settings = settings.model_copy(
            update={
                "data_root": f"s3://{bucket}/data",
                "storage_connection": "airloop_store",
                "remote_logs": f"s3://{bucket}/task-logs",
                **accounts(),
            }
        )
    if cluster:
        settings = settings.model_copy(update=on_pods(cluster, given | mlflow_credentials(settings), folder))
        patch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    if servers:
        settings = on_servers(settings, *servers)
    probe = {"AIRFLOW_CONN_PROBE": f"http://somebody:{PROBES}@example.org"}
    for name, value in {
        **settings.environment(),
        **given,
        **probe,
        **CALM,
        **(environment or {}),
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
    }.items():
        patch.setenv(name, value)
    forget_all()
    up = airloop("up")
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        api = AirflowApi.from_settings(settings)
        api.wait_for_dags([f"flights__{stage}" for stage in (*STAGES, "probe")], timeout=120)
        yield House(kind, settings, api)
    finally:
        airloop("down")
        patch.undo()
        forget_all()


def replay(house: House) -> dict:
    """Replay six weeks with a first model, then three more days.

    Return the results that must be the same on every store.
    """
    records = Replay(FLIGHTS, house.api, Silent()).run(list(STEPS))
    assert records[0].trainings[0]["state"] == "deployed", ledger.decisions("flights", "gate")
    assert records[0].serving_asked >= 10 and records[0].serving_agreed == records[0].serving_asked
    assert records[1].monitor["labels"] > 1000
    return ended(records)


class Endings:
    """The result of the replay on each kind of store, shared by all processes of a test run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, kind: str, ended: dict | None) -> None:
        """Store the result.

        None means that the replay failed, so that other tests do not wait for it.
        """
        whole = self.folder / f"ended-{kind}.partial"
        whole.write_bytes(pickle.dumps(ended))
        whole.rename(self.folder / f"ended-{kind}")

    @contextmanager
    def guarantee(self, kind: str) -> Iterator[None]:
        """Guarantee that a result exists afterwards, even if the block fails."""
        try:
            yield
        finally:
            if not (self.folder / f"ended-{kind}").exists():
                self.keep(kind, None)

    def of(self, kind: str, *, request: pytest.FixtureRequest) -> dict:
        """Wait for the result and return it. Skip the test if no test of this run produces it."""
        if any(
            item.name.startswith("test_the_loop_closes") and item.name.endswith(f"[{kind}]")
            for item in request.session.items
        ):
            until((self.folder / f"ended-{kind}").exists, 1500, f"the end of the loop on {kind}")
            result = pickle.loads((self.folder / f"ended-{kind}").read_bytes())
            if result is not None:
                return result
        pytest.skip(f"the loop did not end on {kind} in this run; run tests/loop whole")


def ends_alike(other: dict, files: dict) -> None:
    """Assert that tables, versions, decisions and metrics are equal."""
    # Ensures that the results are not empty.
    assert files["tables"]["schedule"][1] > 20_000 and files["gate"] and len(files["predictions"]) > 1000
    for what in ("tables", "training sets", "versions", "deploy", "files", "refused"):
        assert other[what] == files[what], what
    assert [(verdict, cutoff) for verdict, _, cutoff in other["gate"]] == [
        (verdict, cutoff) for verdict, _, cutoff in files["gate"]
    ]
    for what in ("figures", "monitor"):
        ours, theirs = numbers(other[what]), numbers(files[what])
        pairs = {name: (ours.get(name), theirs.get(name)) for name in ours | theirs}
        # monitor rounds its values to 1e-6. Two values may therefore differ by 1e-6 plus a
        # floating-point error.
        unlike = {
            name: pair
            for name, pair in pairs.items()
            if pair[0] != pytest.approx(pair[1], abs=2e-6 if what == "monitor" else 1e-6, nan_ok=True)
        }
        assert unlike == {}, what
    assert other["predictions"] == pytest.approx(files["predictions"], abs=1e-6)


def airloop(command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "include.cli", command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )


def on_servers(settings: Settings, postgres: Postgres, redis: Redis) -> Settings:
    """Return settings with new databases on these servers. `airloop up` migrates them."""
    stores = settings_on(postgres, redis, settings.home)
    make_databases(stores)
    return settings.model_copy(
        update={
            name: value for name in secret_fields() if name != "database_admin_url" and (value := getattr(stores, name))
        }
    )


def on_pods(cluster: Cluster, credentials: dict[str, str], folder: Path) -> dict:
    """Return settings for training steps as pods that reach MLflow and S3 on this machine.

    The credentials are stored in a secret of the cluster.
    """
    secret = {"metadata": {"name": "airloop-storage"}, "stringData": credentials}
    cluster.api.create_namespaced_secret(cluster.namespace, secret)
    template = folder / "pod.json"
    template.write_text(json.dumps(pod_template(cluster)))
    return {
        "compute": "kubernetes",
        "kubernetes_namespace": cluster.namespace,
        "training_image": cluster.image,
        "pod_template": template,
        "storage_secret": "airloop-storage",
        "host": address_for_pods(cluster),
    }


def forget_all():
    forget()
    # Set by Airloop's client for this stack's server.
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        os.environ.pop(name, None)
    forget_home()


def ended(records) -> dict:
    """Return the results that must be the same on every store."""
    uris = [layout.table(FLIGHTS, name) for name in (*(s.name for s in FLIGHTS.sources), "quarantine")]
    uris += [*(layout.feature_table(FLIGHTS, view) for view in FLIGHTS.feature_views), layout.predictions(FLIGHTS)]
    predicted = tables.open_table(layout.predictions(FLIGHTS)).to_pandas().sort_values("prediction_id")
    requests = ledger.requests("flights")
    sets = [
        path
        for request in requests
        for path in storage.files(layout.training(FLIGHTS, request.id))
        if re.fullmatch(r"training_set-\w+\.json", path.name)
    ]
    return {
        "tables": {uri.rpartition("/")[2]: (tables.table_version(uri), tables.open_table(uri).count()) for uri in uris},
        "training sets": {path.name: json.loads(path.read_text()) for path in sets},
        "gate": [(d["verdict"], d["reasons"], d["cutoff"]) for d in ledger.decisions("flights", "gate")],
        "versions": [(v.version, v.tags["gate"]) for v in tracking_client().search_model_versions("name='flights'")],
        "deploy": [(d["verdict"], d["cutoff"]) for d in ledger.decisions("flights", "deploy")],
        "figures": [
            {who: t[who] for who in ("challenger", "champion", "baseline", "judged_rows", "candidate")}
            for r in records
            for t in r.trainings
        ],
        "monitor": [{k: v for k, v in r.monitor.items() if k not in {"request"}} for r in records],
        "files": sorted((f["source"], f["file"], f["status"], f["sha256"]) for f in ledger.file_records("flights")),
        "refused": [path.name for source in FLIGHTS.sources for path in storage.files(layout.refused(FLIGHTS, source))],
        "predictions": dict(zip(predicted["prediction_id"], predicted["prediction"], strict=True)),
    }


def on_s3(settings: Settings, api: AirflowApi) -> None:
    """Assert that all data is on S3, and that reports and logs are read from there."""
    assert not Path(settings.home / "store").exists()
    root = layout.project_root(FLIGHTS)
    assert [
        kind
        for kind in ("landing", "refused", "tables", "features", "predictions", "training", "reports", "prediction_log")
        if not (root / kind).exists()
    ] == []
    artifacts = [p for p in root.fs.find(storage.path(f"{settings.store}/_mlflow").path) if p.endswith("model.onnx")]
    assert artifacts and not (settings.home / "mlflow" / "artifacts").exists()

    run = next(r for r in api.runs("flights__ingest") if r["state"] in {"success", "failed"})
    browser = httpx.Client(cookies={"_token": api.token}, timeout=60, trust_env=False)
    page = browser.get(
        f"{settings.airflow_url}/airloop/report/flights__ingest/{quote(run['dag_run_id'])}/ingest_schedule/"
    )
    assert page.status_code == 200 and "flights: schedule" in page.text
    assert (
        browser.get(
            f"{settings.airflow_url}/airloop/report/flights__ingest/{quote(run['dag_run_id'])}/..%2fingest_schedule/index.html"
        ).status_code
        == 404
    )

    logs = [p for p in root.fs.find(storage.path(settings.remote_logs).path) if "dag_id=flights__ingest" in p]
    assert logs
    shutil.rmtree(settings.home / "airflow" / "logs" / "dag_id=flights__ingest")  # as on another machine
    text = json.dumps(
        api.call("GET", f"dags/flights__ingest/dagRuns/{quote(run['dag_run_id'])}/taskInstances/ingest_schedule/logs/1")
    )
    assert "s3://" in text and "missing_column" in text, text[:2000]


def numbers(content, name: str = "") -> dict[str, object]:
    """Flatten nested values into one dictionary."""
    if isinstance(content, dict):
        return {k: v for key, value in content.items() for k, v in numbers(value, f"{name}.{key}").items()}
    if isinstance(content, list):
        return {k: v for i, value in enumerate(content) for k, v in numbers(value, f"{name}[{i}]").items()}
    return {name: content}
