"""The accounts, passwords and keys."""

from typing import Literal

from pydantic import Field, SecretStr

from include.settings.profile import Profile


class Accounts(Profile):
    """Accounts of Airflow, MLflow and serving, with their passwords and keys."""

    auth_manager: Literal["simple", "fab"] | None = Field(
        None,
        description=(
            "Airflow's auth manager: simple (one developer) or fab (users with roles). Default: simple in the profile"
            " embedded, otherwise fab."
        ),
    )
    airflow_admin_password: SecretStr | None = Field(
        None, description="Password of Airflow's user admin. The profile embedded generates it at the first start."
    )
    airflow_fernet_key: SecretStr | None = Field(
        None,
        description=(
            "Key that encrypts Airflow's stored secrets: 32 random bytes in URL-safe base64. The profile embedded"
            " generates it. To rotate it, set NEW,OLD."
        ),
    )
    airflow_jwt_secret: SecretStr | None = Field(
        None,
        description=(
            "Key that signs Airflow's tokens. All Airflow processes need the same one. The profile embedded"
            " generates it."
        ),
    )
    airflow_api_secret_key: SecretStr | None = Field(
        None,
        description=(
            "Key that signs the cookies of Airflow's API server. All its replicas need the same one. The profile"
            " embedded generates it."
        ),
    )
    mlflow_username: str | None = Field(
        None,
        description=(
            "User name that tasks and serving use to log in to MLflow. If unset, they use MLflow without a login."
        ),
    )
    mlflow_password: SecretStr | None = Field(
        None, description="Password of the user AIRLOOP_MLFLOW_USERNAME in MLflow."
    )
    mlflow_reader_password: SecretStr | None = Field(
        None,
        description=(
            "Password of MLflow's user reader, which serving uses to log in. If unset, serving uses"
            " AIRLOOP_MLFLOW_USERNAME."
        ),
    )
    mlflow_admin_password: SecretStr | None = Field(
        None, description="Password of MLflow's user admin. If it is set, MLflow requires a login."
    )
    mlflow_flask_secret_key: SecretStr | None = Field(
        None, description="Key that signs MLflow's own cookies and forms. Only MLflow's server needs it."
    )
    serving_api_key: SecretStr | None = Field(
        None, description="API key that Airflow's tasks use to call serving. If unset, they call it without a key."
    )
    edge_signing_key: SecretStr | None = Field(
        None,
        description=(
            "Ed25519 key that signs the bundles of `airloop export`: 32 random bytes in URL-safe base64. The profile"
            " embedded generates it."
        ),
    )

    @property
    def users(self) -> Literal["simple", "fab"]:
        """Return the name of Airflow's auth manager."""
        return self.auth_manager or ("simple" if self.profile == "embedded" else "fab")
