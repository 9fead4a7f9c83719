"""A pod gets access to the object store by references to a secret or a token, never by values."""

from secrets import token_hex

import pytest

from include.dag_kit.storage import pod_storage
from include.settings import Settings

S3 = {"data_root": "s3://bucket/prefix"}
ROLE = "arn:aws:iam::123456789012:role/airloop"


def parts(**settings):
    given = pod_storage(Settings(**settings))
    assert given.keys() == {"env_from", "env", "volumes", "volume_mounts", "service_account_name"}
    return {name: value for name, value in given.items() if value}


def test_before_its_work_each_task_hides_the_secrets_that_its_process_knows(monkeypatch, own_ledger):
    from airflow.sdk._shared.secrets_masker import redact

    from include.dag_kit.defaults import default_args
    from include.projects.flights import project as flights

    secret = f"of-serving-{token_hex(8)}"
    # Airflow is already loaded, so its own masking at start has happened.
    assert redact(secret) == secret
    monkeypatch.setenv("AIRLOOP_SERVING_API_KEY", secret)
    default_args(flights)["pre_execute"]({})
    assert redact(secret) == "***"


def test_data_on_files_needs_nothing():
    assert parts(storage_secret="airloop-storage") == {}


def test_without_either_the_cluster_gives_access_by_itself():
    assert parts(**S3) == {}


def test_a_secret_is_named_not_read():
    assert parts(**S3, storage_secret="airloop-storage") == {"env_from": [{"secretRef": {"name": "airloop-storage"}}]}


def test_a_service_account_whose_pods_the_cluster_changes_itself():
    assert parts(**S3, storage_service_account="trainer") == {"service_account_name": "trainer"}


def test_a_service_account_whose_token_is_exchanged_for_a_role(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for pods")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"):
        monkeypatch.delenv(name, raising=False)
    given = parts(**S3, storage_service_account="trainer", storage_role=ROLE)
    assert given["service_account_name"] == "trainer"
    assert {entry["name"]: entry["value"] for entry in given["env"]} == {
        "AWS_ROLE_ARN": ROLE,
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/airloop-storage/token",
        "AWS_REGION": "eu-central-1",
    }
    ((source,),) = [volume["projected"]["sources"] for volume in given["volumes"]]
    assert (
        source["serviceAccountToken"]["audience"] == "sts.amazonaws.com"
        and source["serviceAccountToken"]["path"] == "token"
    )
    assert [m["name"] for m in given["volume_mounts"]] == [v["name"] for v in given["volumes"]] and given[
        "volume_mounts"
    ][0]["readOnly"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"storage_secret": "a", "storage_service_account": "b"}, "mutually exclusive"),
        ({"data_root": "gs://bucket/prefix"}, "AIRLOOP_DATA_ROOT is 'gs://bucket/prefix'"),
        ({"data_root": "s3://"}, "s3://bucket or s3://bucket/prefix"),
        ({"data_root": "s3://Bucket_/prefix"}, "AIRLOOP_DATA_ROOT"),
        ({"data_root": "s3://bucket//prefix"}, "AIRLOOP_DATA_ROOT"),
        ({"remote_logs": "s3://bucket/logs"}, "AIRLOOP_STORAGE_CONNECTION"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_a_slash_at_the_end_changes_nothing():
    assert Settings(data_root="s3://bucket/prefix/").store == "s3://bucket/prefix"
