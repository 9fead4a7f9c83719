"""Access rights in the Compose stack's buckets, checked on a real server."""

import os
import subprocess
import time
from secrets import token_hex

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError

from include.stack.stores import buckets
from tests.integration.s3.conftest import PROGRAM
from tests.ports import free_port

ROOT = ("root", f"root-{token_hex(12)}")
SECRETS = {user: f"{user}-{token_hex(12)}" for user in buckets.USERS}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versitygw")
    for name in ("data", "iam"):
        (folder / name).mkdir()
    address = f"127.0.0.1:{free_port()}"
    options = [
        "--port",
        address,
        "--iam-dir",
        str(folder / "iam"),
        "--iam-cache-disable",
        "--health",
        "/health",
        "--quiet",
        "posix",
        str(folder / "data"),
    ]
    process = subprocess.Popen(
        [PROGRAM, *options], env={**os.environ, "ROOT_ACCESS_KEY": ROOT[0], "ROOT_SECRET_KEY": ROOT[1]}
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://{address}/health", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(10)


def client(server, user, secrets=SECRETS):
    return boto3.client(
        "s3", endpoint_url=server, region_name="us-east-1", aws_access_key_id=user, aws_secret_access_key=secrets[user]
    )


def refused(call, **arguments) -> bool:
    try:
        call(**arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDenied", error
        return True
    return False


def test_each_user_may_do_what_it_must_and_no_more(server):
    for _ in range(2):  # safe to repeat
        assert len(buckets.make(server, "us-east-1", ROOT, SECRETS)) == 3
    airflow, mlflow, serving = (client(server, user) for user in buckets.USERS)
    data, artifacts = buckets.DATA, buckets.ARTIFACTS

    airflow.put_object(Bucket=data, Key="flights/landing/a.csv", Body=b"a")
    assert airflow.get_object(Bucket=data, Key="flights/landing/a.csv")["Body"].read() == b"a"
    assert airflow.list_objects_v2(Bucket=data)["KeyCount"] == 1
    assert refused(airflow.list_objects_v2, Bucket=artifacts) and refused(
        airflow.put_object, Bucket=artifacts, Key="a", Body=b""
    )

    mlflow.put_object(Bucket=artifacts, Key="1/model.onnx", Body=b"m")
    assert refused(mlflow.list_objects_v2, Bucket=data) and refused(
        mlflow.get_object, Bucket=data, Key="flights/landing/a.csv"
    )

    serving.put_object(Bucket=data, Key="flights/prediction_log/1.parquet", Body=b"p")
    serving.put_object(Bucket=data, Key="flights/landing/feedback/1.json", Body=b"f")
    serving.put_object(Bucket=data, Key="flights/shadow_log/1.parquet", Body=b"s")
    assert refused(serving.put_object, Bucket=data, Key="flights/tables/x", Body=b"") and refused(
        serving.put_object, Bucket=artifacts, Key="x", Body=b""
    )
    assert refused(serving.get_object, Bucket=data, Key="flights/landing/a.csv")
    assert refused(serving.get_object, Bucket=data, Key="flights/prediction_log/1.parquet")
    assert refused(serving.list_objects_v2, Bucket=artifacts)
    assert refused(serving.delete_object, Bucket=data, Key="flights/landing/a.csv")
    assert (
        airflow.get_object(Bucket=data, Key="flights/prediction_log/1.parquet")["Body"].read() == b"p"
    )  # tasks read what serving wrote


def test_arrow_writes_the_prediction_log_with_serving_s_rights(server, monkeypatch):
    """Arrow can write the prediction log with serving's rights.

    Arrow sends additional requests when it opens a file. Their refusal must not prevent the write.
    """
    import pyarrow as pa

    from serving.prediction_log.files import log_files

    buckets.make(server, "us-east-1", ROOT, SECRETS)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "serving")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["serving"])
    log_files(f"s3://{buckets.DATA}", endpoint=server, region="us-east-1").write(
        "flights", "2.parquet", [pa.table({"a": [1]})]
    )
    feedback = log_files(f"s3://{buckets.DATA}", folder="landing/feedback", endpoint=server, region="us-east-1")
    assert not feedback.there("flights", "3.parquet")
    feedback.write("flights", "3.parquet", [pa.table({"a": [1]})])
    assert feedback.there("flights", "3.parquet")
    assert (
        client(server, "airflow").head_object(Bucket=buckets.DATA, Key="flights/prediction_log/2.parquet")[
            "ContentLength"
        ]
        > 0
    )


def test_a_new_secret_takes_the_old_one_s_place(server):
    buckets.make(server, "us-east-1", ROOT, SECRETS)
    changed = SECRETS | {"serving": f"serving-{token_hex(12)}"}
    buckets.make(server, "us-east-1", ROOT, changed)
    client(server, "serving", changed).put_object(Bucket=buckets.DATA, Key="flights/landing/feedback/new", Body=b"")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client(server, "serving").put_object(Bucket=buckets.DATA, Key="flights/landing/feedback/old", Body=b"")


def test_another_root_is_told_so_without_the_secret(server):
    with pytest.raises(buckets.BucketsError) as error:
        buckets.make(server, "us-east-1", ("root", "wrong-" + ROOT[1]), SECRETS)
    assert "create-user: 403" in str(error.value) and not any(
        secret in str(error.value) for secret in (ROOT[1], *SECRETS.values())
    )
