"""The whole loop through a real stack: on files with processes; on S3, with pods where there is a cluster; on S3, Postgres and Redis, with processes; and
on those once more while each server and each part of Airflow is killed in the middle. The same tables, versions, decisions and metrics; and the secret is
nowhere to be found.

On S3 everything lies there: landing zone, tables, manifests, training sets, reports, MLflow's artifacts, the tasks' logs, serving's log. Airflow's
processes have a connection and no credentials of their own, so whatever a task writes it writes with what it was handed.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote

import httpx
import psutil
import pytest

from include import ledger
from include.data import layout, storage, tables
from include.demo.replay import Replay, Step
from include.projects import get_project
from include.settings import REPOSITORY, Settings, secret_fields
from include.stack.access import mlflow_credentials
from include.stack.api import AirflowApi
from include.stack.databases import make_databases
from include.stack.processes import ProcessBook
from include.training.tracking import tracking_client
from tests.cluster.conftest import Cluster, address_for_pods, pod_template, until
from tests.integration.s3.conftest import ACCESS_KEY, SECRET_KEY, forget
from tests.loop.leaks import accounts, error_answers, nothing_leaked, secrets_of
from tests.stores import Postgres, Redis, settings_on

FLIGHTS = get_project("flights")
# Of four weeks no candidate beats the baseline: the gate would refuse, and nothing would be deployed, scored or served.
BEGIN, FIRST, SECOND = (datetime(*day, 10, tzinfo=UTC) for day in ((2012, 12, 30), (2013, 2, 12), (2013, 2, 15)))
SERVERS = {"postgres": "postgres_server", "redis": "redis_server", "s3": "s3"}
# Who is killed, and what is being done at that moment. The first five before there is a champion, the others when there is one to answer.
KILLS = (
    ("s3", ("ingest ",)),
    ("redis", ("build_features validate", "build_features publish", "build_features materialize")),
    ("triggerer", ("build_features ", "train ")),
    ("postgres", ("train fit",)),
    ("mlflow", ("train evaluate", "train apply_gate", "train choose_refit", "train refit", "train register")),
    ("mlflow", ("score ", "monitor ")),
    ("scheduler", ("score ", "monitor ")),
    ("postgres", ("score ", "monitor ")),
)
AWAY_S = 8
EVERYTHING_GIVEN = dict.fromkeys(FLIGHTS.inputs.numeric, 1.0) | {"origin": "EWR", "carrier": "UA"}
STAGES = ("ingest", "build_features", "train", "deploy", "score", "monitor")
PROBE = '''
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task

from include.dag_kit.defaults import default_args
from include.projects import get_project


@dag(dag_id="flights__probe", schedule=None, default_args=default_args(get_project("flights")) | {"retries": 0}, doc_md="test")
def probe():
    @task(trigger_rule="all_done")
    def tell() -> list:
        """What a careless task does: prints and logs all that it has."""
        import logging
        import os

        print("printed", dict(os.environ))
        for name, value in os.environ.items():
            logging.getLogger(__name__).warning("logged %s %s", name, value)
        return sorted(os.environ)

    @task
    def fail():
        """An error that tells what it was tried with, as some libraries' do."""
        import os

        from include.settings import get_settings, secret_fields

        has = {name: value.get_secret_value() for name in secret_fields() if (value := getattr(get_settings(), name))}
        raise ConnectionError(f"cannot log in with {has} and {dict(os.environ)}")

    @task
    def mapped(number: int) -> str:
        import os

        return os.environ.get("AWS_ACCESS_KEY_ID", "none")

    told = "echo {{ conn.probe.password }} {{ conn.probe.get_uri() }} $MLFLOW_TRACKING_PASSWORD"
    render = BashOperator(task_id="render", bash_command=told, do_xcom_push=False)  # what a task returns is kept as it is
    [fail(), render] >> tell()
    mapped.expand(number=[1, 2])


