"""Settings of the test alone."""

import os

import pytest

from include.settings import get_settings


@pytest.fixture
def nothing_else(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AIRLOOP_") and not name.startswith("AIRLOOP_TEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AIRLOOP_ENV_FILE", "")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
