"""For all tests: the settings file of whoever runs them has no say; and which tests may run side by side, where ``--dist loadgroup`` asks for that: a
file is one group, and all that uses the cluster is one, since its tests let the cluster's only node hang.
"""

import os
from pathlib import Path

import pytest

from tests.stores import Postgres, Redis, Stores, running, settings_on

os.environ["AIRLOOP_ENV_FILE"] = ""

HERE = Path(__file__).parent
ON_THE_CLUSTER = (HERE / "cluster", HERE / "loop" / "test_stores.py")


@pytest.hookimpl(tryfirst=True)  # xdist's workers read the groups in this very hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        on_the_cluster = any(item.path.is_relative_to(place) for place in ON_THE_CLUSTER)
        item.add_marker(pytest.mark.xdist_group("cluster" if on_the_cluster else str(item.path.relative_to(HERE))))


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
