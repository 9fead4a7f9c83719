"""Unusual and invalid requests of the Open Inference Protocol.

The tests check which are accepted, and which field an error names.
"""

import gzip
import json
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.http.tensors import from_bytes, from_json
from serving.problems import ProblemError
from serving.settings import Settings
from tests.serving.harness import LOCAL, NAME, logged
from tests.waiting import wait_for

PATH = f"/v2/models/{NAME}/infer"
ROW = [1, 0, 1, 0, 1]
ANSWER = [110]
# Multiplied by the number of columns, this has more digits than Python converts of an integer.
HUGE = 9 * 10**4299


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("v2_requests")


@pytest.fixture(scope="module")
def client(migrated, features, folder):
    """Return a client of a whole service in this process. Faults are raised."""
    from tests.serving.harness import Registry

    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder)
    registry.add(bias=1)
    # The same model with a numeric join key, and an arm for some of its entities.
    keyed = {"join_keys": ["hour"], "request_features": []}
    registry.add(name="keyed", bias=1, contract=keyed)
    arm = {"name": "new", "version": registry.add(2, name="keyed", champion=False, contract=keyed), "weight": 0.5}
    registry.client.set_registered_model_tag("keyed", "rollout", json.dumps({"traffic": {"arms": [arm]}}))
    made = Settings(
        mlflow_uri=registry.uri,
        feature_repo=features.folder,
        log_root=folder / "store",
        cache=folder / "cache",
        log_flush_seconds=0.1,
        poll_seconds=0.2,
    )
    with TestClient(create_app(made), base_url="http://localhost", client=LOCAL) as started:
        wait_for(lambda: started.get("/ready").status_code == 200, 400, lambda: started.get("/ready").text)
        wait_for(lambda: started.get("/models/keyed").json()["arms"])
        yield started


def request(
    numeric: dict[str, Any] | None = None, categorical: dict[str, Any] | None = None, **others: Any
) -> dict[str, Any]:
    """Return a valid request with some parts replaced."""
    first = {"name": "numeric", "datatype": "FP32", "shape": [1, 5], "data": ROW, **(numeric or {})}
    second = {"name": "categorical", "datatype": "BYTES", "shape": [1, 1], "data": ["a"], **(categorical or {})}
    return {"inputs": [first, second], **others}


def predictions(answer) -> list[float]:
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"]


def refusal(answer) -> tuple[int, str]:
    problem = answer.json()
    assert problem["error"] == problem["detail"] and answer.headers["content-type"] == "application/json"
    assert len(answer.content) < 2000
    return answer.status_code, problem["field"]


def test_health(client):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert (
        client.get(f"/v2/models/{NAME}/ready").json()
        == client.get(f"/v2/models/{NAME}/versions/1/ready").json()
        == {
            "name": NAME,
            "ready": True,
        }
    )
    for path in ("/v2/models/nobody/ready", f"/v2/models/{NAME}/versions/9/ready"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["ready"]) == (404, False) and answer.json()["error"]


def test_a_service_that_waits_for_a_model_is_not_ready(client, folder, features):
    made = Settings(
        mlflow_uri=f"sqlite:///{folder / 'mlflow.db'}",
        feature_repo=features.folder,
        models="missing",
        log_root=folder / "other",
    )
    with TestClient(create_app(made), base_url="http://localhost", client=LOCAL) as other:
        for path in ("/v2/health/ready", "/v2/models/missing/ready"):
            answer = other.get(path)
            document = answer.json()
            assert (answer.status_code, document["ready"], answer.headers["content-type"]) == (
                503,
                False,
                "application/json",
            )
            assert document["error"] and "missing" not in str(document) * (path == "/v2/health/ready")


def test_the_path_of_the_protocols_own_openapi(client):
    assert client.get("/v2/").json() == client.get("/v2").json()


@pytest.mark.parametrize(
    "path",
    ["/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{NAME}", f"/v2/models/{NAME}/ready", "/live", "/ready"],
)
def test_head_is_answered_as_get(client, path):
    assert client.head(path).status_code == 200


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "PATCH", "GET", "HEAD"])
def test_other_methods_name_the_right_one(client, method):
    answer = client.request(method, PATH)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "path",
    [
        f"{PATH}/",
        "/v2/health/ready/",
        "/v2/models//infer",
        f"/v2/models/{NAME}/versions//infer",
        f"/v2/models/{NAME}/versions/..%2F1/infer",
        f"/v2/models/{NAME}%2Fversions%2F9/infer",
        f"/v2/models/{NAME}/versions/%2e%2e/infer",
        "/v2/models/%ff%00/infer",
        f"/v2/models/{NAME}/versions/01/infer",
        "/v2/models/" + "x" * 20_000 + "/infer",
    ],
)
def test_paths_that_lead_nowhere(client, path):
    method = "GET" if path.endswith("/ready/") else "POST"
    answer = client.request(method, path, json=request())
    assert answer.status_code == 404 and answer.json()["error"] and len(answer.content) < 2000


