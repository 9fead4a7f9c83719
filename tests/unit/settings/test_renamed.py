"""A setting with its former name works everywhere, warns, and gives way to the new name."""

import json

import pytest

from include.settings import RENAMED, Settings, model
from include.settings.secrets import plain
from include.stack.environment import base_environment

VALUES = {
    "optuna_url": "postgresql://optuna:Zq8-long-enough@db/optuna",
    "feast_readonly_url": "postgresql://reader:Zq8-long-enough@db/feast",
    "checkpoint_every_steps": "7",
    "preload_libraries": "false",
}
FORMER = pytest.mark.parametrize(("former", "name"), sorted(RENAMED.items()))


@pytest.fixture(autouse=True)
def empty(monkeypatch, tmp_path):
    monkeypatch.setenv("AIRLOOP_ENV_FILE", "")
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path / "home"))
    for name in (*RENAMED, *RENAMED.values()):
        monkeypatch.delenv(f"AIRLOOP_{name.upper()}", raising=False)


def value_of(name: str) -> str:
    return str(plain(getattr(Settings(), name))).lower()


@FORMER
def test_in_the_environment(monkeypatch, former, name):
    monkeypatch.setenv(f"AIRLOOP_{former.upper()}", VALUES[name])
    with pytest.warns(FutureWarning, match=f"AIRLOOP_{former.upper()} is now called AIRLOOP_{name.upper()}"):
        assert value_of(name) == VALUES[name].lower()
    monkeypatch.setenv(f"AIRLOOP_{name.upper()}", "true" if name == "preload_libraries" else VALUES[name] + "0")
    with pytest.warns(FutureWarning):
        assert value_of(name) in {"true", VALUES[name].lower() + "0"}, "the new name has priority"


@FORMER
def test_an_empty_variable_is_unset_and_warns_of_nothing(monkeypatch, recwarn, former, name):
    default = value_of(name)
    monkeypatch.setenv(f"AIRLOOP_{former.upper()}", "")
    assert value_of(name) == default and not [one for one in recwarn if one.category is FutureWarning]


@FORMER
def test_in_the_settings_file(monkeypatch, tmp_path, former, name):
    (tmp_path / "settings").write_text(f"AIRLOOP_{former.upper()}={VALUES[name]}\n")
    monkeypatch.setenv("AIRLOOP_ENV_FILE", str(tmp_path / "settings"))
    with pytest.warns(FutureWarning):
        assert value_of(name) == VALUES[name].lower()


@FORMER
def test_in_a_secret_file(monkeypatch, tmp_path, former, name):
    monkeypatch.setenv("AIRLOOP_SECRETS_DIR", str(tmp_path))
    (tmp_path / f"AIRLOOP_{former.upper()}").write_text(VALUES[name] + "\n")
    with pytest.warns(FutureWarning):
        assert value_of(name) == VALUES[name].lower()
    (tmp_path / f"airloop_{name}").write_text("true" if name == "preload_libraries" else VALUES[name] + "0")
    with pytest.warns(FutureWarning):
        assert value_of(name) in {"true", VALUES[name].lower() + "0"}, "the new name has priority"


@FORMER
def test_in_secrets_manager(monkeypatch, former, name):
    from include import secrets_manager

    monkeypatch.setenv("AIRLOOP_SECRETS_ID", "airloop")
    secret = json.dumps({f"AIRLOOP_{former.upper()}": VALUES[name]})
    monkeypatch.setattr(secrets_manager, "read", lambda *_: json.loads(secret))
    with pytest.warns(FutureWarning):
        assert value_of(name) == VALUES[name].lower()


def test_a_secret_that_a_process_must_not_have_is_not_passed_on_under_its_former_name(monkeypatch):
    monkeypatch.setenv("AIRLOOP_FEAST_READER_URL", VALUES["feast_readonly_url"])
    with pytest.warns(FutureWarning):
        settings = Settings()
    environment = base_environment(settings, without=["feast_readonly_url"])
    assert VALUES["feast_readonly_url"] not in environment.values()
    assert model.Settings.model_fields.keys() >= set(RENAMED.values())
