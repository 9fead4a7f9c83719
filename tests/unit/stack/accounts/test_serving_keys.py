"""The serving that `airloop up` starts requires keys as the settings specify.

The tests read serving's own settings from its environment.
"""

import json
import os

import pytest
from pydantic import ValidationError

from include.settings import Settings, export_library_env
from include.stack.environment import serving_environment
from serving.settings import Settings as Serving
from tests.unit.stack.test_component import KEYS, STORES

KEY = "Zx-nobody-guesses-this"


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Return serving's settings as it reads them when `airloop up` starts it with our settings."""
    for name in [name for name in os.environ if name.startswith("SERVING_")]:
        monkeypatch.delenv(name)

    def started(**settings) -> Serving:
        given = serving_environment(Settings(home=tmp_path, **settings))
        with monkeypatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, value)
            return Serving()

    return started


def test_embedded_needs_no_keys_and_has_the_houses_own_where_there_is_one(started):
    assert (started().profile, started().keys_file) == ("embedded", None)
    serving = started(serving_api_key=KEY)
    (key,) = json.loads(serving.keys_file.read_text())["keys"]
    assert serving.profile == "embedded" and key["name"] == "airloop" and KEY not in serving.keys_file.read_text()


def test_outside_embedded_it_is_told_so_and_does_not_start_without_keys(started, tmp_path, monkeypatch):
    assert started(profile="compose", **STORES, **KEYS).profile == "compose"
    without = {name: value for name, value in KEYS.items() if name != "serving_api_key"}
    with pytest.raises(ValidationError, match="SERVING_KEYS_FILE is not set: in the profile compose"):
        started(profile="compose", **STORES, **without)
    # The operator's file: Airloop does not write it.
    monkeypatch.setenv("SERVING_KEYS_FILE", str(tmp_path / "own.json"))
    serving = started(profile="compose", **STORES, **KEYS)
    assert (serving.profile, serving.keys_file) == ("compose", tmp_path / "own.json")
    assert not (tmp_path / "own.json").exists()
    monkeypatch.setenv("SERVING_PROFILE", "kubernetes")  # set for serving itself
    assert started().profile == "kubernetes"


def test_a_file_of_keys_that_the_settings_file_names_is_serving_s(started, tmp_path, monkeypatch):
    """Serving uses a file of keys that the settings file names.

    Otherwise a user who sets one there would silently get an open service.
    """
    file = tmp_path / "settings"
    file.write_text(f"SERVING_KEYS_FILE={tmp_path / 'own.json'}\nSERVING_METRICS_KEY={KEY}\n")
    monkeypatch.setenv("AIRLOOP_ENV_FILE", str(file))
    # Makes monkeypatch remove the variable at the end.
    monkeypatch.setenv("SERVING_KEYS_FILE", "")
    monkeypatch.delenv("SERVING_KEYS_FILE")
    export_library_env()
    assert started().keys_file == tmp_path / "own.json"
    assert "SERVING_METRICS_KEY" not in os.environ  # no other process needs it
    monkeypatch.setenv("SERVING_KEYS_FILE", "/elsewhere.json")
    export_library_env()
    assert os.environ["SERVING_KEYS_FILE"] == "/elsewhere.json"
