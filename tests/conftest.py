"""Configure all tests: environment, parallel scheduling and shared stores.

The settings file of the user who runs the tests is ignored. With ``--dist loadfile``, different
files run in parallel, with three exceptions. Files that use the cluster run one after another,
because they let the cluster's only node hang. The whole loops also run one after another, because
each has its own Airflow, which uses half a core while it waits. The files of
``tests/integration/stack`` share one stack, whose start takes a minute of CPU.
"""

import os
from secrets import token_hex
from typing import Any

# Must precede the import of Feast, which sets PROMETHEUS_MULTIPROC_DIR: prometheus_client chooses
# the storage of its metrics when it is imported.
import prometheus_client  # noqa: F401
import pytest

from include.settings import TELEMETRY_OFF
from tests import reaper
from tests.stores import Postgres, Redis, Stores, running, settings_on

os.environ["AIRLOOP_ENV_FILE"] = ""
# Disable telemetry and long waits for a server that a test has stopped. MLflow's telemetry also
# changes the environment in its own thread while other threads read it (KeyError:
# _MLFLOW_TELEMETRY_SESSION_ID).
os.environ.update(TELEMETRY_OFF, GIT_PYTHON_REFRESH="quiet")

REAPER = pytest.StashKey["subprocess.Popen[bytes]"]()
ON_THE_CLUSTER = ("tests/cluster/", "tests/loop/test_stores_pods.py")
# Files that run one after another: of these folders, and for these reasons (see the docstring).
LOOPS = "tests/loop/"
STACK = "tests/integration/stack/"
# For stacks that mostly wait. Their DAG files do not change, and parsing them every 8 s uses a
# twentieth of a core. A scheduler that looks ten times a second uses an eighth of one.
CALM = {
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.4",
}


@pytest.hookimpl(trylast=True)  # pytest's own folders are known then
def pytest_configure(config: pytest.Config) -> None:
    # The processes of pytest-xdist inherit the mark. The run that started them has the reaper.
    if reaper.MARK not in os.environ:
        os.environ[reaper.MARK] = token_hex(8)
        config.stash[REAPER] = reaper.start(os.environ[reaper.MARK], config._tmp_path_factory.getbasetemp())


def pytest_unconfigure(config: pytest.Config) -> None:
    if (running := config.stash.get(REAPER, None)) is not None:
        running.communicate()


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    # --dist loadgroup is not an option: pytest 9.2 breaks it silently (pytest-xdist issue 1386).
    class OneClusterAndOneLoopAtATime(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            shared = {"the cluster": ON_THE_CLUSTER, "the loops": LOOPS, "the stack": STACK}
            return next((name for name, files in shared.items() if file.startswith(files)), file)

    return OneClusterAndOneLoopAtATime(config, log)


@pytest.fixture(scope="session")
def postgres_server():
    """Run a Postgres for this test process (tests.stores)."""
    with running(Postgres) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server():
    """Run a Redis for this test process (tests.stores)."""
    with running(Redis) as server:
        yield server


@pytest.fixture
def real_settings(postgres_server, redis_server, tmp_path):
    """Return settings for this test's own databases on the real stores.

    The databases do not exist yet.
    """
    return settings_on(postgres_server, redis_server, tmp_path)


@pytest.fixture
def stores(request) -> Stores:
    """Return the stores of the test.

    These are files, unless the test is marked ``on_both_stores`` (tests.stores): it then runs a
    second time on empty Postgres databases and Redis.
    """
    if getattr(request, "param", "embedded") == "embedded":
        return Stores()
    from include.stack.stores.databases import make_databases

    settings = request.getfixturevalue("real_settings")
    make_databases(settings)
    environment = settings.environment()
    names = [f"AIRLOOP_{name}_URL" for name in ("LEDGER", "FEAST_REGISTRY", "FEAST_READONLY", "ONLINE_STORE")]
    return Stores({name: environment[name] for name in names}, settings.mlflow_database)
