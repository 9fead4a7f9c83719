import pytest

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
