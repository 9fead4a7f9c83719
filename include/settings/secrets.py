"""Which settings are secrets, which part needs which, and what makes one weak."""

import re
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

# Marks the places in the .env.<profile>.example files that need a secret.
PLACEHOLDER = "CHANGE_ME"
# Includes values that people and images use as temporary passwords.
WEAK_PASSWORDS = {
    "airflow", "admin", "airloop", "changeme", "default", "minioadmin", "password", "postgres", "redis", "secret",
}  # fmt: skip
# Secrets that each part needs to start, outside the embedded profile. A process that runs one part
# gets only the secrets of that part.
REQUIRED_BY_PART = {
    "tasks": (
        "ledger_url",
        "feast_registry_url",
        "online_store_url",
        "mlflow_username",
        "mlflow_password",
        "serving_api_key",
    ),
    "airflow": ("airflow_database_url", "airflow_fernet_key", "airflow_jwt_secret", "airflow_api_secret_key"),
    "accounts": ("airflow_admin_password",),
    "mlflow": (
        "mlflow_database_url",
        "mlflow_admin_password",
        "mlflow_flask_secret_key",
        "mlflow_username",
        "mlflow_password",
        "mlflow_reader_password",
    ),
    "serving": ("feast_registry_url", "online_store_url", "mlflow_reader_password", "serving_api_key"),
}
Part = Literal["tasks", "airflow", "accounts", "mlflow", "serving"]


def plain(value: Any) -> Any:
    """Return the value, without its cover if it is a secret."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def fault_of(name: str, value: SecretStr) -> str | None:
    """Return what is wrong with a secret, without revealing it, or None if it is valid."""
    text = value.get_secret_value()
    if PLACEHOLDER in text:
        return f"is the placeholder {PLACEHOLDER}"
    if not name.endswith("_url"):
        if text.lower() in WEAK_PASSWORDS:
            return "is a word that everybody tries first"
        # During a key rotation the value holds the new key and the old key.
        keys = text.split(",") if name == "airflow_fernet_key" else [text]
        if name in ("airflow_fernet_key", "edge_signing_key") and not all(
            re.fullmatch(r"[A-Za-z0-9_-]{43}=", key) for key in keys
        ):
            return "is not 32 bytes in URL-safe base64"
        return "is shorter than 12 characters" if len(text) < 12 else None
    scheme = "redis" if name == "online_store_url" else "postgresql"
    url = urlsplit(text)
    if not re.match(f"{scheme}s?([+]|$)", url.scheme.replace("postgres:", "postgresql:")):
        return f"begins with '{url.scheme}://'; outside the profile embedded it is {scheme}://..."
    if not url.password:
        return "has no password"
    return (
        "has a password that everybody tries first"
        if unquote(url.password).lower() in WEAK_PASSWORDS | {url.username or ""}
        else None
    )
