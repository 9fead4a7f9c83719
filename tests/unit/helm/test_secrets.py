"""`airloop kubernetes-secrets` creates the required secrets, minimal for each component."""

import base64
import hashlib
import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from include.cli import app
from include.settings import Settings, SettingsError, get_settings, secret_fields
from include.stack.kubernetes import secrets
from tests.helm import CHART, CHARTS, MISSING, PROGRAM, one, render

# In every secret, so that it can be found.
WORD = "q7"
PLAIN = {"mlflow_username", "profile"}
STORE = {
    "AWS_ACCESS_KEY_ID": f"{WORD}-all",
    "AWS_SECRET_ACCESS_KEY": f"{WORD}-all-secret",
    "AWS_ENDPOINT_URL": "http://s3:7070",
    "AWS_REGION": "eu-central-1",
}


def settings(**given) -> Settings:
    def made(name: str) -> str:
        if name in ("airflow_fernet_key", "edge_signing_key"):
            return base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode()
        if name == "online_store_url":
            return f"redis://:{WORD}-{name}-password@redis:6379/0"
        if name.endswith("_url"):
            return f"postgresql://{name}:{WORD}-{name}-password@postgres:5432/{name}"
        return f"{WORD}-{name}-of-some-length"

    return Settings(
        **{name: made(name) for name in secret_fields()}
        | {
            "profile": "kubernetes",
            "mlflow_username": "airloop",
            "mlflow_uri": "http://loop-mlflow.ml:5000",
            "serving_uri": "http://loop-serving.ml",
            "data_root": "s3://data",
            "remote_logs": "s3://data/_logs",
            "storage_connection": "airloop_store",
            "storage_secret": "airloop-storage",
            "kubernetes_namespace": "airloop-training",
            "home": "/somewhere",
        }
        | given
    )


@pytest.fixture
def made():
    return {s["metadata"]["name"]: s for s in secrets(settings(), STORE)}


def test_the_charts_find_what_they_ask_for(made):
    values = yaml.safe_load((CHARTS / "airflow" / "values.yaml").read_text())
    assert values["data"]["metadataSecretName"] in made
    keys = made[values["fernetKeySecretName"]]["stringData"].keys()
    # The names that the official chart uses.
    assert {"connection", "fernet-key", "api-secret-key", "jwt-secret"} <= keys
    assert {item["key"] for item in values["createUserJob"]["extraVolumes"][0]["secret"]["items"]} <= keys
    assert [s["secretRef"]["name"] for s in yaml.safe_load(values["extraEnvFrom"])] == ["airloop-airflow"]
    assert {s["metadata"]["namespace"] for name, s in made.items() if name.startswith("airloop-airflow")} == {"airflow"}


@pytest.mark.skipif(not PROGRAM, reason=MISSING)
@pytest.mark.parametrize("part", ["mlflow", "serving"])
def test_our_chart_finds_every_key(made, part):
    container = one(render(), "Deployment", f"loop-{part}")["spec"]["template"]["spec"]["containers"][0]
    asked = [v["valueFrom"]["secretKeyRef"] for v in container["env"] if "valueFrom" in v]
    assert asked and all(a["key"] in made[a["name"]]["stringData"] for a in asked)
    assert {a["key"] for a in asked} == made[f"airloop-{part}"]["stringData"].keys(), (
        "a key that nobody asks for is one too many"
    )
    assert (
        one(render(), "Deployment", "loop-serving")["spec"]["template"]["spec"]["volumes"][1]["secret"]["secretName"]
        in made
    )


def test_nobody_is_given_what_is_anothers(made):
    texts = {name: json.dumps(s["stringData"]) for name, s in made.items()}
    hidden = {
        "airloop-airflow": (
            "mlflow_database_url",
            "mlflow_admin_password",
            "mlflow_flask_secret_key",
            "database_admin_url",
            "airflow_database_url",
            "airflow_fernet_key",
            "airflow_jwt_secret",
            "airflow_admin_password",
            "all-secret",
        ),
        "airloop-mlflow": ("airflow", "ledger", "feast", "online_store", "serving", "database_admin_url"),
        "airloop-serving": (
            "airflow_",
            "ledger",
            "mlflow_admin",
            "mlflow_database",
            "mlflow_flask",
            "serving_api_key",
            "database_admin_url",
        ),
        "airloop-storage": (
            "airflow_",
            "ledger",
            "mlflow_admin",
            "mlflow_database",
            "feast",
            "online_store",
            "serving_api_key",
        ),
    }
    for name, words in hidden.items():
        text = (
            texts[name]
            if name != "airloop-airflow"
            else texts[name].replace(json.dumps(made[name]["stringData"]["AIRFLOW_CONN_AIRLOOP_STORE"])[1:-1], "")
        )
        assert [word for word in words if f"{WORD}-{word}" in text] == [], name
    assert WORD not in texts["airloop-serving-keys"]


def test_airflow_is_told_where_everything_is(made):
    variables = made["airloop-airflow"]["stringData"]
    assert variables["AIRLOOP_MLFLOW_URI"] == variables["MLFLOW_TRACKING_URI"] == "http://loop-mlflow.ml:5000"
    assert variables["AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER"] == "s3://data/_logs"
    connection = json.loads(variables["AIRFLOW_CONN_AIRLOOP_STORE"])
    assert (
        connection["login"] == STORE["AWS_ACCESS_KEY_ID"]
        and connection["extra"]["endpoint_url"] == STORE["AWS_ENDPOINT_URL"]
    )
    assert {
        "AIRLOOP_LEDGER_URL",
        "AIRLOOP_FEAST_REGISTRY_URL",
        "AIRLOOP_ONLINE_STORE_URL",
        "AIRLOOP_SERVING_API_KEY",
        "AIRLOOP_DATA_ROOT",
    } <= variables.keys()
    assert not {"AIRLOOP_HOME", "AIRLOOP_HOST", "AIRLOOP_DAGS_FOLDER", "AWS_ACCESS_KEY_ID"} & variables.keys()


