"""Create the buckets of the Compose stack and set their access rights.

`python -m include.stack.stores.buckets` may be run again at any time.

Airflow's tasks own the data, MLflow owns its artifacts. Serving may write two kinds of folders of
the data, and read very little. The requests go to versitygw's administration API with the root
account, which no other process has. On another S3 service, create the same three users with its own
tools.
"""

import json
import os
import sys
from typing import Any
from xml.sax.saxutils import escape

import httpx

DATA, ARTIFACTS = "airloop-data", "airloop-mlflow"
OWNERS = {DATA: "airflow", ARTIFACTS: "mlflow"}
USERS = ("airflow", "mlflow", "serving")
# Serving writes its prediction log, the log of shadow models, and feedback from applications. It
# reads feedback to check whether it has stored it already.
SERVING_WRITES = ("*/prediction_log/*", "*/shadow_log/*", "*/landing/feedback/*")
SERVING_READS = ("*/landing/feedback/*",)


class BucketsError(RuntimeError):
    """Raised when the server refuses.

    The message contains the request and the answer, but no secret.
    """


def make(endpoint: str, region: str, root: tuple[str, str], secrets: dict[str, str]) -> list[str]:
    """Create missing buckets and users, and reset secrets and rights.

    Args:
        root: Access key and secret of the root account.
        secrets: user -> secret, for all ``USERS``.

    Returns:
        The resulting buckets and rights, one line each.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError

    admin = _Admin(endpoint, region, root)
    for user in USERS:
        admin.set_user(user, secrets[user])
    s3 = boto3.client(
        "s3", endpoint_url=endpoint, region_name=region, aws_access_key_id=root[0], aws_secret_access_key=root[1],
        config=Config(connect_timeout=5, retries={"max_attempts": 10, "mode": "standard"}),
    )  # fmt: skip
    for bucket, owner in OWNERS.items():
        try:
            s3.create_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                raise BucketsError(f"bucket '{bucket}' cannot be made: {error}") from None
        admin.give(bucket, owner)
    s3.put_bucket_policy(Bucket=DATA, Policy=json.dumps(policy()))
    return [f"bucket {bucket}, of user {owner}" for bucket, owner in OWNERS.items()] + [
        f"user serving may write {', '.join(SERVING_WRITES)} of {DATA}"
    ]


def policy() -> dict[str, Any]:
    """Return the policy of the data bucket. Its owner may do everything in any case."""
    bucket = f"arn:aws:s3:::{DATA}"
    serving = {"Effect": "Allow", "Principal": {"AWS": ["serving"]}}
    # The same right covers the start and the end of a multipart upload. A failed upload is aborted.
    write = {
        "Action": ["s3:PutObject", "s3:AbortMultipartUpload"],
        "Resource": [f"{bucket}/{folder}" for folder in SERVING_WRITES],
    }
    read = {"Action": ["s3:GetObject"], "Resource": [f"{bucket}/{folder}" for folder in SERVING_READS]}
    # Without this right S3 answers "access denied" instead of "not found".
    names = {"Action": ["s3:ListBucket"], "Resource": [bucket]}
    own = {
        "Effect": "Allow",
        "Principal": {"AWS": ["airflow"]},
        "Action": ["s3:*"],
        "Resource": [bucket, f"{bucket}/*"],
    }
    return {"Version": "2012-10-17", "Statement": [own, *(serving | right for right in (write, read, names))]}


class _Admin:
    """Call versitygw's administration over HTTP.

    Its own command would have the secrets in its arguments.
    """

    def __init__(self, endpoint: str, region: str, root: tuple[str, str]) -> None:
        self._endpoint, self._region, self._root = endpoint.rstrip("/"), region, root

    def set_user(self, name: str, secret: str) -> None:
        status = self._ask(
            "create-user",
            f"<Account><Access>{name}</Access><Secret>{escape(secret)}</Secret><Role>user</Role></Account>",
            accept=(409,),
        )
        if status == 409:
            self._ask(f"update-user?access={name}", f"<MutableProps><Secret>{escape(secret)}</Secret></MutableProps>")

    def give(self, bucket: str, owner: str) -> None:
        self._ask(f"change-bucket-owner?bucket={bucket}&owner={owner}", "")

    def _ask(self, what: str, body: str, accept: tuple[int, ...] = ()) -> int:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        request = AWSRequest("PATCH", f"{self._endpoint}/{what}", data=body.encode())
        request.context["payload_signing_enabled"] = True
        S3SigV4Auth(Credentials(*self._root), "s3", self._region).add_auth(request)
        answer = httpx.patch(
            request.url, content=body.encode(), headers=dict(request.headers.items()), timeout=30, trust_env=False
        )
        if answer.is_error and answer.status_code not in accept:
            raise BucketsError(f"PATCH {self._endpoint}/{what}: {answer.status_code} {answer.text[:300]}")
        return answer.status_code


def main() -> None:
    names = {"endpoint": "AWS_ENDPOINT_URL", "key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY"}
    names |= {user: f"S3_{user.upper()}_SECRET" for user in USERS}
    given = {what: os.environ.get(name, "") for what, name in names.items()}
    if missing := [names[what] for what, value in given.items() if not value]:
        raise BucketsError(
            f"no {', '.join(missing)} in the environment; `airloop init-env` makes them in the settings file"
        )
    made = make(
        given["endpoint"],
        os.environ.get("AWS_REGION", "us-east-1"),
        (given["key"], given["secret"]),
        {user: given[user] for user in USERS},
    )
    print("\n".join(made))


if __name__ == "__main__":
    try:
        main()
    except (BucketsError, httpx.HTTPError) as error:
        sys.exit(f"buckets: {error}")
