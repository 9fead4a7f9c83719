"""All settings in one model, and the checks that concern several groups."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
)

from include.settings.accounts import Accounts
from include.settings.errors import FIX, SettingsError, in_words
from include.settings.kubernetes import Kubernetes, unpinned
from include.settings.machine import Machine
from include.settings.object_store import ObjectStore
from include.settings.renamed import files_with_former_names, with_new_names
from include.settings.secrets import REQUIRED_BY_PART, Part, fault_of, plain
from include.settings.servers import Servers
from include.settings.sources import from_secrets_manager, settings_file
from include.settings.stores import Stores
from include.settings.training import Training


# pydantic takes the fields of the last base first.
class Settings(Machine, Kubernetes, ObjectStore, Training, Accounts, Servers, Stores):
    """Settings that differ between machines. Nothing here differs between projects."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in order of priority.

        The environment comes first, then secret files, AWS Secrets Manager and the settings file.
        """
        file = DotEnvSettingsSource(settings_cls, env_file=settings_file())
        for source in (env_settings, file):
            assert isinstance(source, EnvSettingsSource)
            source.env_vars = with_new_names(source.env_vars)
        values = file() | env_settings()
        folder = values.get("secrets_dir")
        if folder and not Path(folder).is_dir():
            raise SettingsError(f"AIRLOOP_SECRETS_DIR is '{folder}', which is not a folder")
        secret_values = from_secrets_manager(
            values.get("secrets_id"), values.get("secrets_profile"), settings_cls.model_fields
        )
        files = SecretsSettingsSource(settings_cls, secrets_dir=folder)
        # A file with a former name follows those with the current names.
        former = InitSettingsSource(settings_cls, files_with_former_names(Path(folder) if folder else None))
        return init_settings, env_settings, files, former, InitSettingsSource(settings_cls, secret_values), file

    @field_validator("data_root", "remote_logs", "mlflow_artifacts")
    @classmethod
    def _root(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or "://" not in value:
            return value
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/?#]+)*/?", value):
            raise ValueError(
                f"AIRLOOP_{(info.field_name or '').upper()} is '{value}', but an object store must be written as"
                " s3://bucket or s3://bucket/prefix"
            )
        return value.rstrip("/")

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if self.storage_secret and self.storage_service_account:
            raise ValueError(
                "AIRLOOP_STORAGE_SECRET and AIRLOOP_STORAGE_SERVICE_ACCOUNT are both set, but they are mutually"
                " exclusive. Unset one of them"
            )
        needed = [
            "mlflow_username",
            "mlflow_password",
            *(["mlflow_flask_secret_key"] if self.mlflow_admin_password else []),
        ]
        lacks = [f"AIRLOOP_{name.upper()}" for name in needed if not getattr(self, name)]
        asks = self.mlflow_username or self.mlflow_password or self.mlflow_admin_password
        # In the other profiles, ``require`` checks this.
        if self.profile == "embedded" and asks and lacks:
            raise ValueError(
                "MLflow authentication is enabled (AIRLOOP_MLFLOW_ADMIN_PASSWORD, _USERNAME or _PASSWORD is set), but"
                f" {', '.join(lacks)} is missing"
            )
        if self.mlflow_username and self.mlflow_username.lower() in ("admin", "reader"):
            raise ValueError(
                f"AIRLOOP_MLFLOW_USERNAME is '{self.mlflow_username}', which is another account of MLflow. Choose"
                " another name, for example airloop"
            )
        if self.compute == "kubernetes" and self.mlflow_password and not (self.mlflow_secret or self.storage_secret):
            raise ValueError(
                "AIRLOOP_COMPUTE is kubernetes and MLflow requires a login. Set AIRLOOP_MLFLOW_SECRET to the name of a"
                " Kubernetes secret for training pods"
            )
        if self.profile == "kubernetes" and self.training_image and (fault := unpinned(self.training_image)):
            raise ValueError(f"AIRLOOP_TRAINING_IMAGE is {fault}")
        if self.remote_logs and not self.storage_connection:
            raise ValueError(
                "AIRLOOP_REMOTE_LOGS requires AIRLOOP_STORAGE_CONNECTION, because Airflow reads and writes remote logs"
                " only through a connection"
            )
        return self

    @model_validator(mode="after")
    def _real_secrets(self) -> Self:
        """Check that, outside the embedded profile, each given secret and store is a real one.

        ``require`` checks which ones must be given.
        """
        if self.profile == "embedded":
            return self
        wrong = [
            f"AIRLOOP_{name.upper()} {fault}"
            for name in secret_fields()
            if (value := getattr(self, name)) and (fault := fault_of(name, value))
        ]
        if self.auth_manager == "simple":
            wrong.append("AIRLOOP_AUTH_MANAGER is 'simple', which is only for a developer's machine. Unset it")
        if wrong:
            raise ValueError("\n".join((*wrong, FIX)))
        return self

    def require(self, *parts: Part) -> None:
        """Check that these parts have all their secrets. Without arguments, check all parts.

        Raises:
            SettingsError: At least one secret is missing. The message names all missing secrets.
        """
        needed = dict.fromkeys(name for part in parts or REQUIRED_BY_PART for name in REQUIRED_BY_PART[part])
        missing = [f"AIRLOOP_{name.upper()}" for name in needed if not getattr(self, name)]
        if missing and self.profile != "embedded":
            raise SettingsError(f"AIRLOOP_PROFILE is {self.profile}, but {', '.join(missing)} is not set. {FIX}")

    def environment(self) -> dict[str, str]:
        """Return the environment variables that give another process the same settings.

        Secrets that are stored in files stay there.
        """
        values = {name: plain(getattr(self, name)) for name in type(self).model_fields if not self._is_in_a_file(name)}
        # The variables are complete, so the other process reads no settings file and does not query
        # Secrets Manager.
        values.pop("secrets_id")
        return {f"AIRLOOP_{name.upper()}": str(value) for name, value in values.items() if value is not None} | {
            "AIRLOOP_ENV_FILE": ""
        }

    def _is_in_a_file(self, name: str) -> bool:
        if self.secrets_dir is None or name not in secret_fields():
            return False
        files = {file.name.lower(): file for file in self.secrets_dir.iterdir()}
        file = files.get(f"airloop_{name}")
        return file is not None and file.read_text().strip() == plain(getattr(self, name))


@lru_cache
def secret_fields() -> tuple[str, ...]:
    """Return the names of the fields that hold secrets."""
    return tuple(
        name
        for name, field in Settings.model_fields.items()
        if SecretStr in getattr(field.annotation, "__args__", (field.annotation,))
    )


@lru_cache
def get_settings() -> Settings:
    """Return the settings of this process. They are read once."""
    try:
        settings = Settings()
    except ValidationError as error:
        # pydantic's messages name the fields instead of the environment variables.
        raise SettingsError(in_words(error)) from None
    return settings.model_copy(update={"home": settings.home.resolve()})
