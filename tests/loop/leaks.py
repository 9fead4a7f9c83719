"""Whether anything that a loop leaves behind, or answers, tells a secret: files, databases, error pages, command lines, all of a profile's secrets at once."""

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

# Where secrets belong, each for its owner's eyes alone; below the home.
KEEPERS = ("airflow/secrets.json", "airflow/simple_auth_manager_passwords.json.generated", "mlflow/basic_auth.ini")
DATABASES = ("airflow_database_url", "mlflow_database_url", "feast_registry_url", "ledger_url")


def accounts() -> dict[str, object]:
    """Settings with which everything asks who one is; nothing else holds these texts: where one turns up, it leaked."""
    made = (
        "airflow_admin_password", "airflow_jwt_secret", "airflow_api_secret_key", "mlflow_password", "mlflow_reader_password", "mlflow_admin_password",
        "mlflow_flask_secret_key", "serving_api_key",
    )  # fmt: skip
    fernet = urlsafe_b64encode(token_bytes(32)).decode()
    return {
        **{name: SecretStr(f"{name}-{token_hex(16)}") for name in made},
        "airflow_fernet_key": SecretStr(fernet), "mlflow_username": "airloop", "auth_manager": "fab",
    }  # fmt: skip


def secrets_of(settings: Settings, **more: str) -> dict[str, str]:
    """Name -> text of every secret of these settings: chosen ones, those that this home made, and the passwords in URLs."""
    found = {name: value.get_secret_value() for name in secret_fields() if (value := getattr(settings, name))} | more
    for name, file in (("made", KEEPERS[0]), ("simple", KEEPERS[1])):
        if (settings.home / file).exists():
            found |= {f"{name}_{key}": value for key, value in json.loads((settings.home / file).read_text()).items()}
    for name, value in list(found.items()):
        if "://" in value and (password := urlsplit(value).password):
            found |= {f"{name}'s password": unquote(password), f"{name}'s password in the URL": password}
    return found


def nothing_leaked(settings: Settings, secrets: dict[str, str], folders: Iterable[Path], texts: dict[str, str]) -> None:
    """No file of the folders, no table of the databases, none of the texts and no command line holds one of the secrets.

    Args:
        texts: what was answered, by who was asked what.
    """
    assert secrets and all(len(value) > 8 for value in secrets.values()), "too short to be told from chance"
    keepers = {settings.home / name for name in KEEPERS} & set(settings.home.rglob("*"))
    others_read = [str(file) for file in keepers if stat.S_IMODE(file.stat().st_mode) & 0o077]
    assert not others_read, f"others may read {others_read}"
    told = {str(file): content for folder in folders for file in folder.rglob("*") if file.is_file() and file not in keepers and (content := _content(file))}
    told |= {f"database of {name}": _dumped(url.get_secret_value()) for name in DATABASES if (url := getattr(settings, name))}
    told |= {f"the answer to {what}": answer.encode() for what, answer in texts.items()}
    told |= {f"the command line of {process.name}": _read(process / "cmdline") for process in Path("/proc").glob("[0-9]*")}
    leaked = [f"{name} in {where}" for name, value in secrets.items() for where, content in told.items() if value.encode() in content]
    assert not leaked, "leaked: " + "; ".join(leaked[:20])


def error_answers(settings: Settings, api: AirflowApi, model: str) -> dict[str, str]:
    """What the servers say to who may not, to who asks for what is not there, and to who asks for all that he may: their words."""
    key = settings.serving_api_key.get_secret_value() if settings.serving_api_key else "none"
    mlflow = (settings.mlflow_username, settings.mlflow_password.get_secret_value()) if settings.mlflow_username and settings.mlflow_password else None
    house, wrong = {"X-API-Key": key}, {"X-API-Key": "wrong"}
    login = {"Authorization": f"Bearer {api.token}"}
    asked: list[tuple[str, str, dict]] = [
        *((method, f"{settings.serving_url}{path}", {"headers": headers, "content": body})
          for headers in ({}, wrong, house)
          for method, path, body in (
              ("GET", f"/models/{model}", None), ("GET", "/ready", None), ("GET", "/metrics", None), ("GET", "/nothing", None),
              ("POST", f"/models/{model}/predict", b"{no json"), ("POST", f"/models/{model}/predict", b'{"instances": [{}]}'),
              ("POST", "/models/nobody/predict", b'{"instances": []}'), ("POST", f"/v2/models/{model}/infer", b"{}"),
          )),
        *((method, f"{settings.mlflow_url}/api/2.0/mlflow/{path}", {"auth": user, "json": body})
          for user in (None, ("admin", "wrong"), mlflow)
          for method, path, body in (
              ("GET", "experiments/get?experiment_id=4711", None), ("GET", "registered-models/get?name=nobody", None), ("POST", "runs/create", {}),
              ("GET", "users/get?username=airloop", None),
          )),
        *(("GET", f"{settings.airflow_url}{path}", {"headers": headers})
          for headers in ({}, {"Authorization": "Bearer wrong"}, login)
          for path in (
              "/api/v2/config", "/api/v2/connections", "/api/v2/variables", "/api/v2/plugins", "/api/v2/providers", "/api/v2/dags/nobody",
              "/api/v2/eventLogs?limit=1000", "/api/v2/dags/~/dagRuns?limit=1000", "/airloop/report/nobody__train/x/y/",
          )),
        ("POST", f"{settings.airflow_url}/auth/token", {"json": {"username": "admin", "password": "wrong"}}),
    ]  # fmt: skip
    with httpx.Client(timeout=60, trust_env=False) as client:
        answers = [(f"{method} {url} ({number})", client.request(method, url, **given)) for number, (method, url, given) in enumerate(asked)]
    return {what: f"{answer.status_code} {dict(answer.headers)} {answer.text}" for what, answer in answers}


def _content(file: Path) -> bytes:
    """As it is written; of a Parquet file, which packs what it holds, its values too."""
    if file.suffix != ".parquet":
        return _read(file)
    import pyarrow.parquet as pq

    return _read(file) + str(pq.read_table(file).to_pydict()).encode() if "prediction_log" in file.parts else _read(file)


def _dumped(url: str) -> bytes:
    """Every row of every table, as text."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://", 1))
    try:
        with engine.connect() as connection:
            there = inspect(engine)
            schemas = [schema for schema in there.get_schema_names() if schema != "information_schema"]
            tables = [(schema, name) for schema in schemas for name in there.get_table_names(schema)]
            return "\n".join(row for schema, name in tables for (row,) in connection.execute(text(f'SELECT t::text FROM "{schema}"."{name}" t'))).encode()
    finally:
        engine.dispose()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # a process that is gone, say
        return b""
