"""Databases for tests of both kinds: files of SQLite, and new ones on the tests' own Postgres."""

from itertools import count

import psycopg2
import pytest

from include.settings import get_settings

NUMBERS = count()


@pytest.fixture
def postgres_url(postgres_server):
    """URL of an empty database of Postgres, for its superuser."""
    connection = psycopg2.connect(postgres_server.admin_url)
    connection.autocommit = True
    name = f"unit{next(NUMBERS)}"
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"{postgres_server.admin_url.rpartition('/')[0]}/{name}"


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request, tmp_path) -> str:
    """An empty database of each kind."""
    return f"sqlite:///{tmp_path / 'ledger.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def own_ledger(ledger_url, tmp_path, monkeypatch):
    """The settings name it."""
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("AIRLOOP_LEDGER_URL", ledger_url)
    get_settings.cache_clear()
    yield ledger_url
    get_settings.cache_clear()
