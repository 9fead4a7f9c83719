"""How tasks and pods get at the object store: the only place that reads the storage's Airflow connection.

A task gets the standard variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...) into its environment before its work begins, by the
``pre_execute`` of ``include.dag_kit.defaults``; its child processes inherit them. A pod gets them from a Kubernetes secret, or a service account
whose token it exchanges for them. Never by arguments, templates or XComs.
"""

import os
from typing import Any

from include.settings import Settings, get_settings, known_secrets

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
TOKEN_FOLDER = "/var/run/secrets/airloop-storage"
TOKEN_SECONDS = 3600  # the kubelet renews it when four fifths are over


class NoSuchConnection(ValueError):
    """The connection that the settings name cannot be used; the message says what to do."""


def hand_on_storage() -> None:
    """Put the standard variables of the storage's connection into this process's environment. Without object storage it does nothing.

    Raises:
        NoSuchConnection.
    """
    hide_secrets()
    settings = get_settings()
    if not settings.store.startswith("s3://"):
        return
    from include.data import storage

    if settings.storage_connection:
        found = connection_variables(settings.storage_connection)
        if "AWS_ACCESS_KEY_ID" in found:  # a token of other credentials must not stay beside these
            for name in SECRETS:
                os.environ.pop(name, None)
        os.environ.update(found)
    storage.complete(os.environ)


def hide_secrets() -> None:
    """Have this task's log show no secret that its process knows; its supervisor, which writes what it prints, is told too."""
    from airflow.sdk.log import mask_secret

    mask_secret(list(known_secrets(os.environ)))


def connection_variables(connection: str) -> dict[str, str]:
    """The standard variables that an Airflow connection of the amazon provider stands for; no credentials where it leaves them to the machine.

    Raises:
        NoSuchConnection: there is none of this id, or it is not of type ``aws``.
    """
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException
    from airflow.sdk.log import mask_secret

    todo = (
        f"AIRLOOP_STORAGE_CONNECTION is '{connection}'; make it: airflow connections add '{connection}' --conn-type aws, or AIRFLOW_CONN_{connection.upper()}"
    )
    try:
        found = Connection.get(connection)
    except AirflowNotFoundException as error:
        if (fault := _of_backend()) is not None:
            raise NoSuchConnection(f"the Airflow connection '{connection}' (AIRLOOP_STORAGE_CONNECTION) is not to be had: {fault}") from error
        raise NoSuchConnection(f"there is no such Airflow connection. {todo} (docs/runbooks/storage.md)") from error
    if found.conn_type != "aws":
        raise NoSuchConnection(f"the Airflow connection is of type '{found.conn_type}', not 'aws'. {todo} (docs/runbooks/storage.md)")

    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

    wrapper = AwsConnectionWrapper(found)
    variables = {"AWS_REGION": wrapper.region_name, "AWS_ENDPOINT_URL": wrapper.get_service_endpoint_url("s3")}
    if wrapper.role_arn or wrapper.profile_name or wrapper.assume_role_method in {"assume_role_with_saml", "assume_role_with_web_identity"}:
        from airflow.providers.amazon.aws.hooks.base_aws import AwsGenericHook

        hook = AwsGenericHook(aws_conn_id=connection, client_type="s3")
        frozen = hook.get_session().get_credentials().get_frozen_credentials()
        given = (frozen.access_key, frozen.secret_key, frozen.token)
    else:
        given = (wrapper.aws_access_key_id, wrapper.aws_secret_access_key, wrapper.aws_session_token)
    variables |= dict(zip(SECRETS, given, strict=True))
    for name in SECRETS[1:]:
        if variables[name]:
            mask_secret(variables[name])  # should a library ever log its environment
    return {name: value for name, value in variables.items() if value}


def _of_backend() -> str | None:
    """Why the secrets backend does not answer, if it does not: Airflow's own word on that is in a log that the task's reader does not see."""
    settings = get_settings()
    if settings.secrets_backend != "aws":
        return None
    from include.secrets_manager import fault

    return fault(settings.secrets_profile)


def pod_storage(settings: Settings) -> dict[str, Any]:
    """What gives a pod access to the object store, as plain parts of a pod.

    Returns:
        ``env_from`` and ``env`` of the container, ``volumes`` and ``volume_mounts``, and ``service_account_name`` (None: the namespace's default);
        nothing in them for data on files, or where the cluster gives access by itself.
    """
    nothing: dict[str, Any] = {"env_from": [], "env": [], "volumes": [], "volume_mounts": [], "service_account_name": None}
    if not settings.store.startswith("s3://"):
        return nothing
    if settings.storage_secret:
        return nothing | {"env_from": [{"secretRef": {"name": settings.storage_secret}}]}
    if not settings.storage_service_account:
        return nothing
    given = nothing | {"service_account_name": settings.storage_service_account}
    if not settings.storage_role:  # the cluster's own webhook (AWS IRSA, say) puts variables and token into pods of that account
        return given
    token = {"serviceAccountToken": {"audience": "sts.amazonaws.com", "expirationSeconds": TOKEN_SECONDS, "path": "token"}}
    return given | {
        "env": [
            {"name": "AWS_ROLE_ARN", "value": settings.storage_role},
            {"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": f"{TOKEN_FOLDER}/token"},
            *({"name": name, "value": os.environ[name]} for name in ("AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS") if name in os.environ),
        ],
        "volumes": [{"name": "airloop-storage", "projected": {"sources": [token]}}],
        "volume_mounts": [{"name": "airloop-storage", "mountPath": TOKEN_FOLDER, "readOnly": True}],
    }
