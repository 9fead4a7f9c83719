"""A real S3 server (versitygw) for the tests of this folder: one process, a bucket of its own for each test.

Its program is named by AIRLOOP_TEST_VERSITYGW, or found on the PATH; without it these tests are skipped.
"""

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import pytest

from include.data import storage
from include.settings import get_settings

PROGRAM = os.environ.get("AIRLOOP_TEST_VERSITYGW") or shutil.which("versitygw")
ACCESS_KEY, SECRET_KEY = "airloop-test", f"secret-{token_hex(16)}"  # nothing else holds this text: where it turns up, it leaked


MISSING = "no S3 server: put versitygw on the PATH, or name it in AIRLOOP_TEST_VERSITYGW"


def pytest_collection_modifyitems(items):
    if PROGRAM:
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.skip(reason=MISSING))


@dataclass(frozen=True)
class S3:
    """The server: where its buckets lie as folders, its address, and the variables by which clients find it."""

    folder: Path
    endpoint: str
    server: subprocess.Popen

    @property
    def variables(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}

    def make_bucket(self) -> str:
        name = f"test-{token_hex(4)}"
        (self.folder / name).mkdir()
        return name


@pytest.fixture(scope="session")
def s3_host() -> str:
    """The address of this machine at which the server listens."""
    return "127.0.0.1"


@pytest.fixture(scope="session")
def s3(tmp_path_factory, s3_host):
    if not PROGRAM:
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("s3")
    with socket.socket() as probe:
        probe.bind((s3_host, 0))
        address = f"{s3_host}:{probe.getsockname()[1]}"
    environment = {**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    with (folder.parent / "versitygw.log").open("wb") as log:
        server = subprocess.Popen([PROGRAM, "--port", address, "posix", str(folder)], env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 20
        while not answers(address):
            assert server.poll() is None and time.monotonic() < deadline, (folder.parent / "versitygw.log").read_text()[-2000:]
            time.sleep(0.05)
        yield S3(folder, f"http://{address}", server)
    finally:
        server.terminate()
        server.wait(10)


def answers(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


@pytest.fixture
def clean_variables(monkeypatch):
    """None of this machine's own credentials; what a test's work puts into the environment is gone after it."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AIRFLOW_CONN_", "MLFLOW_S3_"))]:
        monkeypatch.delenv(name)
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        if name.startswith(("AWS_", "MLFLOW_S3_")):
            del os.environ[name]


@pytest.fixture
def s3_store(s3, clean_variables, fresh_store, monkeypatch):
    """A store in a bucket of its own, with the standard variables in the environment. Gives its URI."""
    root = f"s3://{s3.make_bucket()}/some/prefix"
    for name, value in {**s3.variables, "AIRLOOP_DATA_ROOT": root}.items():
        monkeypatch.setenv(name, value)
    forget()
    yield root
    monkeypatch.undo()
    forget()


def forget() -> None:
    get_settings.cache_clear()
    storage._require.cache_clear()
