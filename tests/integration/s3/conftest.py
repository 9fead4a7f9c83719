"""A real S3 server (versitygw) for the tests of this folder: one process, one bucket per test.

AIRLOOP_TEST_VERSITYGW names its program. Without it, the program is looked up on the PATH. If it is
missing, these tests are skipped.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from secrets import token_hex

import pytest

from include.data import storage
from include.settings import get_settings
from tests.ports import free_port

PROGRAM = os.environ.get("AIRLOOP_TEST_VERSITYGW") or shutil.which("versitygw")
# This text is unique, so any occurrence elsewhere is a leak.
ACCESS_KEY, SECRET_KEY = "airloop-test", f"secret-{token_hex(16)}"


MISSING = "no S3 server: put versitygw on the PATH, or name it in AIRLOOP_TEST_VERSITYGW"


def pytest_collection_modifyitems(items):
    if PROGRAM:
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.skip(reason=MISSING))


class S3:
    """The S3 server: the folder of its buckets, its address, and the clients' variables."""

    def __init__(self, folder: Path, host: str):
        self.folder = folder
        self.address = f"{host}:{free_port(host)}"
        self.endpoint = f"http://{self.address}"
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        environment = {**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
        log_file = self.folder.parent / f"{self.folder.name}.log"
        with log_file.open("ab") as log:
            self.server = subprocess.Popen(
                [str(PROGRAM), "--port", self.address, "posix", str(self.folder)],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 60
        while not answers(self.address):
            assert self.server.poll() is None and time.monotonic() < deadline, log_file.read_text()[-2000:]
            time.sleep(0.05)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.server.kill()
        self.server.wait()

    def stop(self) -> None:
        self.server.terminate()
        self.server.wait(10)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self) -> str:
        name = f"test-{token_hex(4)}"
        (self.folder / name).mkdir()
        return name


@pytest.fixture(scope="session")
def s3_host() -> str:
    """Return the address of this machine at which the server listens."""
    return "127.0.0.1"


@pytest.fixture(scope="session")
def s3(tmp_path_factory, s3_host):
    if not PROGRAM:
        pytest.skip(MISSING)
    server = S3(tmp_path_factory.mktemp("s3"), s3_host)
    yield server
    server.stop()


def answers(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


@pytest.fixture
def clean_variables(monkeypatch):
    """Remove this machine's own credentials, and afterwards the variables that a test has set."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AIRFLOW_CONN_", "MLFLOW_S3_"))]:
        monkeypatch.delenv(name)
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        if name.startswith(("AWS_", "MLFLOW_S3_")):
            del os.environ[name]


@pytest.fixture
def s3_store(s3, clean_variables, fresh_store, monkeypatch):
    """Create a store in a new bucket, set the standard variables, and return its URI."""
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
