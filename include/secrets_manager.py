"""Read Airloop's own secrets from AWS Secrets Manager.

One secret there holds a JSON object whose keys are the variables ``AIRLOOP_...``.

Credentials come from the standard chain (an instance's role, a pod's service account, the variables
AWS_*) or from a profile of the AWS credentials file. The region selects the endpoint.
AWS_ENDPOINT_URL_SECRETS_MANAGER replaces it if the server is not AWS's own.
"""

import json
import os
from typing import Any

CONNECT_S, READ_S, TRIES = 5, 10, 3


class SecretsManagerError(ValueError):
    """Raised when the secret cannot be read.

    The message names the secret, the server, the cause and the fix. It contains no part of the
    secret.
    """


def read(secret_id: str, profile: str | None = None) -> dict[str, str]:
    """Return the content of the secret.

    Args:
        secret_id: Name or ARN.
        profile: Profile of the AWS credentials file. If given, the variables AWS_* are ignored.

    Raises:
        SecretsManagerError: The secret cannot be read or is not a JSON object of variables.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        response = client(profile).get_secret_value(SecretId=secret_id)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        raise SecretsManagerError(
            f"AWS Secrets Manager does not give '{secret_id}': {code}."
            f" {_TODO.get(code, 'May this role or user read it?')}"
        ) from None
    # The server is unreachable, or credentials, the region or the profile are missing.
    except BotoCoreError as error:
        raise SecretsManagerError(f"AWS Secrets Manager cannot be asked for '{secret_id}': {error}. {_HOW}") from None
    try:
        content = json.loads(response.get("SecretString") or "")
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(isinstance(value, str | int | float) for value in content.values()):
        raise SecretsManagerError(
            f"the secret '{secret_id}' is not a JSON object of variables: "
            + '{"AIRLOOP_LEDGER_URL": "postgresql://...", ...}'
        )
    return {str(name): str(value) for name, value in content.items()}


def fault(profile: str | None = None) -> str | None:
    """Return why Secrets Manager cannot be queried, or None if it can."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client(profile).get_secret_value(SecretId="airloop/is-anybody-there")
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        return (
            None
            if code in ("ResourceNotFoundException", "AccessDeniedException")
            else f"AWS Secrets Manager answers {code}"
        )
    except BotoCoreError as error:
        return f"AWS Secrets Manager cannot be asked: {error}. {_HOW}"
    return None


def client(profile: str | None = None) -> Any:
    """Return a client that times out after seconds instead of minutes."""
    import boto3
    from botocore.config import Config

    limits = Config(
        connect_timeout=CONNECT_S, read_timeout=READ_S, retries={"mode": "standard", "total_max_attempts": TRIES}
    )
    return boto3.Session(profile_name=profile, region_name=region()).client("secretsmanager", config=limits)


def region() -> str | None:
    """Return the region from AWS_REGION or AWS_DEFAULT_REGION, or None to use the profile's."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


_HOW = (
    "See AIRLOOP_SECRETS_ID, AIRLOOP_SECRETS_PROFILE, AWS_REGION and AWS_ENDPOINT_URL_SECRETS_MANAGER"
    " (docs/runbooks/access.md)."
)
_TODO = {
    "ResourceNotFoundException": (
        "Make it: aws secretsmanager create-secret --name ... --secret-string file://..., or correct"
        " AIRLOOP_SECRETS_ID."
    )
}
