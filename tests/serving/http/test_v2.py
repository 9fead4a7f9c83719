"""The Open Inference Protocol, used by an independent client."""

import gzip
import json
import zlib

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.serving.harness import CATEGORICAL, INSTANCES, NAME, NUMERIC, expected, logged, serving_process
from tests.waiting import wait_for

pytestmark = pytest.mark.stack

NUMBERS = np.array(
    [[np.nan if row[name] is None else row[name] for name in NUMERIC] for row in INSTANCES], dtype="float32"
)
TEXTS = np.array([[row["shop"] or ""] for row in INSTANCES], dtype=object)
ANSWERS = [expected(row, 1) for row in INSTANCES]


@pytest.fixture(scope="module")
def service(migrated, features, tmp_path_factory):
    """Run the service as a process. Only its registry is a file."""
    from tests.serving.harness import Registry

    folder = tmp_path_factory.mktemp("v2")
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder)
    registry.add(bias=1)
    process = serving_process(folder, registry.uri, features, max_bytes=100_000)
    process.wait("/ready", 240)
    process.folder = folder
    yield process
    process.end()


@pytest.fixture
def client(service):
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}", connection_timeout=60, network_timeout=60) as client:
        yield client


def tensors(*, binary: bool, numbers: np.ndarray = NUMBERS, texts: np.ndarray = TEXTS) -> list[triton.InferInput]:
    numeric, categorical = (
        triton.InferInput("numeric", list(numbers.shape), "FP32"),
        triton.InferInput("categorical", list(texts.shape), "BYTES"),
    )
    numeric.set_data_from_numpy(numbers, binary_data=binary)
    categorical.set_data_from_numpy(texts, binary_data=binary)
    return [numeric, categorical]


def test_health_and_metadata(client):
    assert (
        client.is_server_live()
        and client.is_server_ready()
        and client.is_model_ready(NAME)
        and client.is_model_ready(NAME, "1")
    )
    assert not client.is_model_ready("nobody") and not client.is_model_ready(NAME, "99")
    assert client.get_server_metadata() == {
        "name": "airloop-serving",
        "version": "2",
        "extensions": ["binary_tensor_data"],
    }
    metadata = client.get_model_metadata(NAME)
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == (NAME, ["1"], "onnx_onnxv1")
    assert metadata["inputs"] == [
        {"name": "numeric", "datatype": "FP32", "shape": [-1, 5], "parameters": {"columns": NUMERIC}},
        {"name": "categorical", "datatype": "BYTES", "shape": [-1, 1], "parameters": {"columns": CATEGORICAL}},
    ]
    assert [(output["name"], output["datatype"]) for output in metadata["outputs"]] == [
        ("prediction", "FP64"),
        ("prediction_id", "BYTES"),
    ]
    assert metadata["parameters"]["state"] == "ready"
    assert client.get_model_metadata(NAME, "1") == metadata


@pytest.mark.parametrize("numbers", [NUMBERS[:1], NUMBERS], ids=["one row", "some rows"])
def test_inference_with_binary_tensors(client, numbers):
    result = client.infer(NAME, tensors(binary=True, numbers=numbers, texts=TEXTS[: len(numbers)]), request_id="r-1")
    assert result.as_numpy("prediction").tolist() == ANSWERS[: len(numbers)]
    assert (
        result.get_response()["id"],
        result.get_response()["model_version"],
        result.get_response()["model_name"],
    ) == (
        "r-1",
        "1",
        NAME,
    )


def test_inference_with_tensors_in_json(client):
    """Inference works with tensors in JSON.

    tritonclient writes NaN as a bare word, which is not valid JSON. Its own parser and this service
    accept it.
    """
    outputs = [triton.InferRequestedOutput("prediction", binary_data=False)]
    result = client.infer(NAME, tensors(binary=False), outputs=outputs)
    assert result.get_response()["outputs"] == [
        {"name": "prediction", "datatype": "FP64", "shape": [3], "data": ANSWERS}
    ]


WHOLE = np.array([[1, 0, 1, 0, 1], [0, 1, 1, 1, 0]])
DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": ml_dtypes.bfloat16,
    "FP32": "float32",
    "FP64": "float64",
}


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_numeric_datatype(client, datatype, binary):
    if datatype in ("FP16", "BF16") and not binary:
        pytest.skip("the client itself refuses to write this datatype as JSON")
    numeric = triton.InferInput("numeric", [2, 5], datatype)
    numeric.set_data_from_numpy(WHOLE.astype(DATATYPES[datatype]), binary_data=binary)
    result = client.infer(NAME, [numeric, tensors(binary=True, numbers=NUMBERS[:2], texts=TEXTS[:2])[1]])
    assert result.as_numpy("prediction").tolist() == [110, 10]


