"""Search all files, databases, error pages and command lines of a deployment for its secrets.

All secrets of a profile are checked.
"""

import json
import stat
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from pathlib import Path
from secrets import token_bytes, token_hex
from urllib.parse import unquote, urlsplit

import httpx
from pydantic import SecretStr
from sqlalchemy import create_engine, inspect, text

from include.settings import Settings, secret_fields
from include.stack.api import AirflowApi

# Files below the home that may contain secrets. Only their owner may read them.
KEEPERS = ("airflow/secrets.json", "airflow/simple_auth_manager_passwords.json.generated", "mlflow/basic_auth.ini")
DATABASES = ("airflow_database_url", "mlflow_database_url", "feast_registry_url", "ledger_url")


def accounts() -> dict[str, object]:
    """Return settings that enable authentication everywhere.

    Their values are unique, so any occurrence elsewhere is a leak.
    """
    made = (
        "airflow_admin_password",
        "airflow_jwt_secret",
        "airflow_api_secret_key",
        "mlflow_password",
        "mlflow_reader_password",
        "mlflow_admin_password",
        "mlflow_flask_secret_key",
        "serving_api_key",
    )
    fernet = urlsafe_b64encode(token_bytes(32)).decode()
    return {
        **{name: SecretStr(f"{name}-{token_hex(16)}") for name in made},
        "airflow_fernet_key": SecretStr(fernet),
        "mlflow_username": "airloop",
        "auth_manager": "fab",
    }


def secrets_of(settings: Settings, **more: str) -> dict[str, str]:
    """Return name -> text of every secret of these settings.

    These are the configured secrets, those that this home generated, and the passwords in URLs.
    """
    secrets = {name: value.get_secret_value() for name in secret_fields() if (value := getattr(settings, name))} | more
    for name, file in (("made", KEEPERS[0]), ("simple", KEEPERS[1])):
        if (settings.home / file).exists():
            secrets |= {f"{name}_{key}": value for key, value in json.loads((settings.home / file).read_text()).items()}
    for name, value in list(secrets.items()):
        if "://" in value and (password := urlsplit(value).password):
            secrets |= {f"{name}'s password": unquote(password), f"{name}'s password in the URL": password}
    return secrets


def nothing_leaked(settings: Settings, secrets: dict[str, str], folders: Iterable[Path], texts: dict[str, str]) -> None:
    """Assert that no file, table, text or command line contains one of the secrets.

    Args:
        texts: answers of servers, by request.
    """
    assert secrets and all(len(value) > 8 for value in secrets.values()), "too short to be told from chance"
    keepers = {settings.home / name for name in KEEPERS} & set(settings.home.rglob("*"))
    others_read = [str(file) for file in keepers if stat.S_IMODE(file.stat().st_mode) & 0o077]
    assert not others_read, f"others may read {others_read}"
    contents = {
        str(file): content
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and file not in keepers and (content := _content(file))
    }
    contents |= {
        f"database of {name}": _dumped(url.get_secret_value()) for name in DATABASES if (url := getattr(settings, name))
    }
    contents |= {f"the answer to {what}": answer.encode() for what, answer in texts.items()}
    contents |= {
        f"the command line of {process.name}": _read(process / "cmdline") for process in Path("/proc").glob("[0-9]*")
    }
    leaked = [
        f"{name} in {where}"
        for name, value in secrets.items()
        for where, content in contents.items()
        if value.encode() in content
    ]
    assert not leaked, "leaked: " + "; ".join(leaked[:20])


def error_answers(settings: Settings, api: AirflowApi, model: str) -> dict[str, str]:
    """Return the servers' answers to requests that provoke errors or list much data.

    The requests are unauthenticated, ask for something that does not exist, or are authorized and
    ask for everything.
    """
    key = settings.serving_api_key.get_secret_value() if settings.serving_api_key else "none"
    mlflow = (
        (settings.mlflow_username, settings.mlflow_password.get_secret_value())
        if settings.mlflow_username and settings.mlflow_password
        else None
    )
    house, wrong = {"X-API-Key": key}, {"X-API-Key": "wrong"}
    login = {"Authorization": f"Bearer {api.token}"}
    asked: list[tuple[str, str, dict]] = [
        *(
            (method, f"{settings.serving_url}{path}", {"headers": headers, "content": body})
            for headers in ({}, wrong, house)
            for method, path, body in (
                ("GET", f"/models/{model}", None),
                ("GET", "/ready", None),
                ("GET", "/metrics", None),
                ("GET", "/nothing", None),
                ("POST", f"/models/{model}/predict", b"{no json"),
                ("POST", f"/models/{model}/predict", b'{"instances": [{}]}'),
                ("POST", "/models/nobody/predict", b'{"instances": []}'),
                ("POST", f"/v2/models/{model}/infer", b"{}"),
            )
        ),
        *(
            (method, f"{settings.mlflow_url}/api/2.0/mlflow/{path}", {"auth": user, "json": body})
            for user in (None, ("admin", "wrong"), mlflow)
            for method, path, body in (
                ("GET", "experiments/get?experiment_id=4711", None),
                ("GET", "registered-models/get?name=nobody", None),
                ("POST", "runs/create", {}),
                ("GET", "users/get?username=airloop", None),
            )
        ),
        *(
            ("GET", f"{settings.airflow_url}{path}", {"headers": headers})
            for headers in ({}, {"Authorization": "Bearer wrong"}, login)
            for path in (
                "/api/v2/config",
                "/api/v2/connections",
                "/api/v2/variables",
                "/api/v2/plugins",
                "/api/v2/providers",
                "/api/v2/dags/nobody",
                "/api/v2/eventLogs?limit=1000",
                "/api/v2/dags/~/dagRuns?limit=1000",
                "/airloop/report/nobody__train/x/y/",
            )
        ),
        ("POST", f"{settings.airflow_url}/auth/token", {"json": {"username": "admin", "password": "wrong"}}),
    ]
    with httpx.Client(timeout=60, trust_env=False) as client:
        answers = [
            (f"{method} {url} ({number})", client.request(method, url, **given))
            for number, (method, url, given) in enumerate(asked)
        ]
    return {what: f"{answer.status_code} {dict(answer.headers)} {answer.text}" for what, answer in answers}


def _content(file: Path) -> bytes:
    """Return the file's bytes, and for Parquet files of the prediction log the decoded values.

    Parquet compresses its values.
    """
    if file.suffix != ".parquet":
        return _read(file)
    import pyarrow.parquet as pq

    return (
        _read(file) + str(pq.read_table(file).to_pydict()).encode() if "prediction_log" in file.parts else _read(file)
    )


def _dumped(url: str) -> bytes:
    """Return every row of every table as text."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://", 1))
    try:
        with engine.connect() as connection:
            there = inspect(engine)
            schemas = [schema for schema in there.get_schema_names() if schema != "information_schema"]
            tables = [(schema, name) for schema in schemas for name in there.get_table_names(schema)]
            return "\n".join(
                row
                for schema, name in tables
                for (row,) in connection.execute(text(f'SELECT t::text FROM "{schema}"."{name}" t'))
            ).encode()
    finally:
        engine.dispose()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # for example an exited process
        return b""
