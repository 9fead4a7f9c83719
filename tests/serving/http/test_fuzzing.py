"""No input causes an internal error.

schemathesis tests the OpenAPI, and hypothesis tests tensors and bodies.
"""

import json
import struct

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.app import create_app
from serving.http.tensors import NUMBERS
from serving.settings import Settings
from tests.serving.harness import LOCAL, NAME
from tests.waiting import wait_for

pytestmark = pytest.mark.stack
SEARCH = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
DECLARED = {200, 307, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 503}


@pytest.fixture(scope="module")
def client(migrated, features, tmp_path_factory):
    """Return a client of a whole service with a model and features in this process.

    Unhandled errors are raised.
    """
    from tests.serving.harness import Registry

    folder = tmp_path_factory.mktemp("fuzzing")
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder)
    registry.add(bias=1)
    made = Settings(
        mlflow_uri=registry.uri,
        feature_repo=features.folder,
        log_root=folder / "store",
        cache=folder / "cache",
        max_bytes=100_000,
    )
    with TestClient(create_app(made), base_url="http://localhost", client=LOCAL) as started:
        wait_for(lambda: started.get("/ready").status_code == 200, 400, lambda: started.get("/ready").text)
        yield started


def fine(answer) -> None:
    assert answer.status_code in DECLARED, (answer.status_code, answer.text[:300])
    if answer.status_code >= 400:
        problem = answer.json()
        # The Open Inference Protocol returns errors as application/json.
        wanted = "application/json" if answer.request.url.path.startswith("/v2") else "application/problem+json"
        assert (
            answer.headers["content-type"] == wanted and problem["status"] == answer.status_code and problem["detail"]
        )


def test_the_openapi(client):
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    seen = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def never_a_fault(case):
            given_ = case.as_transport_kwargs(base_url="http://localhost")
            fine(
                client.request(
                    **{
                        key: value
                        for key, value in given_.items()
                        if key in ("method", "url", "headers", "params", "json", "data", "content")
                    }
                )
            )

        never_a_fault()
        seen.add(operation.path)
    assert {"/models/{name}/predict", "/v2/models/{name}/infer", "/feedback", "/ready", "/metrics"} <= seen


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)
FIELD = st.sampled_from(["shop", "customer", "hour", "sales_7d", "late_rate", "temp", "orders", "colour", ""])


@SEARCH
@given(body=st.one_of(st.binary(max_size=300), JSON.map(lambda value: json.dumps(value).encode())))
@pytest.mark.parametrize("path", [f"/models/{NAME}/predict", f"/v2/models/{NAME}/infer", "/feedback"])
def test_any_body(client, path, body):
    fine(client.post(path, content=body))


@SEARCH
@given(instances=st.lists(st.dictionaries(FIELD, JSON, max_size=9), min_size=1, max_size=5))
def test_any_instance(client, instances):
    fine(client.post(f"/models/{NAME}/predict", content=json.dumps({"instances": instances}).encode()))


FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@SEARCH
@given(
    shop=st.none() | st.text(max_size=5),
    customer=st.none() | st.integers(),
    hour=st.none() | FLOATS | st.integers(),
    temp=FLOATS | st.none(),
)
def test_values_of_the_right_types(client, shop, customer, hour, temp):
    fine(
        client.post(
            f"/models/{NAME}/predict",
            content=json.dumps(
                {"instances": [{"shop": shop, "customer": customer, "hour": hour, "temp": temp}]}
            ).encode(),
        )
    )


@st.composite
def inferences(draw) -> tuple[bytes, bytes]:
    """Generate nearly valid requests of the protocol: each part may be replaced.

    Return the JSON header and the data after it.
    """
    rows = draw(st.integers(0, 4))
    datatype = draw(st.sampled_from([*NUMBERS, "FP32", "FP32"]))
    numeric = draw(st.binary(min_size=(size := rows * 5 * NUMBERS[datatype].stored.itemsize), max_size=size))
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (draw(st.binary(max_size=4)) for _ in range(rows)))
    size = st.integers(-5, 50) | JSON

    def tensor(name: str, datatype: str, columns: int, raw: bytes) -> dict:
        usual = {
            "name": name,
            "datatype": datatype,
            "shape": [rows, columns],
            "parameters": {"binary_data_size": len(raw)},
        }
        spoilt = draw(st.sampled_from([None, None, None, *usual]))
        return (
            usual
            if spoilt is None
            else {**usual, spoilt: draw(JSON | st.fixed_dictionaries({"binary_data_size": size}))}
        )

    document: dict = {"inputs": [tensor("numeric", datatype, 5, numeric), tensor("categorical", "BYTES", 1, texts)]}
    for key in draw(st.sets(st.sampled_from(["id", "outputs", "parameters"]))):
        document[key] = draw(
            JSON
            | st.lists(
                st.fixed_dictionaries({"name": st.sampled_from(["prediction", "prediction_id"]), "parameters": JSON}),
                max_size=3,
            )
        )
    return json.dumps(document).encode(), numeric + texts + draw(
        st.binary(max_size=3) if draw(st.booleans()) else st.just(b"")
    )


@SEARCH
@given(inference=inferences(), length=st.none() | st.integers(-2, 2), packing=st.sampled_from(["", "", "gzip", "br"]))
def test_any_tensor(client, inference, length, packing):
    head, raw = inference
    headers = {"Inference-Header-Content-Length": str(len(head) + (length or 0))} | (
        {"Content-Encoding": packing} if packing else {}
    )
    answer = client.post(f"/v2/models/{NAME}/infer", content=head + raw, headers=headers)
    fine(answer)
    if answer.status_code >= 400:
        assert answer.json()["error"]


@SEARCH
@given(name=st.text(max_size=10), value=st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=40))
def test_any_header_and_path(client, name, value):
    headers = {b"Inference-Header-Content-Length": value.encode("latin-1"), b"Authorization": value.encode("latin-1")}
    fine(client.post(f"/v2/models/{NAME}/infer", content=b"{}", headers=headers))
    from urllib.parse import quote

    fine(client.get(f"/models/{quote(name, safe='')}"))
    fine(client.get(f"/v2/models/{NAME}/versions/{quote(name, safe='') or '-'}"))
