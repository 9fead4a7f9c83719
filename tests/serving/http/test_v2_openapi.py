"""Answers match OpenAPI files of the Open Inference Protocol.

These are this project's file, and the protocol's own file if ``AIRLOOP_TEST_OIP`` names it.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import yaml
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from serving.app import create_app
from serving.settings import Settings
from tests.serving.harness import LOCAL, NAME, Registry
from tests.serving.open_inference import DATATYPES, OPENAPI
from tests.waiting import wait_for

pytestmark = pytest.mark.stack
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
# About errors, the protocol only says that they are "typically 400".
ERRORS = {400, 404, 405, 413, 415, 422}


@pytest.fixture(scope="module")
def client(migrated, features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("v2_openapi")
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder)
    registry.add(bias=1)
    made = Settings(
        mlflow_uri=registry.uri, feature_repo=features.folder, log_root=folder / "store", cache=folder / "cache"
    )
    with TestClient(create_app(made), base_url="http://localhost", client=LOCAL) as started:
        wait_for(lambda: started.get("/ready").status_code == 200, 400, lambda: started.get("/ready").text)
        yield started


def protocols_own() -> dict[str, Any]:
    """Return the protocol's file.

    It is ``specification/protocol/open_inference_rest.yaml`` of
    github.com/kserve/open-inference-protocol.
    """
    file = os.environ.get("AIRLOOP_TEST_OIP")
    if not file:
        pytest.skip(
            "AIRLOOP_TEST_OIP does not name the protocol's own OpenAPI file (open_inference_rest.yaml of"
            " kserve/open-inference-protocol)"
        )
    document = yaml.safe_load(Path(file).read_text())
    # The file writes a path variable as ${NAME}. In OpenAPI the dollar sign is a character of the
    # path.
    document["paths"] = {path.replace("${", "{"): operations for path, operations in document["paths"].items()}
    return document


SENT = ("method", "url", "headers", "params", "json", "data", "content")
TENSOR_NAMES = st.sampled_from(["numeric", "categorical", "numeric", "other"])
SHAPES = st.tuples(st.integers(0, 3), st.sampled_from([5, 1])).map(list)


def nearer(case: Any, data: st.DataObject) -> None:
    """Change a generated request so that it passes the checks of model, tensors and outputs."""
    if case.path_parameters and data.draw(st.booleans()):
        case.path_parameters = (
            {"MODEL_NAME": NAME, "MODEL_VERSION": "1"}
            if "MODEL_VERSION" in case.path_parameters
            else {"MODEL_NAME": NAME}
        )
    body = case.body
    if not isinstance(body, dict) or not data.draw(st.booleans()):
        return
    body = {**body, "inputs": body.get("inputs") or [{}, {}]}
    if isinstance(body["inputs"], list):
        changes = st.fixed_dictionaries(
            {"name": TENSOR_NAMES},
            optional={
                "shape": SHAPES,
                "datatype": st.sampled_from(DATATYPES),
                "data": st.lists(st.integers() | st.none(), max_size=5),
            },
        )
        body["inputs"] = [
            {**tensor, **data.draw(changes)} if isinstance(tensor, dict) else tensor for tensor in body["inputs"]
        ]
    if isinstance(body.get("outputs"), list):
        body["outputs"] = [
            {**output, "name": "prediction"} if isinstance(output, dict) else output for output in body["outputs"][:1]
        ]
    case.body = body


@pytest.mark.parametrize("document", [lambda: OPENAPI, protocols_own], ids=["ours", "theirs"])
def test_every_answer_is_one_of_the_protocol(client, document):
    schema = schemathesis.openapi.from_dict(document())
    seen = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        modes = (
            (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
            if operation.method == "post"
            else (GenerationMode.POSITIVE,)
        )
        for mode in modes:

            @settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck), database=None)
            @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
            def answered(case, data):
                nearer(case, data)
                sent = case.as_transport_kwargs(base_url="http://localhost")
                answer = client.request(
                    **{
                        key: value
                        for key, value in sent.items()
                        if key in ("method", "url", "headers", "params", "json", "data", "content")
                    }
                )
                case.validate_response(answer, checks=CHECKS)
                assert answer.status_code in ERRORS | {200}
                if answer.status_code != 200:
                    assert (
                        isinstance(answer.json()["error"], str) and answer.headers["content-type"] == "application/json"
                    )

            answered()
        seen.add(operation.path)
    assert "/v2/models/{MODEL_NAME}/versions/{MODEL_VERSION}/infer" in seen


@pytest.mark.parametrize("document", [lambda: OPENAPI, protocols_own], ids=["ours", "theirs"])
def test_a_right_request_is_answered_by_the_schema(client, document):
    schema = schemathesis.openapi.from_dict(document())
    operation = schema["/v2/models/{MODEL_NAME}/versions/{MODEL_VERSION}/infer"]["POST"]
    tensors = [
        {"name": "numeric", "shape": [2, 5], "datatype": "INT32", "data": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]]},
        {"name": "categorical", "shape": [2, 1], "datatype": "BYTES", "data": ["a", "b"]},
    ]
    body = {"id": "42", "inputs": tensors, "outputs": [{"name": "prediction"}, {"name": "prediction_id"}]}
    case = operation.Case(
        path_parameters={"MODEL_NAME": NAME, "MODEL_VERSION": "1"}, body=body, media_type="application/json"
    )
    sent = case.as_transport_kwargs(base_url="http://localhost")
    answer = client.post(sent["url"], json=body)
    case.validate_response(answer, checks=CHECKS)
    assert (answer.status_code, answer.json()["id"]) == (200, "42")
