"""For all tests: the settings file of whoever runs them has no say; and which tests may run side by side, where ``--dist loadfile`` asks for that: those
of different files, but of those that use the cluster one after the other, since they let the cluster's only node hang, and of the whole loops, too: each
has an Airflow of its own, which takes half a core while it waits.
"""

import os
from typing import Any

# Before Feast is imported, which sets PROMETHEUS_MULTIPROC_DIR: prometheus_client decides at its import what its metrics are kept in.
import prometheus_client  # noqa: F401
import pytest

from include.settings import QUIET
from tests.stores import Postgres, Redis, Stores, running, settings_on

os.environ["AIRLOOP_ENV_FILE"] = ""
# None may phone home, nor wait for minutes on a server that a test has stopped; and MLflow's telemetry changes the environment in a thread of its own,
# while others read it (KeyError: _MLFLOW_TELEMETRY_SESSION_ID).
os.environ.update(QUIET, GIT_PYTHON_REFRESH="quiet")

ON_THE_CLUSTER = ("tests/cluster/", "tests/loop/test_stores_pods.py")
LOOPS = "tests/loop/"
# For stacks whose DAG files do not change: to parse them every 8 s takes a fifth of a core, all the time.
PARSED_ONCE = {"AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600"}


@pytest.hookimpl(optionalhook=True)  # one of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneClusterAndOneLoopAtATime(LoadFileScheduling):  # and not --dist loadgroup, which pytest 9.2 has silently broken (pytest-xdist issue 1386)
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "the cluster" if file.startswith(ON_THE_CLUSTER) else "the loops" if file.startswith(LOOPS) else file

    return OneClusterAndOneLoopAtATime(config, log)


@pytest.fixture(scope="session")
def postgres_server():
    """A Postgres of this test process's own (tests.stores)."""
    with running(Postgres) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server():
    """A Redis of this test process's own (tests.stores)."""
    with running(Redis) as server:
        yield server


@pytest.fixture
def real_settings(postgres_server, redis_server, tmp_path):
    """Settings with databases of the test's own on the real stores, not made yet."""
    return settings_on(postgres_server, redis_server, tmp_path)


@pytest.fixture
def stores(request) -> Stores:
    """Files, unless the test is marked ``on_both_stores`` (tests.stores): then also empty databases on Postgres, and Redis."""
    if getattr(request, "param", "embedded") == "embedded":
        return Stores()
    from include.stack.databases import make_databases

    settings = request.getfixturevalue("real_settings")
    make_databases(settings)
    told = settings.environment()
    names = [f"AIRLOOP_{name}_URL" for name in ("LEDGER", "FEAST_REGISTRY", "FEAST_READER", "ONLINE_STORE")]
    return Stores({name: told[name] for name in names}, settings.mlflow_database)