def test_a_name_may_be_percent_encoded(client):
    assert predictions(client.post(PATH.replace("shops", "sh%6Fps"), json=request())) == ANSWER


@pytest.mark.parametrize("datatype", ["INT8", "INT64", "UINT64", "UINT8", "FP16", "BF16", "FP32", "FP64", "BOOL"])
def test_json_numbers_of_every_datatype(client, datatype):
    assert predictions(client.post(PATH, json=request({"datatype": datatype, "data": [ROW]}))) == ANSWER
    assert predictions(client.post(PATH, json=request({"datatype": datatype, "data": [None, 0, 1, None, 1]}))) == [109]
    whole = [True, False, True, False, True] if datatype == "BOOL" else [1.0, 0, 1, 0.0, 1]
    assert predictions(client.post(PATH, json=request({"datatype": datatype, "data": whole}))) == ANSWER


def test_optional_fields_may_be_null(client):
    tensor = {"parameters": None}
    answer = client.post(PATH, json=request(tensor, tensor, id=None, parameters=None, outputs=None))
    assert predictions(answer) == ANSWER and "id" not in answer.json()
    assert (
        predictions(
            client.post(
                PATH,
                json=request({"parameters": {"binary_data_size": None}}, {"parameters": {}}, parameters={}, outputs=[]),
            )
        )
        == ANSWER
    )
    assert (
        predictions(
            client.post(
                PATH,
                json=request(
                    parameters={"binary_data_output": None}, outputs=[{"name": "prediction", "parameters": None}]
                ),
            )
        )
        == ANSWER
    )


NUMERIC = "inputs[0]"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"data": [2**53 + 2, 0, 0, 0, 0], "datatype": "INT64"}, "data[0]"),
        ({"data": [0, -(2**53) - 1, 0, 0, 0], "datatype": "INT64"}, "data[1]"),
        ({"data": [0, 0, 2**53 + 1, 0, 0], "datatype": "UINT64"}, "data[2]"),
        ({"data": [0, 0, 0, 128, 0], "datatype": "INT8"}, "data[3]"),
        ({"data": [0, 0, 0, 0, -1], "datatype": "UINT32"}, "data[4]"),
        ({"data": [0.5, 0, 0, 0, 0], "datatype": "INT32"}, "data[0]"),
        ({"data": [2, 0, 0, 0, 0], "datatype": "BOOL"}, "data[0]"),
        ({"data": ["true", 0, 0, 0, 0], "datatype": "BOOL"}, "data[0]"),
        ({"data": [65505, 0, 0, 0, 0], "datatype": "FP16"}, "data[0]"),
        ({"data": [1e39, 0, 0, 0, 0], "datatype": "FP64"}, "data[0]"),
        ({"data": [10**400, 0, 0, 0, 0], "datatype": "FP64"}, "data[0]"),
        ({"data": [0, True, 0, 0, 0]}, "data[1]"),
        ({"data": [0, "1", 0, 0, 0]}, "data[1]"),
        ({"data": [0, {}, 0, 0, 0]}, "data[1]"),
        ({"data": [True, 0, 0, 0, 0], "datatype": "INT8"}, "data[0]"),
        ({"data": [[[1]], 0, 0, 0, 0]}, "data"),
        ({"data": [[[1, 2, 3, 4, 5]]]}, "data"),
        ({"data": [[1, 2, 3], [4, 5]]}, "data"),
        ({"data": [[1], [2], [3], [4], [5]]}, "data"),
        ({"data": [1, [2, 3, 4, 5]]}, "data"),
        ({"data": [[[1], 0, 0, 0, 0]]}, "data[0]"),
        ({"data": [1, 2, 3, 4]}, "data"),
        ({"data": []}, "data"),
        ({"data": None}, "data"),
        ({"data": {"0": 1}}, "data"),
        ({"data": "12345"}, "data"),
        ({"shape": [1, 5, 1]}, "shape"),
        ({"shape": [5]}, "shape"),
        ({"shape": []}, "shape"),
        ({"shape": None}, "shape"),
        ({"shape": [0, 5], "data": []}, "shape"),
        ({"shape": [-1, 5]}, "shape"),
        ({"shape": [-1, -5], "data": ROW}, "shape"),
        ({"shape": [True, 5]}, "shape"),
        ({"shape": ["1", 5]}, "shape"),
        ({"shape": [2**63, 5]}, "shape"),
        ({"shape": [HUGE, 5]}, "shape"),
        ({"shape": [1001, 5], "data": [0] * 5005}, "shape"),
        ({"datatype": "FP128"}, "datatype"),
        ({"datatype": "fp32"}, "datatype"),
        ({"datatype": "BYTES"}, "datatype"),
        ({"datatype": None}, "datatype"),
        ({"datatype": "x" * 100_000}, "datatype"),
        ({"name": "x" * 100_000}, "name"),
        ({"name": None}, "name"),
        ({"parameters": []}, "parameters"),
        ({"parameters": "binary_data_size"}, "parameters"),
        ({"parameters": {"binary_data_size": 20}}, "data"),
        ({"parameters": {"binary_data_size": "20"}, "data": None}, "parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": 20.0}, "data": None}, "parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": True}, "data": None}, "parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": -1}, "data": None}, "parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": 10**4000}, "data": None}, "parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": 20}, "data": None}, "parameters.binary_data_size"),
    ],
    ids=lambda value: str(value)[:70],
)
def test_tensors_that_are_refused(client, changed, field):
    status, wrong_field = refusal(client.post(PATH, content=json.dumps(request(changed)).encode()))
    assert (status, wrong_field) == (422, f"{NUMERIC}.{field}")


