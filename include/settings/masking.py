"""The secrets that must not appear in the output of a process."""

import json
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from include.settings.model import get_settings, secret_fields

# Airflow's own secrets: the URL of its database, and the keys of its connections, tokens and
# sessions. Tasks need none of them.
AIRFLOW_SECRET_VARIABLES = (
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__API__SECRET_KEY",
)
# Variables with other secrets that Airloop's processes use. Airflow masks its own secrets only
# after tasks are forked.
CREDENTIALS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    *AIRFLOW_SECRET_VARIABLES,
)


def known_secrets(environment: Mapping[str, str]) -> list[str]:
    """Return all secrets that must not appear in the output of this process.

    These are the settings' secrets, the passwords in their URLs, and the secrets that
    ``environment`` holds for other tools.
    """
    settings = get_settings()
    secrets = [value.get_secret_value() for name in secret_fields() if (value := getattr(settings, name))]
    secrets += [environment[name] for name in CREDENTIALS if environment.get(name)]
    # The path of a webhook's URL usually contains its token.
    secrets += [settings.notify] if settings.notify and "://" in settings.notify else []
    # A URL with a password may be in any variable: Airflow's own databases and brokers,
    # connections, or variables that a site has added.
    for password in [password for value in (*secrets, *environment.values()) if (password := password_in(value))]:
        # The URL contains the password with escapes. A library may print it without them.
        secrets += [password, unquote(password)]
    return list(dict.fromkeys(secrets))


def password_in(value: str) -> str | None:
    """Return the password in a URL or in an Airflow connection in JSON form, or None."""
    try:
        return (
            json.loads(value).get("password")
            if value.startswith("{")
            else urlsplit(value).password
            if "://" in value
            else None
        )
    # The value is not valid JSON, not a valid URL, or its password is not text.
    except (ValueError, AttributeError):
        return None
