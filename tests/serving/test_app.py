"""The service over HTTP, with a real registry and a real feature store."""

import json
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.http.documents import PredictRequest
from serving.settings import Settings
from tests.serving.harness import LOCAL, NAME, REPOSITORY, expected, logged
from tests.waiting import wait_for

ASKED = {"shop": "a", "customer": 7, "hour": 9}
MODEL_INPUT = {"hour": 9, "sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": 4, "shop": "a"}


@pytest.fixture
def settings(registry, features, tmp_path):
    return Settings(
        mlflow_uri=registry.uri,
        feature_repo=features.folder,
        log_root=tmp_path / "store",
        cache=tmp_path / "cache",
        poll_seconds=0.05,
        log_flush_seconds=0.1,
    )


@pytest.fixture
def client(registry, settings):
    registry.add(bias=1)
    with TestClient(
        create_app(settings), base_url="http://localhost", raise_server_exceptions=False, client=LOCAL
    ) as started:
        wait_for(lambda: started.get("/ready").status_code == 200, 90, lambda: started.get("/ready").text)
        yield started


def ask(client, *instances, name: str = NAME):
    return client.post(f"/models/{name}/predict", json={"instances": list(instances)})


def test_a_prediction_with_version_and_feature_times(client):
    answer = ask(client, ASKED, {**ASKED, "shop": "c", "temp": 2})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model"], body["model_version"]) == (NAME, "1")
    first, second = body["predictions"]
    assert first == {
        "prediction_id": first["prediction_id"],
        "prediction": expected(MODEL_INPUT, 1),
        "feature_times": {
            "shop_sales": "2013-06-01T10:00:00Z",
            "shop_weather": "2013-06-01T08:00:00Z",
            "customer_orders": "2010-12-14T10:00:00Z",
        },
        "missing": [],
        "model_version": "1",
        "arm": "champion",
        "gaps": [],
    }
    assert (second["missing"], second["feature_times"]["shop_weather"]) == (["sales_7d", "late_rate"], None)


def test_every_answered_id_is_in_the_log_with_the_features_as_used(client, settings):
    answers = [ask(client, ASKED, {**ASKED, "shop": shop}, {**ASKED, "temp": 1.0}) for shop in ("b", "c", None)]
    by_id = {p["prediction_id"]: p for answer in answers for p in answer.json()["predictions"]}
    ask(client, {**ASKED, "hour": "nine"})  # not answered with a prediction
    rows = wait_for(lambda: (entries := logged(settings.log_root)) and len(entries) >= len(by_id) and entries, 5)
    assert {row["prediction_id"] for row in rows} == by_id.keys()
    for row in rows:
        answer = by_id[row["prediction_id"]]
        assert row["prediction"] == answer["prediction"] == expected(row["features"], 1)
        assert row["feature_times"] == answer["feature_times"]
        assert [name for name, value in row["features"].items() if value is None] == answer["missing"]
        assert (row["model_version"], row["project"]) == ("1", NAME)
        assert row["latency_ms"] > 0


