"""The ledger's tables are created once by concurrent processes, and refused if they are newer.

Tables from before the first version number are migrated.
"""

import os
import sqlite3
import subprocess
import sys

import pytest
from sqlalchemy import create_engine, inspect, make_url, text

from include import ledger
from include.ledger import database, schema
from include.settings import REPOSITORY

REVISIONS = ["0001", "0002", "0003", "0004", "0005"]
# Each process prints the version that it found, and then uses the ledger.
STARTS = """
import sys
from include import ledger
sys.stdin.readline()
print(repr(ledger.migrate()))
ledger.record_stage("p", "s", "2013-01-01T00:00:00Z", dag_run="r", summary={})
"""


def start(url: str, home) -> subprocess.Popen:
    environment = os.environ | {"AIRLOOP_LEDGER_URL": url, "AIRLOOP_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", STARTS],
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_the_head_is_alembics():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [database.HEAD]
    assert sorted(one.revision for one in script.walk_revisions()) == REVISIONS


def test_processes_that_start_together_migrate_once(ledger_url, tmp_path):
    together = [start(ledger_url, tmp_path) for _ in range(6)]
    for process in together:
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=300) for process in together]
    assert [process.returncode for process in together] == [0] * 6, ends
    assert sorted(out.strip() for out, _ in ends) == ["''", *["'0005'"] * 5]


def test_the_migrations_end_at_the_tables_of_this_code(ledger_url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    assert ledger.migrate(ledger_url) == ""
    with create_engine(ledger_url.replace("postgresql:", "postgresql+psycopg2:")).connect() as connection:
        ours = {"compare_type": True, "version_table": database.VERSION_TABLE}
        assert compare_metadata(MigrationContext.configure(connection, opts=ours), schema.METADATA) == []


def test_a_ledger_from_before_there_were_versions_is_taken_up(tmp_path):
    """A ledger from before the first version number is migrated.

    It is created as by the first release, with rows in it and a run that works on a request.
    """
    file = tmp_path / "ledger.db"
    with sqlite3.connect(file) as old:
        old.executescript((REPOSITORY / "tests/unit/ledger/first_release.sql").read_text())
    url = f"sqlite:///{file}"
    assert ledger.migrate(url) == ""
    with create_engine(url).connect() as connection:
        assert connection.execute(text("SELECT id, state, dag_run, reason FROM retrain_requests")).all() == [
            ("r1", "claimed", "run", "drift")
        ]
        assert connection.execute(text("SELECT file FROM ingested_files")).scalar() == "a.csv"
        assert inspect(connection).has_table("freezes")
        assert {i["name"] for i in inspect(connection).get_indexes("drift_episodes")} == {"one_open_episode"}
    assert ledger.migrate(url) == database.HEAD


def test_a_ledger_of_newer_code_is_refused(ledger_url):
    ledger.migrate(ledger_url)
    with database.connect(ledger_url).begin() as connection:
        connection.execute(text(f"UPDATE {database.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(
        ledger.LedgerError, match="at version 9999, this code knows 0005: it was made by a newer Airloop"
    ):
        ledger.migrate(ledger_url)


def test_a_migration_that_is_broken_off_leaves_nothing(ledger_url, monkeypatch):
    from alembic import command

    whole = command.upgrade

    def half(config, revision):
        whole(config, "0002")
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "upgrade", half)
    with pytest.raises(KeyboardInterrupt):
        ledger.migrate(ledger_url)
    with database.connect(ledger_url).connect() as connection:
        assert inspect(connection).get_table_names() == []


def test_a_user_who_may_not_make_tables_is_told_who_should(postgres_url):
    name = postgres_url.rpartition("/")[2]
    with create_engine(
        postgres_url.replace("postgresql:", "postgresql+psycopg2:"), isolation_level="AUTOCOMMIT"
    ).connect() as connection:
        connection.execute(text(f"CREATE ROLE reader_{name} LOGIN PASSWORD 'reads'"))
    with pytest.raises(
        ledger.LedgerError,
        match=f"user 'reader_{name}' of database '{name}' may not: let its owner run `airloop migrate`",
    ):
        ledger.migrate(
            str(
                make_url(postgres_url)
                .set(username=f"reader_{name}", password="reads")
                .render_as_string(hide_password=False)
            )
        )


def test_a_forked_child_opens_connections_of_its_own(own_ledger):
    ledger.set_clock("p", "2013-01-01T00:00:00Z")
    children = []
    for n in range(3):
        if (child := os.fork()) == 0:
            try:
                for _ in range(20):
                    ledger.record_stage("p", f"s{n}", "2013-01-01T00:00:00Z", dag_run="r", summary={"n": n})
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    for _ in range(20):
        assert ledger.iso(ledger.now("p")) == "2013-01-01T00:00:00Z"
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert [ledger.stage_record("p", f"s{n}", "2013-01-01T00:00:00Z")["summary"]["n"] for n in range(3)] == [0, 1, 2]
