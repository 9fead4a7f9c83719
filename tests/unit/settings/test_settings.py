"""Sources of settings, values that are refused outside embedded, and secrets that stay hidden."""

import json
import os
import subprocess
import sys

import pytest

from include.settings import REPOSITORY, REQUIRED_BY_PART, SettingsError, get_settings, secret_fields

PASSWORD = "s3cret-of-this-test-0815"
REAL = {
    "AIRLOOP_PROFILE": "compose",
    **{
        f"AIRLOOP_{name}_URL": f"postgresql://{name.lower()}:{PASSWORD}@db:5432/{name.lower()}"
        for name in ("AIRFLOW_DATABASE", "MLFLOW_DATABASE", "LEDGER")
    },
    "AIRLOOP_FEAST_REGISTRY_URL": f"postgresql://feast:{PASSWORD}@db:5432/feast",
    "AIRLOOP_ONLINE_STORE_URL": f"redis://:{PASSWORD}@cache:6379/1",
    **dict.fromkeys(
        ("AIRLOOP_AIRFLOW_FERNET_KEY", "AIRLOOP_EDGE_SIGNING_KEY"), "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
    ),
    "AIRLOOP_MLFLOW_USERNAME": "airloop",
    **{
        f"AIRLOOP_{name.upper()}": PASSWORD
        for name in secret_fields()
        if not name.endswith("_url") and name not in ("airflow_fernet_key", "edge_signing_key")
    },
}


def with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://")


pytestmark = pytest.mark.usefixtures("nothing_else")


