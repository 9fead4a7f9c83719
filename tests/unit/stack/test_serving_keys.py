"""The serving that `airloop up` starts is as closed as the settings say: judged by serving's own settings, read from what it is given."""

import json
import os

import pytest
from pydantic import ValidationError

from include.settings import Settings, hand_on_standard_variables
from include.stack.environment import serving_environment
from serving.settings import Settings as Serving
from tests.unit.stack.test_component import KEYS, STORES

KEY = "Zx-nobody-guesses-this"


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Serving's settings, as it reads them when `airloop up` starts it with these ones of ours."""
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
    found = started(serving_api_key=KEY)
    (key,) = json.loads(found.keys_file.read_text())["keys"]
    assert found.profile == "embedded" and key["name"] == "airloop" and KEY not in found.keys_file.read_text()


def test_outside_embedded_it_is_told_so_and_does_not_start_without_keys(started, tmp_path, monkeypatch):
    assert started(profile="compose", **STORES, **KEYS).profile == "compose"
    without = {name: value for name, value in KEYS.items() if name != "serving_api_key"}
    with pytest.raises(ValidationError, match="SERVING_KEYS_FILE is not set: in the profile compose"):
        started(profile="compose", **STORES, **without)
    monkeypatch.setenv("SERVING_KEYS_FILE", str(tmp_path / "own.json"))  # the operator's: nothing is written
    found = started(profile="compose", **STORES, **KEYS)
    assert (found.profile, found.keys_file) == ("compose", tmp_path / "own.json")
    assert not (tmp_path / "own.json").exists()
    monkeypatch.setenv("SERVING_PROFILE", "kubernetes")  # said to serving itself
    assert started().profile == "kubernetes"


def test_a_file_of_keys_that_the_settings_file_names_is_serving_s(started, tmp_path, monkeypatch):
    """Else somebody who has named one there has an open service, and nothing says so."""
    file = tmp_path / "settings"
    file.write_text(f"SERVING_KEYS_FILE={tmp_path / 'own.json'}\nSERVING_METRICS_KEY={KEY}\n")
    monkeypatch.setenv("AIRLOOP_ENV_FILE", str(file))
    monkeypatch.setenv("SERVING_KEYS_FILE", "")  # so that it is taken away again at the end
    monkeypatch.delenv("SERVING_KEYS_FILE")
    hand_on_standard_variables()
    assert started().keys_file == tmp_path / "own.json"
    assert "SERVING_METRICS_KEY" not in os.environ  # which no other process needs
    monkeypatch.setenv("SERVING_KEYS_FILE", "/elsewhere.json")
    hand_on_standard_variables()
    assert os.environ["SERVING_KEYS_FILE"] == "/elsewhere.json"
