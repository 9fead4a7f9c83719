"""A ledger and tables for each test, and what Airflow gives to a task."""

from types import SimpleNamespace

import pytest
from airflow.sdk.execution_time.context import OutletEventAccessors

from include.settings import get_settings


@pytest.fixture
def own_store(tmp_path, monkeypatch):
    """Create a ledger and tables for this test alone."""
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    for name in ("AIRLOOP_DATA_ROOT", "AIRLOOP_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    get_settings.cache_clear()
    yield tmp_path
    get_settings.cache_clear()


@pytest.fixture
def events():
    """Return Airflow's own ``outlet_events``, empty."""
    return OutletEventAccessors()


@pytest.fixture
def emitted_events(events):
    """Return a function that returns asset name -> extra of the events that a task emitted."""
    return lambda: {asset.name: events[asset].extra for asset in events}


@pytest.fixture
def ti():
    """Return the identity of a task instance."""
    return SimpleNamespace(dag_id="flights__stage", run_id="run", task_id="task")
