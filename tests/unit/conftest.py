"""Databases of both kinds: SQLite files, and new databases on the tests' own Postgres."""

from itertools import count

import psycopg2
import pytest

from include.settings import get_settings

NUMBERS = count()


@pytest.fixture
def postgres_url(postgres_server):
    """Return the superuser's URL of an empty Postgres database."""
    connection = psycopg2.connect(postgres_server.admin_url)
    connection.autocommit = True
    name = f"unit{next(NUMBERS)}"
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"{postgres_server.admin_url.rpartition('/')[0]}/{name}"


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request, tmp_path) -> str:
    """Return the URL of an empty database of each kind."""
    return (
        f"sqlite:///{tmp_path / 'ledger.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    )


@pytest.fixture
def own_ledger(ledger_url, tmp_path, monkeypatch):
    """Configure the test's own ledger in the settings."""
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("AIRLOOP_LEDGER_URL", ledger_url)
    get_settings.cache_clear()
    yield ledger_url
    get_settings.cache_clear()
