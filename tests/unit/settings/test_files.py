"""The example files and the settings match. `airloop init-env` fills in the secrets once."""

import os
import re
import subprocess
import sys

import pytest

from docs import settings_files
from include.settings import PLACEHOLDER, REPOSITORY, Settings, SettingsError, get_settings, secret_fields
from include.stack.accounts.secrets_file import SecretsError, make_secrets, values

pytestmark = pytest.mark.usefixtures("nothing_else")


def example(profile):
    return (REPOSITORY / f".env.{profile}.example").read_text()


@pytest.fixture
def read(monkeypatch):
    """Return the settings of a file."""

    def settings_of(file):
        monkeypatch.setenv("AIRLOOP_ENV_FILE", str(file))
        get_settings.cache_clear()
        return get_settings()

    return settings_of


@pytest.mark.parametrize("profile", settings_files.PROFILES)
def test_an_example_file_is_what_make_docs_makes(profile):
    assert example(profile) == settings_files.page(profile), "run `make docs`"


@pytest.mark.parametrize("profile", settings_files.PROFILES)
def test_every_setting_is_in_every_file_once_and_explained(profile):
    lines = example(profile).splitlines()
    named = [match[1] for line in lines if (match := re.match(r"(?:# )?([A-Z0-9_]+)=", line))]
    assert len(set(named)) == len(named)
    ours = {f"AIRLOOP_{name.upper()}" for name in Settings.model_fields if name not in settings_files.INTERNAL}
    assert {name for name in named if name.startswith("AIRLOOP_")} == ours
    for before, line in zip(lines, lines[1:], strict=False):
        assert not re.match(r"(?:# )?[A-Z0-9_]+=", line) or re.match(r"# \S", before), f"{line} has no explanation"


@pytest.mark.parametrize("profile", ["compose", "kubernetes"])
def test_a_file_with_placeholders_is_refused_naming_each(profile, tmp_path, read):
    file = tmp_path / "settings"
    file.write_text(example(profile))
    with pytest.raises(SettingsError) as refused:
        read(file)
    placed = {
        name for name, value in values(example(profile)).items() if PLACEHOLDER in value and name.startswith("AIRLOOP_")
    }
    assert placed == {f"AIRLOOP_{name.upper()}" for name in secret_fields() if name != "optuna_url"}
    assert {name for name in placed if f"{name} is the placeholder" in str(refused.value)} == placed


def test_the_embedded_file_says_nothing_but_the_defaults(tmp_path, read):
    file = tmp_path / "settings"
    file.write_text(example("embedded"))
    assert read(file).model_dump() == Settings().model_dump()
    # ... and the documented defaults are correct: all of them are applied.
    defaults = [
        line.removeprefix("# ") for line in example("embedded").splitlines() if re.match(r"# AIRLOOP_\w+=\S", line)
    ]
    file.write_text("\n".join(defaults))
    assert len(defaults) > 15 and read(file).model_copy(update={"home": None}) == Settings().model_copy(
        update={"home": None, "dags_folder": read(file).dags_folder}
    )


@pytest.mark.parametrize("profile", ["compose", "kubernetes"])
def test_with_its_secrets_made_a_file_is_whole(profile, tmp_path, read):
    file = tmp_path / "deep" / "settings"
    made = make_secrets(profile, file)
    assert file.stat().st_mode & 0o777 == 0o600 and PLACEHOLDER not in "".join(values(file.read_text()).values())
    assert set(made) == {name for name, value in values(example(profile)).items() if PLACEHOLDER in value}
    settings = read(file)
    settings.require()
    assert settings.profile == profile
    given = [values(file.read_text())[name] for name in made]
    assert len(set(given)) == len(given)


def test_a_password_that_two_need_is_the_same(tmp_path):
    make_secrets("compose", tmp_path / "settings")
    given = values((tmp_path / "settings").read_text())
    assert len(given["REDIS_PASSWORD"]) >= 32
    assert given["AIRLOOP_ONLINE_STORE_URL"] == f"redis://:{given['REDIS_PASSWORD']}@redis:6379/0"
    assert f":{given['POSTGRES_PASSWORD']}@" in given["AIRLOOP_DATABASE_ADMIN_URL"]


def test_what_has_a_value_is_never_touched_and_what_is_new_is_added(tmp_path, read):
    file = tmp_path / "settings"
    make_secrets("compose", file)
    before = file.read_text()
    assert make_secrets("compose", file) == [] and file.read_text() == before

    # An older file: one variable is missing, one is empty, one is the placeholder, and it has the
    # owner's own lines.
    older = (
        "# mine\n" + re.sub(r"^AIRLOOP_SERVING_API_KEY=.*\n", "", before, flags=re.MULTILINE) + "AIRLOOP_POOLS=cpu=9\n"
    )
    older = re.sub(r"^(AIRLOOP_AIRFLOW_JWT_SECRET=).*$", r"\1", older, flags=re.MULTILINE)
    older = re.sub(
        r"^(AIRLOOP_ONLINE_STORE_URL=).*$",
        r"\1redis://:CHANGE_ME_REDIS_PASSWORD@elsewhere:6379/3",
        older,
        flags=re.MULTILINE,
    )
    file.write_text(older)
    file.chmod(0o644)
    assert set(make_secrets("compose", file)) == {
        "AIRLOOP_SERVING_API_KEY",
        "AIRLOOP_AIRFLOW_JWT_SECRET",
        "AIRLOOP_ONLINE_STORE_URL",
    }
    old, new = values(before), values(file.read_text())
    assert file.stat().st_mode & 0o777 == 0o600 and file.read_text().startswith("# mine\n")
    assert {name for name in new if new[name] != old.get(name)} == {
        "AIRLOOP_SERVING_API_KEY", "AIRLOOP_AIRFLOW_JWT_SECRET", "AIRLOOP_ONLINE_STORE_URL", "AIRLOOP_POOLS"
    }  # fmt: skip
    assert new["AIRLOOP_ONLINE_STORE_URL"] == f"redis://:{old['REDIS_PASSWORD']}@elsewhere:6379/3"
    read(file).require()


def test_a_file_of_another_profile_is_left_alone(tmp_path):
    make_secrets("compose", tmp_path / "settings")
    with pytest.raises(SecretsError, match="is of the profile compose, not kubernetes"):
        make_secrets("kubernetes", tmp_path / "settings")


def test_the_command_makes_them_and_tells_none(tmp_path):
    file = tmp_path / "settings"
    command = [sys.executable, "-m", "include.cli", "init-env", "--profile", "compose", "--file", str(file)]
    result = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, check=True)
    assert "AIRLOOP_AIRFLOW_FERNET_KEY" in result.stdout
    assert [
        value
        for name, value in values(file.read_text()).items()
        if "CHANGE_ME" in values(example("compose"))[name] and value in result.stdout
    ] == []


def test_the_compose_file_asks_for_what_the_example_has():
    asked = set(re.findall(r"\$\{([A-Z0-9_]+)", (REPOSITORY / "docker-compose.yaml").read_text()))
    documented = set(re.findall(r"^(?:# )?([A-Z0-9_]+)=", example("compose"), re.MULTILINE))
    assert asked - documented == set()
    assert {name for name in documented - asked if not name.startswith("AIRLOOP_")} == {
        "COMPOSE_PROFILES"
    }  # Compose's own