def test_a_second_tensor_of_a_name_is_refused(client):
    doubled = request()
    doubled["inputs"].insert(1, doubled["inputs"][0])
    assert refusal(client.post(PATH, json=doubled)) == (422, "inputs[1].name")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"id": 1}, "id"),
        ({"id": "x" * 1025}, "id"),
        ({"inputs": None}, "inputs"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [None]}, "inputs[0]"),
        ({"inputs": [[]] * 10_000}, "inputs[0]"),
        ({"parameters": []}, "parameters"),
        ({"parameters": "x"}, "parameters"),
        ({"parameters": {"binary_data_output": "true"}}, "parameters.binary_data_output"),
        ({"outputs": {}}, "outputs"),
        ({"outputs": ""}, "outputs"),
        ({"outputs": 0}, "outputs"),
        ({"outputs": [None]}, "outputs[0]"),
        ({"outputs": [{"name": "x" * 100_000}]}, "outputs[0].name"),
        ({"outputs": [{"name": "prediction"}] * 2}, "outputs[1].name"),
        ({"outputs": [{"name": "prediction", "parameters": 1}]}, "outputs[0].parameters"),
        ({"outputs": [{"name": "prediction", "parameters": {"binary_data": 1}}]}, "outputs[0].parameters.binary_data"),
    ],
    ids=lambda value: str(value)[:70],
)
def test_requests_that_are_refused(client, changed, field):
    assert refusal(client.post(PATH, json={**request(), **changed})) == (422, field)


def raw_request(datatype: str, raw: bytes, texts: bytes = struct.pack("<I", 1) + b"a") -> tuple[bytes, dict[str, str]]:
    def raw_tensor(size: int, **others: Any) -> dict[str, Any]:
        return {"data": None, "parameters": {"binary_data_size": size}, **others}

    head = json.dumps(request(raw_tensor(len(raw), datatype=datatype), raw_tensor(len(texts)))).encode()
    return head + raw + texts, {"Inference-Header-Content-Length": str(len(head))}


def send_raw(client, *given: Any, **headers: str):
    content, length = raw_request(*given)
    return client.post(PATH, content=content, headers={**length, **headers})


def test_raw_missing_values(client):
    for dtype, datatype in (("<f2", "FP16"), ("<f4", "FP32"), ("<f8", "FP64")):
        raw = np.array([np.nan, 0, 1, np.nan, 1], dtype=dtype).tobytes()
        assert predictions(send_raw(client, datatype, raw)) == [109]
    assert predictions(send_raw(client, "BF16", bytes.fromhex("c07f 0000 803f c0ff 803f"))) == [109]


