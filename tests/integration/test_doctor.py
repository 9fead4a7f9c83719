"""`airloop doctor` against real stores and servers with real faults.

Each check passes before its fault is introduced.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psycopg2
import pytest
from sqlalchemy import create_engine, make_url, text

from include import ledger
from include.operations.doctor import machine, servers, stores, wiring
from include.projects import get_project
from include.settings import REPOSITORY, Settings
from include.stack.environment import airflow_environment
from include.stack.stores.databases import make_databases
from tests.homes import forget_home
from tests.integration.published import publish
from tests.integration.s3.conftest import ACCESS_KEY, PROGRAM, SECRET_KEY, clean_variables, forget  # noqa: F401
from tests.ports import free_port
from tests.serving.conftest import features, migrated  # noqa: F401
from tests.serving.harness import NAME, FeatureRepository, Process, Registry, serving_process
from tests.stores import Postgres, Redis, running
from tests.waiting import wait_for

FLIGHTS = get_project("flights")
NOON, LATER = "2013-03-01T12:00:00Z", "2013-03-02T12:00:00Z"
pytestmark = pytest.mark.timeout(900)


def faults(findings, name: str | None = None) -> list[tuple[str, str]]:
    """Return (what, fix) of each fault. Every fault must name a fix."""
    wrong = [(f.what, f.fix) for f in findings if f.state == "fault" and name in (None, f.name)]
    assert all(fix for _, fix in wrong)
    return wrong


def only(findings, name: str | None = None) -> tuple[str, str]:
    (one,) = faults(findings, name)
    return one


def doctor(settings: Settings, **more: str) -> subprocess.CompletedProcess:
    """Run the command as a user does."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AIRLOOP_")} | settings.environment() | more
    return subprocess.run(
        [sys.executable, "-m", "include.cli", "doctor"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def use(monkeypatch):
    """Make this process use the given settings."""

    def enter(settings: Settings) -> Settings:
        for name in [name for name in os.environ if name.startswith("AIRLOOP_")]:
            monkeypatch.delenv(name)
        for name, value in settings.environment().items():
            monkeypatch.setenv(name, value)
        forget_home()
        return settings

    yield enter
    monkeypatch.undo()
    forget_home()


# --- databases ------------------------------------------------------------------------------------


@pytest.fixture
def on_postgres(tmp_path):
    """Return settings with created but unmigrated databases, and the server that holds them.

    The test may kill the server.
    """
    with running(Postgres) as server:
        settings = Settings(home=tmp_path, database_admin_url=server.admin_url, **server.urls())
        make_databases(settings)
        yield settings, server


def test_databases_away_with_a_wrong_password_not_made_or_not_migrated(on_postgres):
    settings, server = on_postgres
    behind = {f.name: f for f in stores.databases(settings)}
    assert {f.state for f in behind.values()} == {"fault"}
    assert (
        "it has no tables, this code wants 0005" in behind["ledger"].what
        and "`airloop migrate`" in behind["ledger"].fix
    )
    ledger.migrate(settings.ledger)
    well = {f.name: f for f in stores.databases(settings)}
    assert well["ledger"].state == "ok" and well["airflow"].state == "fault"
    owner = create_engine(settings.ledger.replace("postgresql:", "postgresql+psycopg2:"))
    with owner.begin() as connection:
        connection.execute(text("UPDATE ledger_version SET version_num = '0001'"))
    what, fix = only(stores.databases(settings), "ledger")
    assert "its tables are at 0001, this code wants 0005" in what and "`airloop migrate`" in fix
    owner.dispose()

    user = make_url(settings.ledger).username
    wrong = settings.model_copy(
        update={"ledger_url": _secret(settings.ledger.replace(f"://{user}:", f"://{user}:not-"))}
    )
    what, fix = only(stores.databases(wrong), "ledger")
    assert f"wrong password for user {user}" in what and "AIRLOOP_LEDGER_URL" in fix and "not-" not in what
    missing = settings.model_copy(update={"ledger_url": _secret(settings.ledger.rpartition("/")[0] + "/no_such")})
    what, fix = only(stores.databases(missing), "ledger")
    assert "does not exist" in what and "`airloop create-databases`" in fix

    with psycopg2.connect(server.admin_url) as admin:
        admin.autocommit = True
        admin.cursor().execute(
            f"ALTER DATABASE {make_url(settings.ledger).database} SET default_transaction_read_only = on"
        )
    assert "refuses writes" in faults(stores.databases(settings), "ledger")[0][0]

    server.kill()
    what, fix = only(stores.databases(settings), "ledger")
    assert "does not answer" in what and f"127.0.0.1:{server.port}" in what and "start Postgres" in fix
    shown = doctor(settings)
    assert shown.returncode == 1 and "does not answer" in shown.stdout and "to do: start Postgres" in shown.stdout, (
        shown.stdout + shown.stderr
    )
    assert "Traceback" not in shown.stdout + shown.stderr
    assert not any(
        url.rpartition("@")[0].rpartition(":")[2] in shown.stdout for url in (settings.ledger, settings.mlflow_database)
    )


def _secret(text_: str):
    from pydantic import SecretStr

    return SecretStr(text_)


# --- the local machine ----------------------------------------------------------------------------


def test_a_placeholder_secret_and_a_missing_one_are_named(tmp_path):
    placeholder = doctor(Settings(home=tmp_path), AIRLOOP_PROFILE="compose", AIRLOOP_AIRFLOW_JWT_SECRET="CHANGE_ME")
    assert placeholder.returncode == 1
    assert (
        "AIRLOOP_AIRFLOW_JWT_SECRET" in placeholder.stdout
        and "to do:" in placeholder.stdout
        and "Traceback" not in placeholder.stderr
    )
    bare = Settings(home=tmp_path).model_copy(update={"profile": "compose"})
    what, fix = only(machine.secrets_given(bare), "settings")
    assert "AIRLOOP_LEDGER_URL" in what and "make secrets" in fix


def test_a_disk_that_is_nearly_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here (needs root and CAP_SYS_ADMIN)")
    try:
        settings = Settings(home=disk / "home")
        settings.home.mkdir()
        assert faults(machine.disk(settings)) == []
        with (disk / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, 120 * 2**20)
        what, fix = only(machine.disk(settings))
        assert "nearly full" in what and "AIRLOOP_HOME" in what and "make room" in fix
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_secrets_that_others_can_read(tmp_path):
    settings = Settings(home=tmp_path)
    airflow_environment(settings)  # generates them
    assert faults(machine.permissions(settings)) == []
    (tmp_path / "airflow" / "secrets.json").chmod(0o644)
    what, fix = only(machine.permissions(settings))
    assert "can be read by others (644)" in what and fix == f"chmod 600 {tmp_path / 'airflow' / 'secrets.json'}"


# --- the object store -----------------------------------------------------------------------------


@contextmanager
def s3_server(folder: Path, *options: str):
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    server = subprocess.Popen(
        [PROGRAM, "--port", address, *options, "posix", str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: _answers(f"http://{address}"), 60)
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait(10)


def _answers(url: str) -> bool:
    try:
        httpx.get(url, trust_env=False)
    except httpx.TransportError:
        return False
    return True


@pytest.mark.skipif(not PROGRAM, reason="no S3 server: put versitygw on the PATH, or name it in AIRLOOP_TEST_VERSITYGW")
def test_buckets_that_are_missing_read_only_or_away(use, clean_variables, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    settings = use(Settings(home=tmp_path / "home", data_root="s3://bucket/data"))

    def look(endpoint: str, root: str = "s3://bucket/data"):
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }.items():
            monkeypatch.setenv(name, value)
        forget()
        return list(stores.object_store(settings.model_copy(update={"data_root": root})))

    with s3_server(tmp_path / "s3") as endpoint:
        assert faults(look(endpoint)) == []
        assert not list((tmp_path / "s3" / "bucket").rglob("_doctor/*"))  # nothing is left behind
        what, fix = only(look(endpoint, "s3://nobodys-bucket/data"))
        assert (
            "AIRLOOP_DATA_ROOT is s3://nobodys-bucket/data" in what
            and "there is no such bucket" in what
            and "make the bucket" in fix
        )
    with s3_server(tmp_path / "s3", "--readonly") as endpoint:
        what, fix = only(look(endpoint))
        assert (
            "is read-only or full" in what
            and f"access key {ACCESS_KEY}" in what
            and "PutObject" in fix
            and SECRET_KEY not in what
        )
    what, fix = only(look(endpoint))
    assert "the endpoint does not answer" in what and "start it" in fix


# --- the online store -----------------------------------------------------------------------------


def test_redis_away_or_with_another_password(tmp_path):
    with running(Redis) as server:
        settings = Settings(home=tmp_path, online_store_url=server.url())
        assert faults(stores.online_store(settings)) == []
        other = settings.model_copy(
            update={"online_store_url": _secret(server.url().replace(server.password, "another"))}
        )
        what, fix = only(stores.online_store(other))
        assert "WRONGPASS" in what or "invalid username-password" in what
        assert "AIRLOOP_ONLINE_STORE_URL" in fix and "another" not in what
        server.kill()
        what, fix = only(stores.online_store(settings))
        assert "does not answer" in what and f"127.0.0.1:{server.port}" in what and "start Redis" in fix


@pytest.fixture(params=["sqlite", "redis"])
def online(request, use, tmp_path):
    """Return settings with features in an online store, and a function that empties the store."""
    if request.param == "sqlite":
        yield use(Settings(home=tmp_path)), lambda: (tmp_path / "feast" / "online.db").unlink()
        return
    with running(Redis) as server:
        import redis

        url = server.url()
        yield use(Settings(home=tmp_path, online_store_url=url)), lambda: redis.Redis.from_url(url).flushdb()


def test_an_online_store_that_is_stale_or_empty_and_is_filled_again(online):
    settings, empty = online
    publish(NOON, 1.0, online=True)
    findings = list(stores.online_features(settings))
    assert faults(findings) == [] and len([f for f in findings if f.state == "ok"]) == len(FLIGHTS.feature_views)
    publish(LATER, 2.0, online=False)
    wrong = faults(stores.online_features(settings))
    assert len(wrong) == len(FLIGHTS.feature_views) and all(
        "older values than the feature table" in what for what, _ in wrong
    )
    from include.features import build

    build.materialize(FLIGHTS, LATER)
    assert faults(stores.online_features(settings)) == []

    empty()
    forget_home()
    wrong = faults(stores.online_features(settings))
    # SQLite loses its tables, Redis only its keys.
    assert len(wrong) == len(FLIGHTS.feature_views)
    assert all(re.search("the online store (has nothing|cannot be read)", what) for what, _ in wrong)
    assert wrong[0][1].endswith("fill it again: `airloop materialize flights`")
    assert build.materialize_anew(FLIGHTS) == LATER
    assert faults(stores.online_features(settings)) == []


# --- MLflow and serving ---------------------------------------------------------------------------


class Front:
    """A proxy that changes one part of a real server's answers."""

    def __init__(self, target: str):
        self.version: str | None = None
        self.seconds_off = 0.0
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _hand_on(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kept = {
                    k: v
                    for k, v in self.headers.items()
                    if k.lower() not in {"host", "content-length", "accept-encoding"}
                }
                answer = httpx.request(
                    self.command, target + self.path, content=body, headers=kept, timeout=30, trust_env=False
                )
                content = front.version.encode() if front.version and self.path == "/version" else answer.content
                self.send_response_only(answer.status_code)
                self.send_header("Date", formatdate(time.time() + front.seconds_off, usegmt=True))
                self.send_header("Content-Type", answer.headers.get("content-type", "text/plain"))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_HEAD = _hand_on

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory, migrated):  # noqa: F811
    """Run an MLflow server. Return its process, its database and its registry."""
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(migrated, folder / "mlflow.db")
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--serve-artifacts",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    process = Process(
        ["mlflow", "server", "--workers", "1", *store],
        {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        folder / "mlflow.log",
    )
    process.wait("/health", 300)
    yield process, folder / "mlflow.db", Registry(process.url, folder)
    process.end(signal.SIGKILL)


@pytest.mark.stack
def test_mlflow_of_another_version_with_another_clock_with_a_dangling_alias_or_away(mlflow_server, tmp_path):
    process, database, registry = mlflow_server
    registry.add(bias=1)
    front = Front(process.url)
    settings = Settings(home=tmp_path, mlflow_uri=front.url)
    assert faults(servers.mlflow(settings)) == []

    front.version = "2.22.0"
    what, fix = only(servers.mlflow(settings))
    assert "is MLflow 2.22.0, this code is made for 3.17" in what and fix.startswith("run the server with mlflow==3.17")
    front.version = None
    for seconds, word in ((600, "ahead of"), (-600, "behind")):
        front.seconds_off = seconds
        what, fix = only(servers.mlflow(settings))
        assert word in what and "time server" in fix
    front.seconds_off = 0

    with create_engine(f"sqlite:///{database}").begin() as connection:
        connection.execute(text("UPDATE registered_model_aliases SET version = 99 WHERE alias = 'champion'"))
    what, fix = only(servers.mlflow(settings), "aliases")
    assert (
        f"alias champion of model {NAME} points at version 99, which is not there; there is 1" in what
        and f"start {NAME}__deploy" in fix
    )
    with create_engine(f"sqlite:///{database}").begin() as connection:
        connection.execute(text("UPDATE registered_model_aliases SET version = 1 WHERE alias = 'champion'"))
    assert faults(servers.mlflow(settings)) == []
    away = settings.model_copy(update={"mlflow_uri": f"http://127.0.0.1:{free_port()}"})
    what, fix = only(servers.mlflow(away))
    assert "does not answer" in what and "AIRLOOP_MLFLOW_URI" in fix


@pytest.mark.stack
def test_serving_that_follows_another_registry_or_lags_or_is_away(mlflow_server, features: FeatureRepository, tmp_path):  # noqa: F811
    process, _, registry = mlflow_server
    champion = registry.add(bias=4)
    service = serving_process(tmp_path, process.url, features)
    try:
        service.wait("/ready", 300)
        settings = Settings(home=tmp_path, mlflow_uri=process.url, serving_uri=service.url)
        wait_for(lambda: service.get(f"/models/{NAME}")[1]["version"] == champion, 60)
        assert faults(servers.serving(settings)) == []

        other = Front(process.url)
        what, fix = only(servers.serving(settings.model_copy(update={"mlflow_uri": other.url})))
        assert (
            f"follows the registry at {process.url}, the loop promotes in {other.url}" in what
            and "SERVING_MLFLOW_URI" in fix
        )

        bad = registry.add(bias=5, golden={"predictions": [9e9, 9e9, 9e9]})
        wait_for(lambda: service.get(f"/models/{NAME}")[1]["state"] == "refused", 60)
        what, fix = only(servers.serving(settings))
        assert (
            f"champion of {NAME} is version {bad}, serving answers with {champion}" in what and f"{NAME}__deploy" in fix
        )
    finally:
        service.end()
    what, fix = only(servers.serving(settings))
    assert "does not answer" in what and "AIRLOOP_SERVING_URI" in fix


# --- Airflow's state ------------------------------------------------------------------------------


def test_a_dag_that_does_not_import_and_a_pool_that_is_missing(airflow_home, tmp_path):
    dags = tmp_path / "dags"
    shutil.copytree(REPOSITORY / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    settings = Settings(home=airflow_home, dags_folder=dags, projects="flights", pools="cpu=2")
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(Pool(pool="cpu", slots=2, include_deferred=True))
    findings = list(wiring.wiring(settings))
    assert faults(findings) == [] and "6 DAGs" in next(f.what for f in findings if f.name == "dags")
    with create_session() as session:
        session.query(Pool).filter(Pool.pool == "cpu").delete()
    (dags / "broken.py").write_text("from airflow.sdk import dag\nimport no_such_library\n")
    findings = list(wiring.wiring(settings))
    what, fix = only(findings, "dags")
    assert "broken.py does not import: ModuleNotFoundError: No module named 'no_such_library'" in what
    what, fix = only(findings, "pools")
    assert "there is no pool cpu" in what and "`airloop sync-pools`" in fix
