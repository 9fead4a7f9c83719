"""`airloop migrate` on a real Postgres migrates once if several processes start concurrently.

It completes after an earlier process was killed, and reports why it cannot migrate.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
from sqlalchemy import text

from include.settings import REPOSITORY, Settings
from include.stack.stores import migrations, pools
from include.stack.stores.databases import make_databases
from tests.integration.stores.test_databases import execute, url_of, with_changes
from tests.ports import free_port

NAMES = ["ledger", "airflow", "mlflow", "feast", "studies"]
TOGETHER = 4

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture
def empty(real_settings) -> Settings:
    """Create four databases without tables."""
    make_databases(real_settings)
    return real_settings


def start(settings) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "include.cli", "migrate"],
        cwd=REPOSITORY,
        env=os.environ | settings.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def lines_of(process) -> list[str]:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output.splitlines()


@pytest.mark.stack
def test_each_migration_runs_once_however_many_start_together_and_again_after_a_kill(empty):
    assert migrations.pending(empty) == NAMES

    # Kill one process and its children in the middle of Airflow's migration.
    killed = start(empty)
    until(
        lambda: (
            execute(
                url_of(empty, "airflow_database_url"), "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
            )[0][0]
            > 0
        ),
        killed,
    )
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    # On a busy machine the kill may come just after Airflow's migration ends.
    left = migrations.pending(empty)
    assert left and "ledger" not in left

    together = [start(empty) for _ in range(TOGETHER)]
    outputs = [lines_of(process) for process in together]
    ran = sorted(line.partition(":")[0] for lines in outputs for line in lines if line.endswith(", done"))
    assert ran == sorted(left)
    assert all(
        {line.partition(":")[0] for line in lines} >= set(NAMES) for lines in outputs
    )  # the products print their own messages
    assert migrations.pending(empty) == []
    assert migrations.migrate(empty) == []

    # Readers find the migrated databases complete.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(empty.mlflow_database, str(empty.home / "artifacts")).get_experiment_by_name("Default")
    assert execute(url_of(empty, "feast_readonly_url"), "SELECT count(*) FROM feature_services") == [(0,)]


def until(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_behind_is_found_without_importing_the_products(empty):
    code = (
        "import sys; from include.settings import get_settings; from include.stack.stores.migrations import pending;"
        " print(pending(get_settings())); assert not {'airflow', 'mlflow', 'feast', 'optuna'} & set(sys.modules)"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | empty.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0 and asked.stdout.strip() == str(NAMES), asked.stderr


def test_the_last_migrations_are_those_that_the_products_name():
    from airflow.utils.db import _REVISION_HEADS_MAP
    from mlflow.store.db.utils import _get_latest_schema_revision

    assert migrations._head("airflow", "migrations/versions") == list(_REVISION_HEADS_MAP.values())[-1]
    assert migrations._head("mlflow", "store/db_migrations/versions") == _get_latest_schema_revision()


def test_a_migration_that_failed_says_so_and_lets_the_lock_go(empty):
    execute(
        url_of(empty, "ledger_url"),
        "CREATE TABLE ledger_version (version_num VARCHAR(32))",
        "INSERT INTO ledger_version VALUES ('9999')",
    )
    for _ in range(2):
        with pytest.raises(migrations.MigrationError, match="ledger: the ledger is at version 9999"):
            migrations.migrate(empty)


def test_a_database_that_is_away_or_closed_is_named_without_its_password(empty):
    url = url_of(empty, "ledger_url")
    port = url.partition("@127.0.0.1:")[2].partition("/")[0]
    for wrong, fault in (
        (url.replace(f":{port}/", f":{free_port()}/"), "Connection refused"),
        (url.replace("@", "x@"), "password authentication failed"),
        (url + "_gone", 'database "t[0-9]+_ledger_gone" does not exist'),
    ):
        with pytest.raises(
            migrations.MigrationError, match=f"AIRLOOP_LEDGER_URL: database 't[0-9]+_ledger.*{fault}"
        ) as refused:
            migrations.pending(with_changes(empty, ledger_url=wrong))
        assert url.split(":")[2].partition("@")[0] not in str(refused.value)


def test_pools_that_are_missing_are_made_and_a_resized_one_stays(tmp_path):
    """Missing pools are created, and a resized pool keeps its size.

    This matters where `airloop up` is not used, as under Compose: a step whose pool does not exist
    waits forever.
    """
    settings = Settings(home=tmp_path, projects="flights", pools="cpu=3")
    migrations._airflow(settings)

    def slots() -> dict[str, int]:
        with migrations._engine(settings.airflow_database) as engine, engine.begin() as connection:
            connection.execute(text("UPDATE slot_pool SET slots = 7 WHERE pool = 'cpu'"))
            assert migrations._has_pools(engine, settings) == (not pools.missing(engine, settings))
            return pools.missing(engine, settings) | {
                "cpu": connection.execute(text("SELECT slots FROM slot_pool WHERE pool = 'cpu'")).scalar()
            }

    assert slots() == {"cpu": None}
    migrations._pools(settings)
    settings = settings.model_copy(update={"pools": "cpu=4,gpu_a=2"})
    assert slots() == {"cpu": 7, "gpu_a": 2}
    migrations._pools(settings)
    assert slots() == {"cpu": 7}


def test_where_no_one_machine_is_started_the_pools_are_a_migration(empty):
    assert "airflow's pools" not in [migration.name for migration in migrations.migrations(empty)]
    assert "airflow's pools" in [
        migration.name for migration in migrations.migrations(empty.model_copy(update={"profile": "compose"}))
    ]
