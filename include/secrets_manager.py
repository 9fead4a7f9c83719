"""AWS Secrets Manager, asked for Airloop's own secrets: one secret there, a JSON object whose keys are the variables ``AIRLOOP_...``.

Who may ask is said by the standard chain (an instance's role, a pod's account, the variables AWS_*), or by a profile of the AWS credentials file. Where
Secrets Manager is, by the region, and by AWS_ENDPOINT_URL_SECRETS_MANAGER where it is not AWS's own.
"""

import json
import os

CONNECT_S, READ_S, TRIES = 5, 10, 3


class SecretsManagerError(ValueError):
    """The secret cannot be read; the message says which, where, why and what to do, and holds nothing of it."""


def read(secret_id: str, profile: str | None = None) -> dict[str, str]:
    """The secret's content.

    Args:
        secret_id: name or ARN.
        profile: of the AWS credentials file; then the variables AWS_* have no say.

    Raises:
        SecretsManagerError.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        said = client(profile).get_secret_value(SecretId=secret_id)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        raise SecretsManagerError(f"AWS Secrets Manager does not give '{secret_id}': {code}. {_TODO.get(code, 'May this role or user read it?')}") from None
    except BotoCoreError as error:  # away, no credentials, no region, no such profile
        raise SecretsManagerError(f"AWS Secrets Manager cannot be asked for '{secret_id}': {error}. {_HOW}") from None
    try:
        content = json.loads(said.get("SecretString") or "")
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(isinstance(value, str | int | float) for value in content.values()):
        raise SecretsManagerError(f"the secret '{secret_id}' is not a JSON object of variables: " + '{"AIRLOOP_LEDGER_URL": "postgresql://...", ...}')
    return {str(name): str(value) for name, value in content.items()}


def fault(profile: str | None = None) -> str | None:
    """Why Secrets Manager cannot be asked, in words; None if it can."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client(profile).get_secret_value(SecretId="airloop/is-anybody-there")
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        return None if code in ("ResourceNotFoundException", "AccessDeniedException") else f"AWS Secrets Manager answers {code}"
    except BotoCoreError as error:
        return f"AWS Secrets Manager cannot be asked: {error}. {_HOW}"
    return None


def client(profile: str | None = None):
    """A client that gives up after seconds, not minutes."""
    import boto3
    from botocore.config import Config

    limits = Config(connect_timeout=CONNECT_S, read_timeout=READ_S, retries={"mode": "standard", "total_max_attempts": TRIES})
    return boto3.Session(profile_name=profile, region_name=region()).client("secretsmanager", config=limits)


def region() -> str | None:
    """As the house says it (AWS_REGION), as boto3 does, or as the profile does."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


_HOW = "See AIRLOOP_SECRETS_ID, AIRLOOP_SECRETS_PROFILE, AWS_REGION and AWS_ENDPOINT_URL_SECRETS_MANAGER (docs/runbooks/access.md)."
_TODO = {"ResourceNotFoundException": "Make it: aws secretsmanager create-secret --name ... --secret-string file://..., or correct AIRLOOP_SECRETS_ID."}