def test_training_pods_get_at_the_store_and_at_mlflow(made):
    secret = made["airloop-storage"]
    assert secret["metadata"]["namespace"] == "airloop-training"
    assert secret["stringData"].keys() == {*STORE, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}


def test_a_part_may_have_rights_of_its_own():
    own = {"SERVING_AWS_ACCESS_KEY_ID": "serving", "SERVING_AWS_SECRET_ACCESS_KEY": "its-own"}
    made = {s["metadata"]["name"]: s["stringData"] for s in secrets(settings(), STORE | own)}
    assert (made["airloop-serving"]["AWS_ACCESS_KEY_ID"], made["airloop-mlflow"]["AWS_ACCESS_KEY_ID"]) == (
        "serving",
        STORE["AWS_ACCESS_KEY_ID"],
    )
    without = {s["metadata"]["name"]: s["stringData"] for s in secrets(settings(), {})}
    assert not [
        name for name, data in without.items() if "AWS_ACCESS_KEY_ID" in data
    ]  # then the service accounts give access
    assert json.loads(without["airloop-airflow"]["AIRFLOW_CONN_AIRLOOP_STORE"]) == {"conn_type": "aws", "extra": {}}
    with pytest.raises(SettingsError, match="only one is set"):
        secrets(settings(), {"AWS_ACCESS_KEY_ID": "x"})


def test_the_houses_key_stands_beside_peoples(tmp_path):
    from serving.keys import digest, read

    file = tmp_path / "keys.json"
    theirs = {"name": "checkout", "sha256": "0" * 64, "roles": ["predict"]}
    file.write_text(json.dumps({"keys": [theirs, {"name": "airloop", "sha256": "1" * 64, "roles": ["predict"]}]}))
    made = {s["metadata"]["name"]: s["stringData"] for s in secrets(settings(), STORE, keys_file=file)}
    file.write_text(made["airloop-serving-keys"]["keys.json"])
    keys = {key.name: key for key in read(file).keys}
    assert keys.keys() == {"airloop", "checkout"}
    assert keys["airloop"].sha256 == digest(f"{WORD}-serving_api_key-of-some-length".encode()) and keys["airloop"].may(
        "predict"
    )
    file.write_text("[]")
    with pytest.raises(SettingsError, match=re.escape(f"{file} is not a file of keys")):
        secrets(settings(), STORE, keys_file=file)


def test_prometheus_has_a_key_of_its_own_that_opens_metrics_only(tmp_path):
    from serving.keys import digest, read

    key = f"{WORD}-for-metrics-of-some-length"
    made = {s["metadata"]["name"]: s for s in secrets(settings(), STORE | {"SERVING_METRICS_KEY": key})}
    assert (
        made["airloop-serving-metrics"]["stringData"] == {"key": key}
        and made["airloop-serving-metrics"]["metadata"]["namespace"] == "airloop"
    )
    assert not [name for name, one in made.items() if key in json.dumps(one) and name != "airloop-serving-metrics"]
    (tmp_path / "keys.json").write_text(made["airloop-serving-keys"]["stringData"]["keys.json"])
    keys = {one.name: one for one in read(tmp_path / "keys.json").keys}
    assert keys["prometheus"].sha256 == digest(key.encode())
    assert (
        keys["prometheus"].may("metrics")
        and not keys["prometheus"].may("predict")
        and not keys["airloop"].may("metrics")
    )
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["serving"]["metrics"]["keySecretName"] == "airloop-serving-metrics"
    with pytest.raises(SettingsError, match="SERVING_METRICS_KEY is shorter than 12"):
        secrets(settings(), {"SERVING_METRICS_KEY": "short"})


def test_what_is_missing_is_named():
    with pytest.raises(SettingsError, match="AIRLOOP_PROFILE is 'embedded'"):
        secrets(Settings(), STORE)
    with pytest.raises(SettingsError, match="AIRLOOP_MLFLOW_ADMIN_PASSWORD"):
        secrets(settings(mlflow_admin_password=None), STORE)
    with pytest.raises(SettingsError, match="AIRLOOP_MLFLOW_URI"):
        secrets(settings(mlflow_uri=None), STORE)


def test_the_command_prints_a_list_for_kubectl(monkeypatch):
    given = settings()
    for name, value in {**given.environment(), **STORE}.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    try:
        done = CliRunner().invoke(app, ["kubernetes-secrets", "--namespace", "ml"])
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
    assert done.exit_code == 0, done.output
    output = json.loads(done.stdout)
    names = {secret["metadata"]["name"] for secret in output["items"] if secret["metadata"].get("namespace") == "ml"}
    # The namespace comes first, so it exists when `kubectl apply` creates the secrets. It enforces
    # the same standard as the chart's namespace.
    assert (
        output["items"][0]["kind"] == "Namespace"
        and output["items"][0]["metadata"]["name"] == given.kubernetes_namespace
    )
    assert output["items"][0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert output["kind"] == "List" and names == {"airloop-mlflow", "airloop-serving", "airloop-serving-keys"}


def test_the_chart_names_the_secrets_so():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert (values["mlflow"]["secretName"], values["serving"]["secretName"], values["serving"]["keysSecretName"]) == (
        "airloop-mlflow", "airloop-serving", "airloop-serving-keys",
    )  # fmt: skip
