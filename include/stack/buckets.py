"""The buckets of the Compose stack and who may do what in them, made once; `python -m include.stack.buckets` may be run again at any time.

Airflow's tasks own the data, MLflow its artifacts; serving may add to the data in two kinds of folders, and read next to nothing. It is asked of
versitygw's own administration, with the root account that nobody else has. On another S3 service the same three users are made by its own means.
"""

import json
import os
import sys
from xml.sax.saxutils import escape

import httpx

DATA, ARTIFACTS = "airloop-data", "airloop-mlflow"
OWNERS = {DATA: "airflow", ARTIFACTS: "mlflow"}
USERS = ("airflow", "mlflow", "serving")
# What serving writes: its prediction log, that of the shadows, and what applications tell it afterwards, of which it asks whether it has it already.
SERVING_WRITES = ("*/prediction_log/*", "*/shadow_log/*", "*/landing/feedback/*")
SERVING_READS = ("*/landing/feedback/*",)


class BucketsError(RuntimeError):
    """The server refused; the message says what was asked and what it said, and holds no secret."""


def make(endpoint: str, region: str, root: tuple[str, str], secrets: dict[str, str]) -> list[str]:
    """Makes what is missing and sets secrets and rights anew.

    Args:
        root: access key and secret of the root account.
        secrets: user -> secret, of all ``USERS``.

    Returns:
        what there is now, a line each.
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
    return [f"bucket {bucket}, of user {owner}" for bucket, owner in OWNERS.items()] + [f"user serving may write {', '.join(SERVING_WRITES)} of {DATA}"]


def policy() -> dict:
    """Of the data bucket; its owner may do everything anyway."""
    bucket = f"arn:aws:s3:::{DATA}"
    serving = {"Effect": "Allow", "Principal": {"AWS": ["serving"]}}
    # A multipart upload is begun and ended under the same right; one that fails is taken back.
    write = {"Action": ["s3:PutObject", "s3:AbortMultipartUpload"], "Resource": [f"{bucket}/{folder}" for folder in SERVING_WRITES]}
    read = {"Action": ["s3:GetObject"], "Resource": [f"{bucket}/{folder}" for folder in SERVING_READS]}
    names = {"Action": ["s3:ListBucket"], "Resource": [bucket]}  # without it S3 says "you may not" where it means "there is none"
    own = {"Effect": "Allow", "Principal": {"AWS": ["airflow"]}, "Action": ["s3:*"], "Resource": [bucket, f"{bucket}/*"]}
    return {"Version": "2012-10-17", "Statement": [own, *(serving | right for right in (write, read, names))]}


class _Admin:
    """Versitygw's administration, over HTTP: its own command would have the secrets among its arguments."""

    def __init__(self, endpoint: str, region: str, root: tuple[str, str]) -> None:
        self._endpoint, self._region, self._root = endpoint.rstrip("/"), region, root

    def set_user(self, name: str, secret: str) -> None:
        said = self._ask("create-user", f"<Account><Access>{name}</Access><Secret>{escape(secret)}</Secret><Role>user</Role></Account>", accept=(409,))
        if said == 409:
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
        answer = httpx.patch(request.url, content=body.encode(), headers=dict(request.headers.items()), timeout=30, trust_env=False)
        if answer.is_error and answer.status_code not in accept:
            raise BucketsError(f"PATCH {self._endpoint}/{what}: {answer.status_code} {answer.text[:300]}")
        return answer.status_code


def main() -> None:
    names = {"endpoint": "AWS_ENDPOINT_URL", "key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY"}
    names |= {user: f"S3_{user.upper()}_SECRET" for user in USERS}
    given = {what: os.environ.get(name, "") for what, name in names.items()}
    if missing := [names[what] for what, value in given.items() if not value]:
        raise BucketsError(f"no {', '.join(missing)} in the environment; `airloop secrets` makes them in the settings file")
    made = make(given["endpoint"], os.environ.get("AWS_REGION", "us-east-1"), (given["key"], given["secret"]), {user: given[user] for user in USERS})
    print("\n".join(made))


if __name__ == "__main__":
    try:
        main()
    except (BucketsError, httpx.HTTPError) as error:
        sys.exit(f"buckets: {error}")
