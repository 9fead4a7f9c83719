"""Give tasks and pods access to the object store.

Only this module reads the storage's Airflow connection. A task gets the standard variables
(``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...) into its environment before its work begins, by
the ``pre_execute`` of ``include.dag_kit.defaults``. Its child processes inherit them. A pod gets
them from a Kubernetes secret, or it exchanges the token of a service account for them. They are
never passed in arguments, templates or XComs.
"""

import os
from typing import Any

from include.settings import Settings, get_settings, known_secrets

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
TOKEN_FOLDER = "/var/run/secrets/airloop-storage"
# The kubelet renews the token after four fifths of its lifetime.
TOKEN_SECONDS = 3600


class ConnectionNotFoundError(ValueError):
    """Raised when the connection that the settings name cannot be used.

    The message says how to fix it.
    """


def export_storage_env() -> None:
    """Set the standard variables of the storage's connection in this process's environment.

    Does nothing without object storage.

    Raises:
        ConnectionNotFoundError: The connection cannot be used.
    """
    hide_secrets()
    settings = get_settings()
    if not settings.store.startswith("s3://"):
        return
    from include.data import storage

    if settings.storage_connection:
        variables = connection_variables(settings.storage_connection)
        # Remove the old credentials first. A token must not be combined with other credentials.
        if "AWS_ACCESS_KEY_ID" in variables:
            for name in SECRETS:
                os.environ.pop(name, None)
        os.environ.update(variables)
    storage.complete(os.environ)


def hide_secrets() -> None:
    """Mask all secrets that this process knows in the task's log.

    This includes the supervisor, which writes what the task prints.
    """
    from airflow.sdk.log import mask_secret

    mask_secret(list(known_secrets(os.environ)))


def connection_variables(connection: str) -> dict[str, str]:
    """Return the standard variables for an Airflow connection of the amazon provider.

    Credentials are missing if the connection leaves them to the machine.

    Raises:
        ConnectionNotFoundError: The connection does not exist, or it is not of type ``aws``.
    """
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException
    from airflow.sdk.log import mask_secret

    todo = (
        f"AIRLOOP_STORAGE_CONNECTION is '{connection}'; make it: "
        f"airflow connections add '{connection}' --conn-type aws, or AIRFLOW_CONN_{connection.upper()}"
    )
    try:
        stored = Connection.get(connection)
    except AirflowNotFoundException as error:
        if (fault := _of_backend()) is not None:
            raise ConnectionNotFoundError(
                f"the Airflow connection '{connection}' (AIRLOOP_STORAGE_CONNECTION) cannot be read: {fault}"
            ) from error
        raise ConnectionNotFoundError(
            f"this Airflow connection does not exist. {todo} (docs/runbooks/storage.md)"
        ) from error
    if stored.conn_type != "aws":
        raise ConnectionNotFoundError(
            f"the Airflow connection is of type '{stored.conn_type}', not 'aws'. {todo} (docs/runbooks/storage.md)"
        )

    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

    wrapper = AwsConnectionWrapper(stored)
    variables = {"AWS_REGION": wrapper.region_name, "AWS_ENDPOINT_URL": wrapper.get_service_endpoint_url("s3")}
    if (
        wrapper.role_arn
        or wrapper.profile_name
        or wrapper.assume_role_method in {"assume_role_with_saml", "assume_role_with_web_identity"}
    ):
        from airflow.providers.amazon.aws.hooks.base_aws import AwsGenericHook

        hook = AwsGenericHook(aws_conn_id=connection, client_type="s3")
        frozen = hook.get_session().get_credentials().get_frozen_credentials()
        given = (frozen.access_key, frozen.secret_key, frozen.token)
    else:
        given = (wrapper.aws_access_key_id, wrapper.aws_secret_access_key, wrapper.aws_session_token)
    variables |= dict(zip(SECRETS, given, strict=True))
    for name in SECRETS[1:]:
        if variables[name]:
            # In case a library logs its environment.
            mask_secret(variables[name])
    return {name: value for name, value in variables.items() if value}


def _of_backend() -> str | None:
    """Return why the secrets backend does not answer, or None if it does.

    Airflow's own message about that is in a log that the task's reader does not see.
    """
    settings = get_settings()
    if settings.secrets_backend != "aws":
        return None
    from include.secrets_manager import fault

    return fault(settings.secrets_profile)


def pod_storage(settings: Settings) -> dict[str, Any]:
    """Return the parts of a pod that give it access to the object store.

    Returns:
        ``env_from`` and ``env`` of the container, ``volumes`` and ``volume_mounts``, and
        ``service_account_name`` (None: the namespace's default). All are empty if the data is in
        local files, or if the cluster gives access automatically.
    """
    nothing: dict[str, Any] = {
        "env_from": [],
        "env": [],
        "volumes": [],
        "volume_mounts": [],
        "service_account_name": None,
    }
    if not settings.store.startswith("s3://"):
        return nothing
    if settings.storage_secret:
        return nothing | {"env_from": [{"secretRef": {"name": settings.storage_secret}}]}
    if not settings.storage_service_account:
        return nothing
    given = nothing | {"service_account_name": settings.storage_service_account}
    # The cluster's own webhook (e.g. AWS IRSA) puts variables and a token into the pods of that
    # account.
    if not settings.storage_role:
        return given
    token = {
        "serviceAccountToken": {"audience": "sts.amazonaws.com", "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    }
    return given | {
        "env": [
            {"name": "AWS_ROLE_ARN", "value": settings.storage_role},
            {"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": f"{TOKEN_FOLDER}/token"},
            *(
                {"name": name, "value": os.environ[name]}
                for name in ("AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS")
                if name in os.environ
            ),
        ],
        "volumes": [{"name": "airloop-storage", "projected": {"sources": [token]}}],
        "volume_mounts": [{"name": "airloop-storage", "mountPath": TOKEN_FOLDER, "readOnly": True}],
    }
