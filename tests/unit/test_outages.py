"""An unavailable server is distinguished from a wrong request.

The tests use each library's own errors, from a port without a listener.
"""

import socket

import pytest

from include.outages import outage_of
from tests.ports import free_port

SECONDS = 2


@pytest.fixture(scope="module")
def nobody() -> int:
    return free_port()


def postgres(port):
    from sqlalchemy import create_engine

    create_engine(f"postgresql+psycopg2://u:p@127.0.0.1:{port}/d").connect()


def postgres_by_psycopg(port):
    from sqlalchemy import create_engine

    create_engine(f"postgresql+psycopg://u:p@127.0.0.1:{port}/d").connect()


def redis(port):
    from redis import Redis

    Redis(port=port, retry=None).ping()


def mlflow(port):
    import os
    from unittest.mock import patch

    from mlflow import MlflowClient

    with patch.dict(os.environ, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT=str(SECONDS)):
        MlflowClient(f"http://127.0.0.1:{port}").search_registered_models()


def boto(port):
    import boto3
    from botocore.config import Config

    config = Config(retries={"total_max_attempts": 1}, connect_timeout=SECONDS)
    boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="r",
        aws_access_key_id="k",
        aws_secret_access_key="s",
        config=config,
    ).list_buckets()


def delta(port):
    from deltalake import DeltaTable

    options = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "r",
        "AWS_ALLOW_HTTP": "true",
        "max_retries": "0",
        "retry_timeout": f"{SECONDS}s",
    }
    DeltaTable("s3://bucket/table", storage_options=options)


def http(port):
    import httpx

    httpx.get(f"http://127.0.0.1:{port}", trust_env=False)


def wrapped(port):
    try:
        socket.create_connection(("127.0.0.1", port), SECONDS)
    except OSError as error:
        raise RuntimeError("what somebody made of it") from error


@pytest.mark.parametrize(
    "call", [postgres, postgres_by_psycopg, redis, mlflow, boto, delta, http, wrapped], ids=lambda call: call.__name__
)
def test_a_server_that_is_away_is_told(nobody, call):
    with pytest.raises(Exception) as raised:
        call(nobody)
    assert outage_of(raised.value), repr(raised.value)


@pytest.mark.parametrize("status, outage", [(500, True), (503, True), (404, False), (422, False)])
def test_an_answer_is_an_outage_if_it_is_the_servers_fault(status, outage):
    import httpx

    error = httpx.HTTPStatusError("no", request=httpx.Request("GET", "http://x"), response=httpx.Response(status))
    assert bool(outage_of(error)) == outage


def wrong_sql():
    from sqlalchemy import create_engine, text

    with create_engine("sqlite://").connect() as connection:
        # An OperationalError, as from an unavailable server.
        connection.execute(text("SELECT 1 FROM nowhere"))


def no_such_table():
    from deltalake import DeltaTable

    DeltaTable("/nowhere/at/all")


def no_such_file():
    open("/nowhere/at/all")  # noqa: SIM115, PTH123


def a_value():
    float("x")


@pytest.mark.parametrize("call", [wrong_sql, no_such_table, no_such_file, a_value], ids=lambda call: call.__name__)
def test_an_error_of_ones_own_is_none(call):
    with pytest.raises(Exception) as raised:
        call()
    assert outage_of(raised.value) is None
