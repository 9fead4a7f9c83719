"""The settings file, Secrets Manager, and the variables that other libraries read."""

import os
from collections.abc import Collection
from pathlib import Path

from dotenv import dotenv_values

from include.settings.errors import SettingsError
from include.settings.renamed import with_new_names
from include.settings.repository import REPOSITORY

# These variables disable telemetry. Evidently and other tools honor DO_NOT_TRACK. Great
# Expectations, Feast and MLflow have their own variables. MLflow's telemetry also changes the
# environment while other threads read it.
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1", "GX_ANALYTICS_ENABLED": "false", "FEAST_USAGE": "False", "MLFLOW_DISABLE_TELEMETRY": "true",
    # For ONNX Runtime 1.29 and later. Its telemetry starts at import time.
    "ORT_DISABLE_TELEMETRY": "1",
}  # fmt: skip


def settings_file() -> Path | None:
    """Return the path of the settings file, or None if it does not exist.

    Raises:
        SettingsError: AIRLOOP_ENV_FILE names a file that does not exist.
    """
    named = os.environ.get("AIRLOOP_ENV_FILE")
    if named == "":
        return None
    file = usual_settings_file()
    if named and not file.is_file():
        raise SettingsError(f"AIRLOOP_ENV_FILE is '{named}', which does not exist")
    return file if file.is_file() else None


def usual_settings_file() -> Path:
    """Return the path of the settings file, whether or not it exists."""
    return Path(os.environ.get("AIRLOOP_ENV_FILE") or REPOSITORY / ".env")


def export_library_env() -> None:
    """Copy the settings file's ``AWS_...`` lines into this process's environment.

    boto3 and other libraries read them there. Existing variables keep their values.
    SERVING_KEYS_FILE is copied too: a user who sets it expects that serving requires keys. The
    variables in ``TELEMETRY_OFF``, which disable telemetry, are set as well.

    The `airloop` command calls this, and its child processes inherit the variables that they need.
    """
    file = settings_file()
    for name, value in (dotenv_values(file) if file else {}).items():
        if (name.startswith("AWS_") or name == "SERVING_KEYS_FILE") and value:
            os.environ.setdefault(name, value)
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)


def from_secrets_manager(secret_id: str | None, profile: str | None, known: Collection[str]) -> dict[str, str | None]:
    """Return the settings that a secret of AWS Secrets Manager holds.

    ``known`` are the names of all settings.

    Raises:
        SettingsError: The secret cannot be read, or it contains an unknown setting.
    """
    if not secret_id:
        return {}
    from include.secrets_manager import SecretsManagerError, read

    try:
        settings = with_new_names(
            {name.lower().removeprefix("airloop_"): value for name, value in read(secret_id, profile).items() if value},
            prefix="",
        )
    except SecretsManagerError as error:
        raise SettingsError(f"AIRLOOP_SECRETS_ID is '{secret_id}': {error}") from None
    if unknown := sorted(settings.keys() - set(known)):
        raise SettingsError(
            f"AIRLOOP_SECRETS_ID is '{secret_id}', and this secret contains AIRLOOP_{unknown[0].upper()}, which is not"
            " a setting. Correct its name"
        )
    return settings