@pytest.mark.parametrize(
    ("datatype", "raw", "field"),
    [
        ("BOOL", b"\x01\x00\x02\x00\x01", "data[2]"),
        ("BOOL", b"\x01\x00\xff\x00\x01", "data[2]"),
        ("FP16", np.array([1, np.inf, 0, 0, 0], dtype="<f2").tobytes(), "data[1]"),
        ("BF16", bytes.fromhex("0000 0000 807f 0000 0000"), "data[2]"),
        ("FP32", np.array([1, -np.inf, 0, 0, 0], dtype="<f4").tobytes(), "data[1]"),
        ("FP64", np.array([1, 1e39, 0, 0, 0], dtype="<f8").tobytes(), "data[1]"),
        ("INT64", np.array([1, 0, -(2**53) - 1, 0, 0], dtype="<i8").tobytes(), "data[2]"),
        ("UINT64", np.array([1, 0, 0, 2**64 - 1, 0], dtype="<u8").tobytes(), "data[3]"),
        ("INT16", b"\x00" * 9, "data"),
        ("INT16", b"\x00" * 20, "data"),
        ("FP32", b"", "data"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_raw_values_that_are_refused(client, datatype, raw, field):
    assert refusal(send_raw(client, datatype, raw)) == (422, f"{NUMERIC}.{field}")


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        (b"\x00" * 8, "data"),
        (b"", "data"),
        (b"\x01\x00", "data[0]"),
        (b"\xff\xff\xff\xffa", "data[0]"),
        (b"\x01\x00\x00\x00\xff", "data[0]"),
    ],
)
def test_raw_strings_that_are_refused(client, texts, field):
    assert refusal(send_raw(client, "FP32", b"\x00" * 20, texts)) == (422, f"inputs[1].{field}")


@pytest.mark.parametrize(
    ("read", "data", "datatype"),
    [
        (from_bytes, b"\x00" * 7_000_000, "BYTES"),
        (from_json, [[]] * 1_500_000, "FP32"),
        (from_json, [0] * 3_000_000, "INT8"),
    ],
)
def test_work_is_bounded_before_it_begins(read, data, datatype):
    """Work is bounded before it begins.

    Megabytes of data with a small shape cause no loop over them.
    """
    seconds = []
    for _ in range(5):
        started = time.thread_time()
        with pytest.raises(ProblemError):
            read(data, datatype, 1, 1, "field")
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.005


@pytest.mark.parametrize("length", ["-1", "+5", "1.0", "", "99999", "1" * 13, "0x5", "\xb2", "5, 5"])
def test_lengths_of_the_header_that_are_refused(client, length):
    content, _ = raw_request("FP32", b"\x00" * 20)
    answer = client.post(PATH, content=content, headers={b"Inference-Header-Content-Length": length.encode("latin-1")})
    assert refusal(answer) == (400, "Inference-Header-Content-Length")


def test_two_lengths_of_the_header_are_refused(client):
    content, length = raw_request("FP32", b"\x00" * 20)
    answer = client.post(PATH, content=content, headers=[*length.items(), ("Inference-Header-Content-Length", "5")])
    assert refusal(answer) == (400, "Inference-Header-Content-Length")


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
)
def test_packed_bodies_on_every_route(client, coding, pack):
    """Packed bodies work on every route.

    The header's length is that of the JSON before compression.
    """
    packed = {"Content-Encoding": coding}
    content, length = raw_request("FP32", np.array(ROW, dtype="<f4").tobytes())
    assert predictions(client.post(PATH, content=pack(content), headers={**length, **packed})) == ANSWER
    assert (
        predictions(
            client.post(
                f"/v2/models/{NAME}/versions/1/infer", content=pack(json.dumps(request()).encode()), headers=packed
            )
        )
        == ANSWER
    )
    instances = {"instances": [{"shop": "a", "customer": 7, "hour": 9}]}
    answer = client.post(f"/models/{NAME}/predict", content=pack(json.dumps(instances).encode()), headers=packed)
    assert answer.status_code == 200, answer.text
    label = {"prediction_id": answer.json()["predictions"][0]["prediction_id"], "label": 1}
    labels = {"model": NAME, "labels": [label]}
    assert client.post("/feedback", json=labels).json()["repeated"] is False
    answer = client.post("/feedback", content=pack(json.dumps(labels).encode()), headers=packed)
    assert (answer.status_code, answer.json()["repeated"]) == (200, True)


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip"])
@pytest.mark.parametrize("path", [PATH, f"/models/{NAME}/predict", "/feedback"])
def test_other_codings_are_refused_on_every_route(client, path, coding):
    answer = client.post(path, content=gzip.compress(b"{}"), headers={"Content-Encoding": coding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")


@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
def test_an_entity_has_the_same_arm_on_both_routes(client, folder, datatype):
    """An entity has the same arm on both routes.

    The arm and the labels of an entity depend on how its keys are written.
    """
    rows = [[hour, 0, 0, 0, 0] for hour in range(40)]
    numeric = {"name": "numeric", "datatype": datatype, "shape": [40, 5], "data": rows}
    both = [numeric, {"name": "categorical", "datatype": "BYTES", "shape": [40, 1], "data": [""] * 40}]
    arms = client.post("/v2/models/keyed/infer", json={"inputs": both}).json()["parameters"]["arms"].split(",")
    instances = [
        {"hour": hour, "sales_7d": 0, "late_rate": 0, "temp": 0, "orders": 0, "shop": None} for hour in range(40)
    ]
    plain = client.post("/models/keyed/predict", json={"instances": instances}).json()["predictions"]
    assert len(set(arms)) == 2 and [prediction["arm"] for prediction in plain] == arms
    rows_logged = wait_for(lambda: (entries := logged(folder / "store", "keyed")) and len(entries) >= 80 and entries)
    assert {type(row["key"]["hour"]) for row in rows_logged} == {int}