@pytest.fixture
def given(monkeypatch):
    """Set environment variables and read the settings as every process does."""

    def read(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        return get_settings()

    return read


def test_embedded_needs_nothing(given):
    settings = given()
    settings.require()
    assert settings.users == "simple"
    urls = [
        settings.airflow_database,
        settings.mlflow_database,
        settings.feast_registry,
        settings.ledger,
        settings.studies,
    ]
    assert all(url.startswith(f"sqlite:///{settings.home}") for url in urls) and len(set(urls)) == 5
    assert json.loads(settings.feast_environment["AIRLOOP_FEAST_ONLINE_STORE"])["type"] == "sqlite"


def test_with_real_secrets_compose_is_whole(given):
    settings = given(**REAL)
    settings.require()
    assert settings.users == "fab"
    # No plain postgresql:// URL: its driver depends on the version of SQLAlchemy, and not every
    # image has it.
    for name in ("airflow_database", "mlflow_database", "ledger", "studies"):
        assert getattr(settings, name).startswith("postgresql+psycopg2://")
    assert settings.feast_registry.startswith("postgresql+psycopg://feast:")
    assert settings.studies == settings.ledger == with_driver(REAL["AIRLOOP_LEDGER_URL"])
    assert given(AIRLOOP_OPTUNA_URL=REAL["AIRLOOP_LEDGER_URL"]).studies == with_driver(REAL["AIRLOOP_LEDGER_URL"])
    online = json.loads(settings.feast_environment["AIRLOOP_FEAST_ONLINE_STORE"])
    assert online == {"type": "redis", "connection_string": f'cache:6379,password="{PASSWORD}",db=1'}


def test_a_process_reads_the_same_settings_from_the_environment_of_another(given, monkeypatch):
    settings = given(**REAL, AIRLOOP_POOLS="cpu=4")
    environment = settings.environment()
    for name in REAL:
        monkeypatch.delenv(name)
    assert given(**environment) == settings


def test_no_secret_is_shown(given):
    settings = given(**REAL)
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "compose" in shown and PASSWORD not in shown


@pytest.mark.parametrize(
    "variable", sorted({f"AIRLOOP_{name.upper()}" for part in REQUIRED_BY_PART.values() for name in part})
)
def test_a_missing_secret_is_named(given, variable):
    settings = given(**{name: value for name, value in REAL.items() if name != variable})
    with pytest.raises(SettingsError, match=f"AIRLOOP_PROFILE is compose, but {variable} is not set[.]"):
        settings.require()


@pytest.mark.parametrize("part", sorted(REQUIRED_BY_PART))
def test_a_part_needs_its_own_secrets_only(given, part):
    settings = given(
        AIRLOOP_PROFILE="kubernetes",
        **{name: REAL[name] for name in (f"AIRLOOP_{field.upper()}" for field in REQUIRED_BY_PART[part])},
    )
    settings.require(part)
    with pytest.raises(SettingsError, match="but AIRLOOP_.* is not set"):
        settings.require()


def test_outside_embedded_no_store_falls_back_to_a_file(given):
    settings = given(AIRLOOP_PROFILE="compose")
    for read in ("airflow_database", "mlflow_database", "feast_registry", "ledger", "studies", "feast_environment"):
        with pytest.raises(SettingsError, match="AIRLOOP_PROFILE is compose, but AIRLOOP_.*_URL is not set"):
            getattr(settings, read)


@pytest.mark.parametrize(
    "variable, value, fault",
    [
        ("AIRLOOP_AIRFLOW_JWT_SECRET", "CHANGE_ME", "AIRLOOP_AIRFLOW_JWT_SECRET is the placeholder"),
        ("AIRLOOP_LEDGER_URL", "postgresql://ledger:CHANGE_ME@db/ledger", "AIRLOOP_LEDGER_URL is the placeholder"),
        ("AIRLOOP_LEDGER_URL", "postgresql://ledger@db/ledger", "AIRLOOP_LEDGER_URL has no password"),
        (
            "AIRLOOP_LEDGER_URL",
            "postgresql://ledger:ledger@db/ledger",
            "AIRLOOP_LEDGER_URL has a password that everybody tries",
        ),
        ("AIRLOOP_LEDGER_URL", "sqlite:////tmp/ledger.db", "AIRLOOP_LEDGER_URL begins with 'sqlite://'"),
        ("AIRLOOP_ONLINE_STORE_URL", "redis://cache:6379/0", "AIRLOOP_ONLINE_STORE_URL has no password"),
        ("AIRLOOP_AIRFLOW_ADMIN_PASSWORD", "airflow", "AIRLOOP_AIRFLOW_ADMIN_PASSWORD is a word that everybody"),
        ("AIRLOOP_MLFLOW_PASSWORD", "abc123", "AIRLOOP_MLFLOW_PASSWORD is shorter than 12"),
        ("AIRLOOP_AIRFLOW_FERNET_KEY", PASSWORD, "AIRLOOP_AIRFLOW_FERNET_KEY is not 32 bytes"),
        ("AIRLOOP_AIRFLOW_FERNET_KEY", f"{'A' * 43}=,{PASSWORD}", "AIRLOOP_AIRFLOW_FERNET_KEY is not 32 bytes"),
        ("AIRLOOP_EDGE_SIGNING_KEY", PASSWORD, "AIRLOOP_EDGE_SIGNING_KEY is not 32 bytes"),
        ("AIRLOOP_AUTH_MANAGER", "simple", "AIRLOOP_AUTH_MANAGER is 'simple'"),
    ],
)
def test_a_placeholder_or_a_weak_secret_is_refused_by_name_and_not_told(given, variable, value, fault):
    with pytest.raises(SettingsError, match=fault) as refused:
        given(**REAL | {variable: value})
    assert PASSWORD not in str(refused.value) and "abc123" not in str(refused.value)
    given(**{"AIRLOOP_PROFILE": "embedded", variable: value})  # the profile embedded allows it


@pytest.mark.parametrize(
    "url", ["http://cache:6379", "redis://:a-long-pass,word@cache:6379", "redis://:pw@cache:6379/queue"]
)
def test_an_online_store_that_feast_would_misread_is_refused(given, url):
    with pytest.raises(SettingsError, match="AIRLOOP_ONLINE_STORE_URL"):
        given(AIRLOOP_ONLINE_STORE_URL=url)


def test_the_online_stores_user_and_tls_are_feasts_options(given):
    settings = given(AIRLOOP_ONLINE_STORE_URL="rediss://reader:12%2F34@cache")
    online = json.loads(settings.feast_environment["AIRLOOP_FEAST_ONLINE_STORE"])
    assert online["connection_string"] == 'cache:6379,username="reader",password="12/34",db=0,ssl=true'


def test_the_settings_file_is_read_and_the_environment_wins(given, tmp_path):
    file = tmp_path / "settings"
    file.write_text(
        "# a comment\nAIRLOOP_PARALLELISM=7\nAIRLOOP_POOLS=cpu=9\nAIRLOOP_MLFLOW_URI=\nAWS_REGION=eu-central-1\n"
    )
    settings = given(AIRLOOP_ENV_FILE=str(file), AIRLOOP_PARALLELISM="5")
    assert (settings.parallelism, settings.pools, settings.mlflow_uri) == (5, "cpu=9", None)
    # A child process inherits its settings and reads no file.
    assert {"AIRLOOP_ENV_FILE": "", "AIRLOOP_POOLS": "cpu=9"}.items() <= settings.environment().items()


def test_a_word_of_the_settings_file_that_is_no_setting_is_named(given, tmp_path):
    file = tmp_path / "settings"
    file.write_text("AIRLOOP_PARALELISM=7\n")
    with pytest.raises(SettingsError, match="AIRLOOP_PARALELISM: no such setting"):
        given(AIRLOOP_ENV_FILE=str(file))
    with pytest.raises(SettingsError, match="AIRLOOP_ENV_FILE is '.*/elsewhere', which does not exist"):
        given(AIRLOOP_ENV_FILE=str(tmp_path / "elsewhere"))


def test_a_secret_can_be_a_file_and_stays_one(given, tmp_path):
    (tmp_path / "AIRLOOP_LEDGER_URL").write_text(REAL["AIRLOOP_LEDGER_URL"] + "\n")
    (tmp_path / "airloop_mlflow_password").write_text(PASSWORD)
    settings = given(
        **REAL | {"AIRLOOP_SECRETS_DIR": str(tmp_path), "AIRLOOP_LEDGER_URL": "", "AIRLOOP_MLFLOW_PASSWORD": ""}
    )
    settings.require()
    assert settings.ledger == with_driver(REAL["AIRLOOP_LEDGER_URL"])
    environment = settings.environment()
    assert (
        environment["AIRLOOP_SECRETS_DIR"] == str(tmp_path)
        and not {"AIRLOOP_LEDGER_URL", "AIRLOOP_MLFLOW_PASSWORD"} & environment.keys()
    )
    with pytest.raises(SettingsError, match="AIRLOOP_SECRETS_DIR is '/nowhere'"):
        given(AIRLOOP_SECRETS_DIR="/nowhere")


def test_the_command_says_it_in_a_line(tmp_path):
    environment = (
        os.environ
        | REAL
        | {
            "AIRLOOP_HOME": str(tmp_path),
            "AIRLOOP_LEDGER_URL": "postgresql://ledger:CHANGE_ME@db/ledger",
        }
    )
    result = subprocess.run(
        [sys.executable, "-m", "include.cli", "status"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        result.returncode == 2
        and "AIRLOOP_LEDGER_URL is the placeholder CHANGE_ME" in result.stderr
        and "Traceback" not in result.stderr
    )