def test_it_follows_the_alias_and_keeps_the_old_model_when_the_new_one_is_wrong(client, registry):
    assert ask(client, ASKED).json()["predictions"][0]["prediction"] == expected(MODEL_INPUT, 1)
    second = registry.add(bias=2)
    wait_for(lambda: client.get(f"/models/{NAME}").json()["version"] == second)
    assert ask(client, ASKED).json()["predictions"][0]["prediction"] == expected(MODEL_INPUT, 2)
    registry.add(bias=3, golden={"predictions": [9e9, 9e9, 9e9]})
    document = wait_for(lambda: (s := client.get(f"/models/{NAME}").json())["state"] == "refused" and s)
    assert (document["version"], document["error"][:10]) == ("2", "version 3:")
    assert ask(client, ASKED).json()["model_version"] == "2"
    assert client.get("/ready").status_code == 200  # the champion is served
    assert [model["name"] for model in client.get("/models").json()] == [NAME]


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        pytest.param("/models/nobody/predict", {"instances": [ASKED]}, 404, "name", id="unknown model"),
        pytest.param(
            f"/models/{NAME}/predict",
            {"instances": [{"shop": "a", "hour": 9}]},
            422,
            "instances[0].customer",
            id="missing join key",
        ),
        pytest.param(
            f"/models/{NAME}/predict",
            {"instances": [{"shop": "a", "customer": 7}]},
            422,
            "instances[0].hour",
            id="missing request feature",
        ),
        pytest.param(
            f"/models/{NAME}/predict",
            {"instances": [ASKED, {**ASKED, "hour": "x"}]},
            422,
            "instances[1].hour",
            id="wrong type",
        ),
        pytest.param(
            f"/models/{NAME}/predict",
            {"instances": [{**ASKED, "hour": [1]}]},
            422,
            "instances[0].hour",
            id="a list for a value",
        ),
        pytest.param(
            f"/models/{NAME}/predict", {"instances": [{**ASKED, "hue": 1}]}, 422, "instances[0].hue", id="unknown field"
        ),
        pytest.param(f"/models/{NAME}/predict", {"instances": [3]}, 422, "instances[0]", id="no object"),
        pytest.param(f"/models/{NAME}/predict", {"instances": []}, 422, "instances", id="no instance"),
        pytest.param(
            f"/models/{NAME}/predict", {"instances": [ASKED] * 1001}, 422, "instances", id="too many instances"
        ),
        pytest.param(f"/models/{NAME}/predict", {}, 422, "instances", id="no instances"),
        pytest.param(
            f"/models/{NAME}/predict", {"instances": [ASKED], "model": 1}, 422, "model", id="unknown part of the body"
        ),
        pytest.param(f"/models/{NAME}/predict", [], 422, "body", id="another body"),
    ],
)
def test_errors_are_problem_documents_that_name_the_field(client, path, body, status, field):
    answer = client.post(path, json=body)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert (problem["status"], problem["field"]) == (status, field)
    assert problem["type"].startswith("urn:airloop:") and problem["title"] and problem["detail"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"instances": [', 400),
        (b"", 422),
        (b'{"instances": [{"shop": "a", "customer": 7, "hour": NaN}]}', 422),
        (b'{"instances": [{"shop": "a", "customer": 7, "hour": 1e999}]}', 422),
        (b'{"instances": [{"shop": "\\ud800", "customer": 7, "hour": 1}]}', 422),
        (b'{"instances": [{"\\ud800": 1}]}', 422),
        (b'{"instances": [{"shop": "a", "customer": ' + b"9" * 5000 + b', "hour": 1}]}', 400),
        (b"[" * 40_000, 400),
        (b"[" * 100_000, 413),
        (b"\xff\xfe", 400),
    ],
    ids=[
        "cut off",
        "empty",
        "NaN",
        "infinite",
        "half a character",
        "half a character as a name",
        "a number of 5000 digits",
        "deep",
        "too many parts",
        "no text",
    ],
)
def test_bodies_that_are_hardly_json(client, content, status):
    answer = client.post(f"/models/{NAME}/predict", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_other_paths_and_methods_are_problems_too(client):
    for answer, status in (
        (client.get("/nothing"), 404),
        (client.get(f"/models/{NAME}/predict"), 405),
        (client.get("/models/nobody"), 404),
    ):
        assert (answer.status_code, answer.json()["status"], answer.headers["content-type"]) == (
            status,
            status,
            "application/problem+json",
        )


def test_a_fault_is_a_problem_without_its_insides(client, monkeypatch):
    monkeypatch.setattr("serving.predicting.predict.answer", lambda *_: 1 / 0)
    answer = ask(client, ASKED)
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:airloop:fault")
    assert "division" not in answer.text


def test_a_thousand_instances_are_answered(client):
    answer = ask(client, *({**ASKED, "shop": shop} for shop in ("a", "b") * 500))
    assert {p["prediction"] for p in answer.json()["predictions"]} == {
        expected(MODEL_INPUT, 1),
        expected({**MODEL_INPUT, "sales_7d": 20.0, "late_rate": None, "temp": -1.0, "shop": "b"}, 1),
    }


def test_ready_tells_of_each_part(client):
    details = client.get("/ready").json()
    assert (details["status"], details["lookup"]["state"]) == ("ready", "ready")
    assert details["models"][0] | {"loaded_at": ""} == {
        "name": NAME,
        "version": "1",
        "loaded_at": "",
        "state": "ready",
        "error": None,
        "hash_checked": False,
        "arms": [],
        "rollout_error": None,
        "installation": None,
    }
    assert details["registry"]["error"] is None
    assert details["prediction_log"]["errors"] == 0


def test_it_is_not_ready_while_a_named_model_is_not_loaded(registry, settings):
    registry.add()
    with TestClient(
        create_app(settings.model_copy(update={"models": f"{NAME}, others"})), base_url="http://localhost", client=LOCAL
    ) as client:
        wait_for(lambda: client.get(f"/models/{NAME}").json()["version"] == "1")
        answer = client.get("/ready")
        assert (answer.status_code, answer.headers["content-type"], answer.headers["retry-after"]) == (
            503,
            "application/problem+json",
            "1",
        )
        assert "model 'others' is not loaded" in answer.json()["detail"]
        waiting = ask(client, ASKED, name="others")
        assert (waiting.status_code, waiting.json()["type"]) == (503, "urn:airloop:model-not-loaded")


def test_nothing_to_serve_is_ready(settings):
    """A service without a champion is ready: a new stack does not have one yet."""
    with TestClient(create_app(settings), base_url="http://localhost", client=LOCAL) as client:
        wait_for(lambda: client.get("/ready").status_code == 200)
        assert client.get("/models").json() == []


def test_a_log_that_cannot_be_written_is_told_and_stops_no_answer(client, settings):
    settings.log_root.mkdir()
    (settings.log_root / NAME).write_text("in the way")
    assert ask(client, ASKED).status_code == 200
    details = wait_for(lambda: (d := client.get("/ready").json()["prediction_log"])["errors"] and d)
    assert (details["waiting"], details["written"]) == (1, 0)
    (settings.log_root / NAME).unlink()
    wait_for(lambda: logged(settings.log_root))


def test_the_openapi_documents_problems_and_its_example_is_a_request(client):
    document = client.get("/openapi.json").json()
    responses = document["paths"]["/models/{name}/predict"]["post"]["responses"]
    assert {"200", "400", "404", "422", "503"} <= responses.keys()
    assert "application/problem+json" in responses["422"]["content"]
    (example,) = document["paths"]["/models/{name}/predict"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]["examples"]
    PredictRequest.model_validate(example)


@pytest.mark.parametrize("root", ["gs://bucket/store", "s3://", "s3:/bucket/store", "http://bucket"])
def test_a_root_that_is_no_folder_and_no_bucket_is_refused(root):
    with pytest.raises(ValueError, match="must be a folder or s3://bucket/prefix"):
        Settings(log_root=root)


def test_the_wall_stands():
    """Importing the service imports neither the loop's packages nor slow libraries."""
    script = (
        "import json, sys; import serving.app; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    forbidden = {"include", "airflow", "feature_repo", "dags", "torch", "pandas", "feast", "mlflow", "sklearn"}
    assert forbidden.isdisjoint(json.loads(done.stdout))
