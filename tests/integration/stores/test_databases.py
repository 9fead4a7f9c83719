"""`airloop create-databases` creates four databases and four users, each for its own database."""

import subprocess
from itertools import product

import psycopg2
import pytest
from psycopg2 import errors

from include.settings import Settings
from include.stack.stores.databases import OWNERS, DatabasesError, make_databases


def url_of(settings, name):
    return getattr(settings, name).get_secret_value()


def with_changes(settings, **changes):
    return Settings(**{name: getattr(settings, name) for name in Settings.model_fields} | changes)


@pytest.fixture
def made(real_settings):
    lines = []
    make_databases(real_settings, lines.append)
    assert [line.rpartition(": ")[2] for line in lines] == ["made"] * 9
    return real_settings


def execute(url, *statements):
    connection = psycopg2.connect(url, connect_timeout=10)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else None
    finally:
        connection.close()


def test_each_user_owns_its_database_and_gets_into_no_other(made):
    for name in OWNERS:
        execute(url_of(made, name), "CREATE TABLE mine (n INT)", "CREATE SCHEMA more", "INSERT INTO mine VALUES (1)")
    for mine, theirs in product(OWNERS, OWNERS):
        if mine != theirs:
            database = url_of(made, theirs).rpartition("/")[2]
            with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
                execute(url_of(made, mine).rpartition("/")[0] + f"/{database}", "SELECT 1")


def test_no_user_may_make_databases_or_users_or_be_one_of_the_others(made):
    other = url_of(made, "mlflow_database_url").partition("//")[2].partition(":")[0]
    for statement in (
        "CREATE DATABASE more",
        "CREATE ROLE more",
        f"SET ROLE {other}",
        "COPY (SELECT 1) TO PROGRAM 'true'",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            execute(url_of(made, "ledger_url"), statement)


def test_servings_user_reads_feasts_registry_and_changes_nothing(made):
    owner, reader = url_of(made, "feast_registry_url"), url_of(made, "feast_readonly_url")
    execute(owner, "CREATE TABLE later (n INT)", "INSERT INTO later VALUES (7)")  # created after the reader
    assert execute(reader, "SELECT n FROM later") == [(7,)]
    for statement in (
        "INSERT INTO later VALUES (8)",
        "DELETE FROM later",
        "CREATE TABLE mine (n INT)",
        "DROP TABLE later",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            execute(reader, statement)


def test_again_it_changes_nothing_but_a_password_that_is_new(made):
    execute(url_of(made, "ledger_url"), "CREATE TABLE kept (n INT)")
    old = url_of(made, "ledger_url")
    password = old.split(":")[2].partition("@")[0]
    # Contains characters that a URL must quote.
    new = with_changes(made, ledger_url=old.replace(password, "an-other%2Fone%3A0815"))
    lines = []
    make_databases(new, lines.append)
    assert {line.rpartition(": ")[2] for line in lines} == {"was there"}
    assert execute(url_of(new, "ledger_url"), "SELECT count(*) FROM kept") == [(0,)]
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        execute(old, "SELECT 1")


def test_no_password_is_in_the_servers_log_though_it_logs_every_statement(made, postgres_server):
    execute(postgres_server.admin_url, "ALTER SYSTEM SET log_statement = 'all'", "SELECT pg_reload_conf()")
    try:
        make_databases(made)
        log = (postgres_server.folder / "log").read_text()
    finally:
        execute(postgres_server.admin_url, "ALTER SYSTEM RESET log_statement", "SELECT pg_reload_conf()")
    assert "ROLE" in log and "SCRAM-SHA-256$" in log
    for name in (*OWNERS, "feast_readonly_url"):
        assert url_of(made, name).split(":")[2].partition("@")[0] not in log
    # ... and no command line of the server contains one.
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert postgres_server.password not in shown


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"database_admin_url": None}, "AIRLOOP_DATABASE_ADMIN_URL is not set"),
        ({"ledger_url": None}, "AIRLOOP_LEDGER_URL is not set"),
        ({"ledger_url": "sqlite:////tmp/ledger.db"}, "AIRLOOP_LEDGER_URL is not written postgresql://"),
        (
            {"ledger_url": "postgresql://a:b@127.0.0.1/x", "mlflow_database_url": "postgresql://a:b@127.0.0.1/y"},
            "two stores have the same username 'a'",
        ),
        (
            {"ledger_url": "postgresql://a:b@127.0.0.1/x", "mlflow_database_url": "postgresql://c:b@127.0.0.1/x"},
            "two stores have the same database 'x'",
        ),
        (
            {"feast_readonly_url": "postgresql://a:b@127.0.0.1/x"},
            "AIRLOOP_FEAST_READONLY_URL must name Feast's registry's database",
        ),
    ],
)
def test_what_cannot_be_made_is_said_by_name(real_settings, change, fault):
    with pytest.raises(DatabasesError, match=fault):
        make_databases(with_changes(real_settings, **change))


def test_a_wrong_password_is_said_without_telling_it(real_settings, postgres_server):
    wrong = postgres_server.admin_url.replace(postgres_server.password, "not-the-password")
    with pytest.raises(DatabasesError, match="as user postgres: .*password authentication failed") as refused:
        make_databases(with_changes(real_settings, database_admin_url=wrong))
    assert "not-the-password" not in str(refused.value)