def test_named_outputs_and_versions(client):
    outputs = [
        triton.InferRequestedOutput("prediction_id", binary_data=True),
        triton.InferRequestedOutput("prediction", binary_data=False),
    ]
    result = client.infer(NAME, tensors(binary=True), model_version="1", outputs=outputs)
    assert result.as_numpy("prediction").tolist() == ANSWERS
    assert len({bytes(value) for value in result.as_numpy("prediction_id")}) == 3


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_packed_requests(client, packing):
    result = client.infer(NAME, tensors(binary=True), request_compression_algorithm=packing)
    assert result.as_numpy("prediction").tolist() == ANSWERS


def test_packed_bodies_on_the_other_routes(service):
    """Packed bodies work on the other routes.

    This uses a real connection, where the fast path must not handle packed bodies.
    """
    with httpx.Client(base_url=service.url, timeout=60) as client:
        for body, path in (
            ({"instances": [{**row, "customer": 7} for row in INSTANCES]}, f"/models/{NAME}/predict"),
            ({"model": NAME, "labels": []}, "/feedback"),
        ):
            content = json.dumps(body).encode()
            plain = client.post(path, content=content)
            for coding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
                packed = client.post(path, content=pack(content), headers={"Content-Encoding": coding})
                assert (packed.status_code, packed.json().keys()) == (plain.status_code, plain.json().keys())
            assert (
                client.post(path, content=gzip.compress(content), headers={"Content-Encoding": "br"}).status_code == 415
            )
            assert client.post(path, content=content, headers={"Content-Encoding": "gzip"}).status_code == 400


def test_head_leaves_the_connection_usable(service):
    with httpx.Client(base_url=service.url, timeout=60) as client:
        for path in ("/v2/health/ready", "/v2", "/ready", f"/v2/models/{NAME}/infer"):
            answer = client.head(path)
            assert answer.content == b"" and int(answer.headers["content-length"]) > 0
            assert client.get("/v2/health/live").json() == {"live": True}


def test_several_at_once(client):
    with triton.InferenceServerClient(client._client_stub.host + f":{client._client_stub.port}", concurrency=8) as many:
        running = [many.async_infer(NAME, tensors(binary=True)) for _ in range(50)]
        assert all(one.get_result().as_numpy("prediction").tolist() == ANSWERS for one in running)


def test_answers_are_logged_under_their_ids(client, service):
    result = client.infer(NAME, tensors(binary=True))
    ids = [bytes(value).decode() for value in result.as_numpy("prediction_id")]
    rows = wait_for(
        lambda: (
            {row["prediction_id"]: row for row in logged(service.folder / "store")}.keys() >= set(ids)
            and logged(service.folder / "store")
        ),
        30,
    )
    mine = {row["prediction_id"]: row for row in rows if row["prediction_id"] in ids}
    assert [mine[key]["prediction"] for key in ids] == ANSWERS
    rounded = [
        {
            name: float(np.float32(value)) if name in NUMERIC and value is not None else value
            for name, value in row.items()
        }
        for row in INSTANCES
    ]
    assert [mine[key]["features"] for key in ids] == rounded
    assert mine[ids[0]]["key"] == {"hour": 1, "shop": "a"}


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "nobody"}, "404", "no registered model 'nobody'"),
        ({"version": "99"}, "404", "version 99 of model 'shops' is not served here"),
        ({"numbers": NUMBERS[:, :4]}, "422", r"it must be \[n, 5\]"),
        ({"numbers": NUMBERS[:2]}, "422", "the same number of rows"),
        ({"numbers": NUMBERS * np.inf}, "422", "the range of FP32"),
        (
            {"numbers": np.zeros((2000, 5), "float32"), "texts": np.full((2000, 1), "a", object)},
            "422",
            "from 1 to 1000",
        ),
        ({"texts": np.array([[b"\xff"]] * 3, dtype=object)}, "422", "no UTF-8"),
        ({"texts": np.array([["x" * 200_000]] * 3, dtype=object)}, "413", "longer than 100000 bytes"),
    ],
    ids=str,
)
def test_errors_reach_the_client(client, change, status, message):
    given = {"model": NAME, "version": "", "numbers": NUMBERS, "texts": TEXTS} | change
    with pytest.raises(InferenceServerException, match=message) as error:
        client.infer(
            given["model"],
            tensors(binary=True, numbers=given["numbers"], texts=given["texts"]),
            model_version=given["version"],
        )
    assert error.value.status() == status


def test_a_small_body_that_unpacks_to_a_big_one_is_refused(service):
    import urllib.error
    import urllib.request

    request = urllib.request.Request(
        f"{service.url}/v2/models/{NAME}/infer",
        data=gzip.compress(b" " * 50_000_000),
        headers={"Content-Encoding": "gzip"},
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    assert error.value.code == 413
