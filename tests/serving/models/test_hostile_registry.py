"""A registry tag or an artifact affects only its own model, and errors are reported there.

The model's champion keeps answering.
"""

import json
import time

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.app import create_app
from serving.settings import Settings
from tests.serving.harness import LOCAL, NAME, Registry, expected
from tests.waiting import wait_for

pytestmark = pytest.mark.stack
OTHER = "others"
RAW = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}
SEARCH = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
DEEP = "[" * 30_000 + "]" * 30_000
ARM = {"name": "a", "version": "1", "weight": 0.5}


def traffic(**fields) -> str:
    return json.dumps({"traffic": fields})


HOSTILE_TAGS = {
    "deep arrays": DEEP,
    "deep objects": '{"a":' * 15_000 + "1" + "}" * 15_000,
    "deep traffic": '{"traffic": ' + DEEP + "}",
    "traffic of 20 levels": '{"traffic": {"state": ' + "[" * 20 + "]" * 20 + "}}",
    "salt of half a surrogate pair": (
        '{"traffic": {"salt": "\\ud800", "arms": [{"name": "a", "version": "1", "weight": 0.5}]}}'
    ),
    "salt of 65 bytes": traffic(salt="é" * 33, arms=[ARM]),
    "salt with a NUL": traffic(salt="\0", arms=[ARM]),
    "weight NaN": '{"traffic": {"arms": [{"name": "a", "version": "1", "weight": NaN}]}}',
    "weight beyond floats": '{"traffic": {"arms": [{"name": "a", "version": "1", "weight": 1e999}]}}',
    "integer of 5000 digits": (
        '{"traffic": {"arms": [{"name": "a", "version": "1", "weight": 0.5, "max_failures": ' + "9" * 5000 + "}]}}"
    ),
    "integer of 400 digits": (
        '{"traffic": {"arms": [{"name": "a", "version": "1", "weight": 0.5, "max_failures": ' + "9" * 400 + "}]}}"
    ),
    "version of 5000 digits": traffic(arms=[{**ARM, "version": "9" * 5000}]),
    "names twice": traffic(arms=[ARM, ARM]),
    "key twice": '{"traffic": {"salt": "a"}, "traffic": {"salt": "b"}}',
    "traffic is text": '{"traffic": "arms"}',
    "traffic is false": '{"traffic": false}',
    "too many arms": traffic(arms=[{"name": f"a{n}", "version": "1", "weight": 0} for n in range(200)]),
    "an array": "[]",
    "no JSON": "\x7f{",
    "escapes": json.dumps({"\x1b[31m": {"\n": 1}, "traffic": {"arms": [{"\x1b[31m": 1}]}}),
}


@pytest.fixture(scope="module")
def stand(migrated, features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder)
    registry.add(bias=1)
    registry.add(bias=2, name=OTHER)
    made = Settings(
        mlflow_uri=registry.uri,
        feature_repo=features.folder,
        log_root=folder / "store",
        cache=folder / "cache",
        poll_seconds=0.02,
    )
    gateway = create_app(made)
    with TestClient(gateway, base_url="http://localhost", client=LOCAL, raise_server_exceptions=False) as client:
        wait_for(
            lambda: client.get("/ready").status_code == 200 and len(client.get("/models").json()) == 2,
            100,
            lambda: client.get("/ready").text,
        )
        yield registry, client, gateway.context.registry


def follow_again(models) -> None:
    """Wait until the registry was read twice, so once from the beginning."""
    for _ in range(2):
        last = models.polled_at
        wait_for(lambda last=last: models.polled_at != last, 30, lambda: models.error)


def all_well(client, error: str | None = None) -> dict:
    for name, bias in ((NAME, 1), (OTHER, 2)):
        answer = client.post(f"/models/{name}/predict", json={"instances": [{**RAW, "customer": 7}]})
        assert answer.status_code == 200, (name, answer.text[:500])
        assert answer.json()["predictions"][0]["prediction"] == expected(RAW, bias)
    for path in ("/ready", "/models", "/metrics", f"/models/{OTHER}", f"/v2/models/{OTHER}", "/v2/health/ready"):
        answer = client.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:500])
    return {model["name"]: model for model in client.get("/models").json()}


@pytest.mark.parametrize("tag", HOSTILE_TAGS.values(), ids=HOSTILE_TAGS)
def test_a_hostile_rollout_document_is_reported_and_changes_nothing(stand, tag):
    registry, client, models = stand
    registry.client.set_registered_model_tag(OTHER, "rollout", tag)
    follow_again(models)
    documents = all_well(client)
    assert (
        documents[OTHER]["rollout_error"].startswith("rollout document: ")
        and len(documents[OTHER]["rollout_error"]) <= 500
    )
    assert documents[OTHER]["rollout_error"].isprintable()
    assert (documents[OTHER]["state"], documents[NAME]["rollout_error"]) == ("ready", None)
    assert f'airloop_serving_rollout_readable{{model="{OTHER}"}} 0.0' in client.get("/metrics").text


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["1", "champion", "a", "\ud800", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["traffic", "arms", "shadows", "salt", "name", "version", "weight"]), inner)
    ),
    max_leaves=25,
)
arms = st.lists(
    st.fixed_dictionaries(
        {
            "name": json_values | st.just("a"),
            "version": json_values | st.just("1"),
            "weight": json_values | st.just(0.5),
        }
    )
)
documents = st.fixed_dictionaries(
    {
        "traffic": (
            json_values
            | st.fixed_dictionaries({"salt": json_values, "arms": arms | json_values, "shadows": json_values})
        )
    }
)