probe()
'''

PROBES = f"of-the-probe-{token_hex(16)}"  # a connection's password, as somebody's own DAG has one

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]
ENDED: dict[str, dict] = {}  # store -> how the loop ended there


class Silent:
    step = stage = said = staticmethod(lambda _: None)


KILLED = pytest.mark.skipif(
    not os.environ.get("AIRLOOP_TEST_LOOP_ON_SERVERS"), reason="one more whole loop, each server killed in its middle: AIRLOOP_TEST_LOOP_ON_SERVERS=yes runs it"
)


@pytest.fixture(params=["files", "s3", "real", pytest.param("killed", marks=KILLED)])
def stack(request, tmp_path, monkeypatch):
    """A stack of its own, up, on the store of that kind, and this process living in its home."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AIRFLOW_CONN_", "MLFLOW_S3_"))]:
        monkeypatch.delenv(name)
    shutil.copytree(REPOSITORY / "dags", tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "dags" / "probe.py").write_text(PROBE)
    ports = {name: free_port() for name in ("airflow_port", "mlflow_port", "serving_port")}
    settings = Settings(home=tmp_path / "home", dags_folder=tmp_path / "dags", projects="flights", parallelism=3, **ports)
    given = {}
    if request.param != "files":
        s3 = request.getfixturevalue("s3")
        some_cluster = request.getfixturevalue("some_cluster") if request.param == "s3" else None
        bucket = s3.make_bucket()
        settings = settings.model_copy(
            update={"data_root": f"s3://{bucket}/data", "storage_connection": "airloop_store", "remote_logs": f"s3://{bucket}/task-logs", **accounts()}
        )
        given = s3.variables
        if some_cluster:
            settings = settings.model_copy(update=on_pods(some_cluster, given | mlflow_credentials(settings), tmp_path))
            monkeypatch.setenv("KUBECONFIG", str(some_cluster.kubeconfig))
    if request.param in ("real", "killed"):
        settings = on_servers(settings, request.getfixturevalue("postgres_server"), request.getfixturevalue("redis_server"))
    probe = {"AIRFLOW_CONN_PROBE": f"http://somebody:{PROBES}@example.org"}
    for name, value in {**settings.environment(), **given, **probe, "MLFLOW_TRACKING_URI": settings.mlflow_url}.items():
        monkeypatch.setenv(name, value)
    forget_all()
    up = airloop("up")
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        api = AirflowApi.of(settings)
        api.wait_for_dags([f"flights__{stage}" for stage in (*STAGES, "probe")], timeout=120)
        yield request.param, settings, api
    finally:
        airloop("down")
        monkeypatch.undo()
        forget_all()


def airloop(command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "include.cli", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=1000, check=False)


def on_servers(settings: Settings, postgres: Postgres, redis: Redis) -> Settings:
    """With databases of its own on these servers; `airloop up` migrates them."""
    stores = settings_on(postgres, redis, settings.home)
    make_databases(stores)
    return settings.model_copy(update={name: value for name in secret_fields() if name != "database_admin_url" and (value := getattr(stores, name))})


def on_pods(cluster: Cluster, credentials: dict[str, str], folder: Path) -> dict:
    """The settings by which training steps are pods that reach MLflow and S3 on this machine; their credentials are a secret of that cluster."""
    secret = {"metadata": {"name": "airloop-storage"}, "stringData": credentials}
    cluster.api.create_namespaced_secret(cluster.namespace, secret)
    template = folder / "pod.json"
    template.write_text(json.dumps(pod_template()))
    return {
        "compute": "kubernetes", "kubernetes_namespace": cluster.namespace, "training_image": cluster.image, "pod_template": template,
        "storage_secret": "airloop-storage", "host": address_for_pods(cluster),
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def forget_all():
    forget()
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):  # the house's client put them there, for this stack's server
        os.environ.pop(name, None)
    if (store := sys.modules.get("include.features.store")) is not None:
        store.feature_store.cache_clear()


@contextmanager
def as_it_is(kind: str, settings: Settings, request) -> Iterator[None]:
    """What happens to the loop from outside while it runs."""
    if settings.compute == "kubernetes":
        with evictions(request.getfixturevalue("some_cluster"), "fit-torch-mlp", "refit"):
            yield
    elif kind == "killed":
        servers = {name: request.getfixturevalue(fixture) for name, fixture in SERVERS.items()}
        with kills(settings, servers):
            yield
    else:
        yield


def test_the_loop_closes(stack, request):
    kind, settings, api = stack
    on_pods = settings.compute == "kubernetes"
    with as_it_is(kind, settings, request):
        records = Replay(FLIGHTS, api, Silent()).run(
            [Step("history", BEGIN, FIRST, first_model=True), Step("three days", FIRST, SECOND, bad_files=("missing_column",))]
        )
    assert records[0].trainings[0]["state"] == "deployed", ledger.decisions("flights", "gate")
    assert records[0].serving_asked >= 10 and records[0].serving_agreed == records[0].serving_asked
    assert records[1].monitor["labels"] > 1000
    ENDED[kind] = ended(records)
    if on_pods:
        pods = pods_of_steps()
        assert pods.keys() >= {"fit-baseline_rule", "fit-hist_gradient_boosting", "fit-torch_mlp", "evaluate", "refit"}
        for step in ("fit-torch_mlp", "refit"):
            first, last = pods.pop(step)
            assert (first in ("evicted", "deleted"), last) == (True, "succeeded"), first  # deleted: it was gone before it was looked at again
        assert all(ended == ["succeeded"] for ended in pods.values()), pods
    if kind != "files":
        on_s3(settings, api)
    nothing_is_told(kind, settings, api, None if kind == "files" else request.getfixturevalue("s3"))
    if kind in ("real", "killed"):
        assert [file.name for file in settings.home.rglob("*.db")] == []  # nothing fell back to a file


@contextmanager
def kills(settings: Settings, servers: dict) -> Iterator[None]:
    """Kills each of ``KILLS`` with -9 when its moment has come, leaves it away for a while, and starts it again as an operator would.

    From the first champion on an application asks serving all the time, and must be answered, whoever is away.
    """
    killed, not_answered, over = [], [], threading.Event()
    answered: list[str] = []
    api = AirflowApi.of(settings)

    def kill_in_turn() -> None:
        for who, moments in KILLS:
            while not over.wait(0.2) and not works_at(api, moments):
                start_what_died(settings)
            if over.is_set():
                return
            print(f"kill -9 {who}", flush=True)
            if who in servers:
                servers[who].kill()
            else:
                kill_whole(settings, who)
            time.sleep(AWAY_S)
            if who in servers:
                servers[who].start()
            start_what_died(settings)
            killed.append(who)
            print(f"{who} is back", flush=True)
        while not over.wait(2):
            start_what_died(settings)

    def ask_serving() -> None:
        key = {"X-API-Key": settings.serving_api_key.get_secret_value()} if settings.serving_api_key else {}
        with httpx.Client(base_url=settings.serving_url, headers=key, timeout=60, trust_env=False) as client:
            while not over.wait(0.5):
                state = client.get(f"/models/{FLIGHTS.name}")
                if not answered and not (state.is_success and state.json()["version"]):
                    continue  # no champion yet
                answer = client.post(f"/models/{FLIGHTS.name}/predict", json={"instances": [EVERYTHING_GIVEN]})
                (not_answered if answer.is_error else answered).append(answer.text)

    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(kill_in_turn), pool.submit(ask_serving)]
        try:
            yield
        finally:
            over.set()
            for done in watching:
                done.result(1200)
    assert killed == [who for who, _ in KILLS]
    assert len(answered) > 20 and not_answered == []


def works_at(api: AirflowApi, moments: tuple[str, ...]) -> bool:
    """Whether a task works right now whose DAG's stage and id begin with one of these words."""
    try:
        running = api.call("GET", "dags/~/dagRuns/~/taskInstances", params={"state": "running", "limit": 50})["task_instances"]
    except httpx.HTTPError:
        return False
    return any(f"{one['dag_id'].partition('__')[2]} {one['task_id']}".startswith(moments) for one in running)


def start_what_died(settings: Settings) -> None:
    """What a container's restart policy does: Airflow's parts end by themselves when their database is away for long."""
    deadline = time.monotonic() + 600
    while any(record.process() is None for record in ProcessBook(settings.home, REPOSITORY).records().values()):
        up = airloop("up")
        assert time.monotonic() < deadline, up.stdout + up.stderr


def kill_whole(settings: Settings, service: str) -> None:
    """The service's process and all that it has started."""
    process = ProcessBook(settings.home, REPOSITORY).records()[service].process()
    assert process
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


@contextmanager
def evictions(cluster: Cluster, *steps: str):
    """Evicts the first pod of each of these steps, as soon as it runs."""
    left, done = set(steps), threading.Event()

    def look() -> None:
        while left and not done.wait(0.2):
            for pod in cluster.pods():
                found = next((step for step in left if f"-{step}-" in pod.metadata.name), None)
                if found and pod.status.phase == "Running":
                    cluster.evict(pod)
                    left.remove(found)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not left, f"no pod of {left} was seen running"


def ended(records) -> dict:
    """What must be the same wherever the data lies."""
    uris = [layout.table(FLIGHTS, name) for name in (*(s.name for s in FLIGHTS.sources), "quarantine")]
    uris += [*(layout.feature_table(FLIGHTS, view) for view in FLIGHTS.feature_views), layout.predictions(FLIGHTS)]
    predicted = tables.open_table(layout.predictions(FLIGHTS)).to_pandas().sort_values("prediction_id")
    requests = ledger.requests("flights")
    sets = [path for request in requests for path in storage.files(layout.training(FLIGHTS, request.id)) if re.fullmatch(r"training_set-\w+\.json", path.name)]
    return {
        "tables": {uri.rpartition("/")[2]: (tables.table_version(uri), tables.open_table(uri).count()) for uri in uris},
        "training sets": {path.name: json.loads(path.read_text()) for path in sets},
        "gate": [(d["verdict"], d["reasons"], d["cutoff"]) for d in ledger.decisions("flights", "gate")],
        "versions": [(v.version, v.tags["gate"]) for v in tracking_client().search_model_versions("name='flights'")],
        "deploy": [(d["verdict"], d["cutoff"]) for d in ledger.decisions("flights", "deploy")],
        "figures": [{who: t[who] for who in ("challenger", "champion", "baseline", "judged_rows", "candidate")} for r in records for t in r.trainings],
        "monitor": [{k: v for k, v in r.monitor.items() if k not in {"request"}} for r in records],
        "files": sorted((f["source"], f["file"], f["status"], f["sha256"]) for f in ledger.file_records("flights")),
        "refused": [path.name for source in FLIGHTS.sources for path in storage.files(layout.refused(FLIGHTS, source))],
        "predictions": dict(zip(predicted["prediction_id"], predicted["prediction"], strict=True)),
    }


def pods_of_steps() -> dict[str, list[str]]:
    """Training step -> how its pods ended."""
    kept = [path for request in ledger.requests("flights") for path in storage.files(layout.training(FLIGHTS, request.id)) if path.name.endswith(".pods.json")]
    costs = {path.name.removesuffix(".pods.json"): json.loads(path.read_text()).values() for path in kept}
    return {step: [pod["ended"] for pod in sorted(pods, key=lambda pod: pod["made"])] for step, pods in costs.items()}


def on_s3(settings: Settings, api: AirflowApi) -> None:
    """Everything lies there, and what people look at comes from there."""
    assert not Path(settings.home / "store").exists()
    root = layout.project_root(FLIGHTS)
    assert [
        kind for kind in ("landing", "refused", "tables", "features", "predictions", "training", "reports", "prediction_log") if not (root / kind).exists()
    ] == []
    artifacts = [p for p in root.fs.find(storage.path(f"{settings.store}/_mlflow").path) if p.endswith("model.onnx")]
    assert artifacts and not (settings.home / "mlflow" / "artifacts").exists()

    run = next(r for r in api.runs("flights__ingest") if r["state"] in {"success", "failed"})
    browser = httpx.Client(cookies={"_token": api.token}, trust_env=False)
    page = browser.get(f"{settings.airflow_url}/airloop/report/flights__ingest/{quote(run['dag_run_id'])}/ingest_schedule/")
    assert page.status_code == 200 and "flights: schedule" in page.text
    assert browser.get(f"{settings.airflow_url}/airloop/report/flights__ingest/{quote(run['dag_run_id'])}/..%2fingest_schedule/index.html").status_code == 404

    logs = [p for p in root.fs.find(storage.path(settings.remote_logs).path) if "dag_id=flights__ingest" in p]
    assert logs
    shutil.rmtree(settings.home / "airflow" / "logs" / "dag_id=flights__ingest")  # another machine's, say
    text = json.dumps(api.call("GET", f"dags/flights__ingest/dagRuns/{quote(run['dag_run_id'])}/taskInstances/ingest_schedule/logs/1"))
    assert "s3://" in text and "missing_column" in text, text[:2000]


def nothing_is_told(kind: str, settings: Settings, api: AirflowApi, s3) -> None:
    """After a task that says all that it knows, and asking for what there is not: no secret is in a log, a rendered template, an XCom or a DAG's params, in
    MLflow, in serving's prediction log, in what any server answers, or on a command line."""
    run_id = api.trigger("flights__probe")
    assert api.wait("flights__probe", run_id, timeout=600) == "success"
    of_task = f"dags/flights__probe/dagRuns/{quote(run_id)}/taskInstances"
    told = api.call("GET", f"{of_task}/tell/xcomEntries/return_value")["value"]
    secrets = secrets_of(settings, connection=PROBES)
    rendered = api.call("GET", f"{of_task}/render")["rendered_fields"]["bash_command"]
    assert rendered.startswith("echo ***"), rendered
    texts = error_answers(settings, api, "flights")
    if kind == "files":
        nothing_leaked(settings, secrets, [settings.home], texts)
        return
    handed = {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
        "AWS_ALLOW_HTTP",
        "AWS_CONDITIONAL_PUT",
        "MLFLOW_TRACKING_PASSWORD",
    }
    others = {f"AIRLOOP_{name}" for name in ("AIRFLOW_ADMIN_PASSWORD", "AIRFLOW_FERNET_KEY", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_READER_PASSWORD")}
    assert handed <= set(told) and not others & set(told)  # a task has what it needs, and nothing of what others need
    mapped = api.call("GET", f"{of_task}/mapped/xcomEntries/return_value", params={"map_index": 1})["value"]
    assert mapped == ACCESS_KEY

    everything, logs = [settings.home, s3.folder], s3.folder / storage.path(settings.remote_logs).path
    until(lambda: holding("printed", logs), 60, "the log of a task that has ended, which is uploaded after that")
    assert holding(ACCESS_KEY, *everything), "this way of looking finds nothing"  # it is no secret, and stands in the XCom above
    nothing_leaked(settings, secrets | {"of the store": SECRET_KEY}, everything, texts)


def holding(text: str, *folders: Path) -> list[str]:
    return [str(file) for folder in folders for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


@pytest.mark.parametrize("kind", ["s3", "real", "killed"])
def test_it_ends_as_on_files(kind):
    if not {"files", kind} <= ENDED.keys():
        pytest.skip("the loop was not run on both stores; run this file whole")
    files, other = ENDED["files"], ENDED[kind]
    assert files["tables"]["schedule"][1] > 20_000 and files["gate"] and len(files["predictions"]) > 1000  # nothing is compared with nothing
    for what in ("tables", "training sets", "versions", "deploy", "files", "refused"):
        assert other[what] == files[what], what
    assert [(verdict, cutoff) for verdict, _, cutoff in other["gate"]] == [(verdict, cutoff) for verdict, _, cutoff in files["gate"]]
    assert numbers(other["figures"]) == pytest.approx(numbers(files["figures"]), abs=1e-6, nan_ok=True)
    assert numbers(other["monitor"]) == pytest.approx(numbers(files["monitor"]), abs=1e-6, nan_ok=True)
    assert other["predictions"] == pytest.approx(files["predictions"], abs=1e-6)


def numbers(content, name: str = "") -> dict[str, object]:
    """Nested figures as one flat dictionary."""
    if isinstance(content, dict):
        return {k: v for key, value in content.items() for k, v in numbers(value, f"{name}.{key}").items()}
    if isinstance(content, list):
        return {k: v for i, value in enumerate(content) for k, v in numbers(value, f"{name}[{i}]").items()}
    return {name: content}
