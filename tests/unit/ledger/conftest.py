"""The ledger's tests run on both of its stores: SQLite, and a real Postgres (Debian's, started as an unprivileged user on a free port)."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg2
import pytest

from include.settings import get_settings

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def as_nobody(command: list[str], folder: Path) -> list[str]:
    """Postgres refuses to run as root."""
    if os.getuid() != 0:
        return command
    shutil.chown(folder, "nobody")
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    """URL of a server of these tests' own, without a database."""
    if not BINARIES:
        pytest.skip("no Postgres in /usr/lib/postgresql (Debian's package postgresql)")
    with tempfile.TemporaryDirectory(prefix="airloop-pg-") as root:
        Path(root).chmod(0o755)
        data, log = Path(root) / "data", Path(root) / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        init = [str(BINARIES[-1] / "initdb"), "-D", str(data), "-U", "airloop", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(as_nobody(init, Path(root)), check=True, capture_output=True, cwd=root)
        serve = [str(BINARIES[-1] / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", root, "-c", "fsync=off"]
        with log.open("wb") as output:
            server = subprocess.Popen(as_nobody(serve, Path(root)), stdout=output, stderr=output, cwd=root)
        try:
            url = f"postgresql://airloop@127.0.0.1:{port}"
            for _ in range(600):
                try:
                    psycopg2.connect(f"{url}/postgres").close()
                    break
                except psycopg2.OperationalError:
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.1)
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # at once, whoever is still connected
            server.wait(30)


@pytest.fixture
def postgres_url(postgres_server, request):
    """URL of an empty database."""
    connection = psycopg2.connect(f"{postgres_server}/postgres")
    connection.autocommit = True
    name = f"t{abs(hash(request.node.nodeid)) % 10**9}"
    connection.cursor().execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"{postgres_server}/{name}"


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request, tmp_path) -> str:
    """An empty database of each kind."""
    return f"sqlite:///{tmp_path / 'ledger.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def own_ledger(ledger_url, tmp_path, monkeypatch):
    """The settings name it."""
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("AIRLOOP_LEDGER_URL", ledger_url)
    get_settings.cache_clear()
    yield ledger_url
    get_settings.cache_clear()