@SEARCH
@given(
    tag=st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
    | json_values.map(json.dumps)
    | documents.map(json.dumps)
)
def test_any_rollout_document(stand, tag):
    registry, client, models = stand
    registry.client.set_registered_model_tag(OTHER, "rollout", tag)
    follow_again(models)
    all_well(client)


HOSTILE_ARTIFACTS = {
    "contract, deep": ("contract.json", DEEP.encode()),
    "contract of 10 MB": ("contract.json", b'{"a": "' + b"x" * 10_000_000 + b'"}'),
    "contract, a key of half a surrogate pair": ("contract.json", b'{"schema": 1, "\\ud800": 1}'),
    "contract, many equal names": ("contract.json", json.dumps({"numeric": ["a"] * 25_000}).encode()),
    "golden, deep": ("golden.json", DEEP.encode()),
    "golden, infinite tolerance": ("golden.json", b'{"instances": [{}], "predictions": [1], "tolerance": Infinity}'),
    "golden of 10 MB": ("golden.json", b'{"instances": [' + b"{}," * 4_000_000 + b"{}]}"),
    "golden, a huge integer": (
        "golden.json",
        b'{"instances": [{"hour": ' + b"9" * 4000 + b'}], "predictions": [1], "tolerance": 1e-5}',
    ),
    "golden, not UTF-8": ("golden.json", b"\xff\xfe"),
    "graph, empty": ("model.onnx", b""),
    "graph, ONNX Runtime's own format": ("model.onnx", b"\x1c\0\0\0ORTM" + b"\0" * 100),
    "a file that nobody knows": ("weights.bin", b"1"),
}


@pytest.mark.parametrize(("file", "content"), HOSTILE_ARTIFACTS.values(), ids=HOSTILE_ARTIFACTS)
def test_a_hostile_artifact_is_refused_and_the_champion_keeps_answering(stand, file, content):
    registry, client, models = stand
    registry.client.set_registered_model_tag(OTHER, "rollout", "")
    version = registry.add(bias=3, name=OTHER, champion=False)
    (registry.artifacts(version, name=OTHER) / file).write_bytes(content)
    registry.point(version, name=OTHER)
    wait_for(
        lambda: client.get(f"/models/{OTHER}").json()["state"] == "refused",
        60,
        lambda: client.get(f"/models/{OTHER}").text,
    )
    document = all_well(client)[OTHER]
    assert (
        document["version"] == "1"
        and document["error"].startswith(f"version {version}: ")
        and document["error"].isprintable()
    )
    registry.point("1", name=OTHER)
    follow_again(models)


HOSTILE_HASHES = {
    "deep": DEEP,
    "no JSON": "{",
    "an array": "[]",
    "text": '"abc"',
    "another folder": json.dumps({"../x": "0" * 64}),
    "no hash": json.dumps({"model.onnx": "0"}),
    "NUL": json.dumps({"model.onnx\0": "0" * 64}),
    "number": json.dumps({"model.onnx": 1}),
    "half a pair": '{"\\ud800": "' + "0" * 64 + '"}',
}


@pytest.mark.parametrize("tag", HOSTILE_HASHES.values(), ids=HOSTILE_HASHES)
def test_hostile_hashes_refuse_the_version(stand, tag):
    registry, client, models = stand
    registry.client.set_registered_model_tag(OTHER, "rollout", "")
    version = registry.add(bias=3, name=OTHER, champion=False)
    registry.client.set_model_version_tag(OTHER, version, "bundle_sha256", tag)
    registry.point(version, name=OTHER)
    wait_for(
        lambda: client.get(f"/models/{OTHER}").json()["state"] == "refused",
        60,
        lambda: client.get(f"/models/{OTHER}").text,
    )
    document = all_well(client)[OTHER]
    assert document["version"] == "1" and "bundle_sha256" in document["error"] and document["error"].isprintable()
    registry.point("1", name=OTHER)
    follow_again(models)


def test_a_new_model_that_cannot_be_loaded_leaves_the_service_ready(stand):
    registry, client, models = stand
    registry.client.set_registered_model_tag(OTHER, "rollout", "")
    registry.add(name="garbage", model=b"no graph")
    registry.add(name="UPPER case", contract={"project": "garbage"})
    wait_for(lambda: client.get("/models/garbage").json().get("state") == "refused", 60)
    assert all_well(client)["garbage"]["version"] is None
    details = wait_for(lambda: (ready := client.get("/ready").json())["registry"]["unreadable"] and ready, 60)
    assert details["status"] == "ready"
    assert "the name matches no project's" in details["registry"]["unreadable"][0]
    time.sleep(0.1)
    assert client.post("/models/garbage/predict", json={"instances": [RAW]}).status_code == 503
