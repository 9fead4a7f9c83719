"""The profile, and where its secrets are."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Profile(BaseSettings):
    """The profile, and the places of the secrets. Every group of settings has these."""

    # An empty variable counts as unset. Errors do not show the given value, because it may be a
    # secret.
    model_config = SettingsConfigDict(
        env_prefix="AIRLOOP_",
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        hide_input_in_errors=True,
        dotenv_filtering="match_prefix",
    )

    profile: Literal["embedded", "compose", "kubernetes"] = Field(
        "embedded",
        description=(
            "Deployment profile. embedded runs on one machine, and no secret has to be set. "
            "compose and kubernetes use real stores and require real secrets."
        ),
    )
    secrets_dir: Path | None = Field(
        None,
        description=(
            "Folder with one file per secret, named like its variable, for example Docker's /run/secrets or a"
            " Kubernetes volume."
        ),
    )
    # docs/runbooks/access.md
    secrets_backend: Literal["files", "aws"] = Field(
        "files",
        description=(
            "Backend of Airflow's connections and variables: files (in AIRLOOP_SECRETS_DIR) or aws (AWS Secrets"
            " Manager)."
        ),
    )
    secrets_prefix: str = Field(
        "airloop",
        description=(
            "Prefix of Airflow's secrets in AWS Secrets Manager: <prefix>/connections/<id> and"
            " <prefix>/variables/<name>."
        ),
    )
    secrets_id: str | None = Field(
        None,
        description=(
            "Secret of AWS Secrets Manager that contains the secrets of these settings, as a JSON object of variables."
        ),
    )
    secrets_profile: str | None = Field(
        None,
        description=(
            "Profile of the AWS credentials file for Secrets Manager. If unset, the process uses the standard AWS"
            " credential chain."
        ),
    )
