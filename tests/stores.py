"""Provide real stores for tests: Postgres and Redis from Debian's packages.

Each is a process of its test on a free port, run by an unprivileged user. A test can kill it and
start it again on the same data and port, as an operator would. If a program is missing, the test is
skipped with its name.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from secrets import token_urlsafe

import psycopg2
import pytest

from tests.ports import free_port

USER = "nobody"  # Postgres refuses to run as root
DATABASES = ("airflow_database_url", "mlflow_database_url", "feast_registry_url", "ledger_url")
NUMBERS = count()

# A test with this mark runs twice: on files, and on Postgres and Redis. Its fixtures get the
# variables from the fixture ``stores``.
on_both_stores = pytest.mark.parametrize("stores", ["embedded", "real"], indirect=True)
# The same for tests that take minutes. Their second half runs only if a variable requests it.
ASKED = pytest.mark.skipif(
    not os.environ.get("AIRLOOP_TEST_LOOP_ON_SERVERS"),
    reason="on Postgres and Redis too: AIRLOOP_TEST_LOOP_ON_SERVERS=yes runs it",
)
on_both_stores_if_asked = pytest.mark.parametrize(
    "stores", ["embedded", pytest.param("real", marks=ASKED)], indirect=True
)


@dataclass(frozen=True)
class Stores:
    """Location of a test's data, except the tables.

    Attributes:
        variables: AIRLOOP_... variables that name the stores. Empty if the stores are files of the
            home.
        mlflow: MLflow's database. If None, the test chooses a file.
    """

    variables: dict[str, str] = field(default_factory=dict)
    mlflow: str | None = None

    @property
    def are_real(self) -> bool:
        return bool(self.variables)


def program(name: str, package: str) -> str:
    """Return the path of a program. Skip the test if it is not installed."""
    executable = shutil.which(name) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if executable is None:
        pytest.skip(f"{name} is not installed (Debian's package {package})")
    return executable


class Server(ABC):
    """One server process with its data in ``folder``. ``start`` waits until it answers.

    ``address`` is an address of this machine, for example one that pods can reach.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1"):
        self.folder, self.address, self.port = folder, address, free_port()
        self.process: subprocess.Popen | None = None

    @property
    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def answers(self) -> bool: ...

    def start(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not self.answers():
            # Start repeatedly: after a kill, the old server's children take a moment to exit.
            if self.process is None or self.process.poll() is not None:
                with (self.folder / "log").open("ab") as log:
                    self.process = subprocess.Popen(
                        as_nobody(self.command), stdout=log, stderr=log, cwd=self.folder, start_new_session=True
                    )
            assert time.monotonic() < deadline, (
                f"{self.command[0]} does not answer:\n{(self.folder / 'log').read_text()[-3000:]}"
            )
            time.sleep(0.1)

    def kill(self) -> None:
        """Send SIGKILL."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            # Postgres: fast shutdown that disconnects all clients.
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)


class Postgres(Server):
    """A Postgres server.

    ``admin_url`` is the superuser's URL. ``urls()`` returns the URLs of four databases that may be
    created.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1"):
        super().__init__(folder, address)
        self.password = token_urlsafe(16)
        (folder / "password").write_text(self.password)
        own(folder)
        initdb = [
            program("initdb", "postgresql"),
            "-D",
            str(folder / "data"),
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(folder / "password"),
        ]
        subprocess.run(
            as_nobody([*initdb, "-E", "UTF8", "--locale=C", "--no-sync"]), check=True, capture_output=True, cwd=folder
        )
        with (folder / "data" / "pg_hba.conf").open("a") as allowed:
            # Pods, if they can reach the address.
            allowed.write("host all all samenet scram-sha-256\n")

    @property
    def command(self) -> list[str]:
        # fsync is off. The machine does not crash in these tests, and a killed process loses
        # nothing that it has written to the kernel.
        options = [
            "-c",
            "fsync=off",
            "-c",
            "max_connections=200",
            "-c",
            f"listen_addresses={self.address}",
            "-k",
            str(self.folder),
        ]
        return [program("postgres", "postgresql"), "-D", str(self.folder / "data"), "-p", str(self.port), *options]

    @property
    def admin_url(self) -> str:
        return f"postgresql://postgres:{self.password}@{self.address}:{self.port}/postgres"

    def answers(self) -> bool:
        try:
            psycopg2.connect(self.admin_url, connect_timeout=5).close()
        except psycopg2.OperationalError:
            return False
        return True

    def urls(self) -> dict[str, str]:
        """Return setting -> URL for new databases. Nothing is created.

        Each database is exclusive to the test and has its own user. Feast's registry has a reader,
        too.
        """
        prefix = f"t{next(NUMBERS)}"
        names = {setting: f"{prefix}_{setting.partition('_')[0]}" for setting in DATABASES}
        urls = {
            setting: f"postgresql://{name}:{token_urlsafe(16)}@{self.address}:{self.port}/{name}"
            for setting, name in names.items()
        }
        return urls | {"feast_readonly_url": urls["feast_registry_url"].replace("_feast:", "_feast_reader:", 1)}


class Redis(Server):
    """A Redis with a password and an append-only file: acknowledged writes survive a kill."""

    def __init__(self, folder: Path, address: str = "127.0.0.1"):
        super().__init__(folder, address)
        self.password = token_urlsafe(16)
        (folder / "redis.conf").write_text(
            f'port {self.port}\nbind {address}\ndir {folder}\nappendonly yes\nsave ""\nrequirepass'
            f" {self.password}\ndatabases 64\n"
        )
        own(folder)
        self._next = 0

    @property
    def command(self) -> list[str]:
        # Keeps the password off the command line.
        return [program("redis-server", "redis-server"), str(self.folder / "redis.conf")]

    def url(self) -> str:
        """Return the URL of an unused database."""
        self._next += 1
        return f"redis://:{self.password}@{self.address}:{self.port}/{self._next - 1}"

    def forget(self, url: str) -> None:
        """Delete all data of one database."""
        import redis

        with redis.Redis.from_url(url) as client:
            client.flushdb()

    def answers(self) -> bool:
        import redis

        try:
            with redis.Redis(host=self.address, port=self.port, password=self.password, socket_timeout=5) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def settings_on(postgres: Postgres, redis: Redis, home: Path):
    """Return settings for new databases on these servers. The databases do not exist yet.

    The profile is embedded, so that only the stores differ.
    """
    from include.settings import Settings

    return Settings(home=home, **postgres.urls(), online_store_url=redis.url(), database_admin_url=postgres.admin_url)


@contextmanager
def running(kind: type[Server], address: str = "127.0.0.1") -> Iterator[Server]:
    """Run a server in a temporary folder and stop it afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"airloop-{kind.__name__.lower()}-", ignore_cleanup_errors=True) as folder:
        server = kind(Path(folder), address)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def as_nobody(command: list[str]) -> list[str]:
    return (
        ["setpriv", f"--reuid={USER}", "--regid=nogroup", "--clear-groups", *command] if os.getuid() == 0 else command
    )


def own(folder: Path) -> None:
    """Make the folder and its contents the property of the server's user, unreadable for others."""
    folder.chmod(0o700)
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, USER, "nogroup")
