"""The data plane without HTTP: checks, look-ups, inputs and the log."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.features.lookup import FeatureLookup
from serving.models.bundle import Bundle
from serving.models.loaded_model import LoadedModel
from serving.predicting.predict import AnsweredRequest
from serving.predicting.predict import predict as predict_soon
from serving.prediction_log.writer import arrow_schema
from serving.problems import ProblemError
from tests.serving.conftest import NOW
from tests.serving.harness import NAME, expected, graph, write_bundle

ASKED = {"shop": "a", "customer": 7, "hour": 9}
MODEL_INPUT = {"hour": 9, "sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": 4, "shop": "a"}
GIVEN = {"sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}


def predict(served, lookup, instances):
    return asyncio.run(predict_soon(served, lookup, instances))


def serve(folder: Path, **parts) -> LoadedModel:
    return LoadedModel(NAME, "3", "models:/m-1", Bundle.load(write_bundle(folder, **parts)), datetime.now(UTC))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return serve(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def closed(tmp_path):
    """Return a look-up that is not open."""
    return FeatureLookup(tmp_path)


def refused(served, lookup, *instances) -> ProblemError:
    with pytest.raises(ProblemError) as problem:
        predict(served, lookup, instances)
    return problem.value


def test_features_are_looked_up_by_the_keys(served, lookup):
    (answer,) = predict(served, lookup, [ASKED])
    assert answer.prediction == expected(MODEL_INPUT)
    assert answer.features == MODEL_INPUT
    assert answer.key == ASKED
    assert answer.feature_times == {
        "shop_sales": NOW,
        "shop_weather": NOW - timedelta(hours=2),
        "customer_orders": NOW - timedelta(days=900),
    }
    assert answer.missing == []


def test_an_entity_without_a_row_gives_missing_features_not_an_error(served, lookup):
    (answer,) = predict(served, lookup, [{"shop": "c", "customer": 7, "hour": 9}])
    assert answer.missing == ["sales_7d", "late_rate", "temp"]
    assert answer.prediction == expected(
        {**MODEL_INPUT, "sales_7d": None, "late_rate": None, "temp": None, "shop": "c"}
    )
    assert (answer.feature_times["shop_sales"], answer.feature_times["customer_orders"]) == (
        None,
        NOW - timedelta(days=900),
    )


def test_an_unknown_key_and_an_unknown_request_feature_can_be_null(served, lookup):
    (answer,) = predict(served, lookup, [{"shop": "a", "customer": None, "hour": None}])
    assert answer.missing == ["hour", "orders"]
    assert answer.prediction == expected({**MODEL_INPUT, "hour": None, "orders": None})


def test_a_feature_in_the_request_overrides_the_looked_up_one(served, lookup):
    (answer,) = predict(served, lookup, [{**ASKED, "temp": 30.0, "orders": None}])
    assert answer.features == {**MODEL_INPUT, "temp": 30.0, "orders": None}
    assert answer.prediction == expected(answer.features)
    assert answer.missing == ["orders"]
    # No value of these views was used.
    assert answer.feature_times == {"shop_sales": NOW, "shop_weather": None, "customer_orders": None}


def test_raw_features_need_neither_keys_nor_a_store(served, closed):
    (answer,) = predict(served, closed, [{"shop": "b", "hour": 1, **GIVEN}])
    assert answer.prediction == expected({"shop": "b", "hour": 1, **GIVEN})
    assert answer.feature_times == {}


def test_instances_of_both_kinds_keep_their_order(served, lookup):
    raw = {"shop": "b", "hour": 1, **GIVEN}
    answers = predict(served, lookup, [raw, ASKED, {**raw, "hour": 2}, {**ASKED, "shop": "b"}])
    assert [a.prediction for a in answers] == [expected(a.features) for a in answers]
    assert [a.features["sales_7d"] for a in answers] == [1.5, 10.0, 1.5, 20.0]


def logged(*entries) -> list[dict]:
    columns = AnsweredRequest.columns(entries)
    assert list(columns) == arrow_schema().names
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_what_is_logged_is_what_was_used_and_told(served, lookup):
    answers = predict(served, lookup, [ASKED, {**ASKED, "shop": "c", "temp": 1}])
    entry = AnsweredRequest(answers, at=1_800_000_000_000_005, latency_ms=2.5)
    assert (entry.project, len(entry)) == (NAME, 2)
    rows = logged(entry)
    for answer, row in zip(answers, rows, strict=True):
        assert (row["prediction_id"], row["prediction"]) == (answer.prediction_id, answer.prediction)
        assert row["prediction"] == expected(json.loads(row["features"]))
        assert (row["project"], row["model_version"], row["arm"], row["predicted_at"], row["latency_ms"]) == (
            NAME,
            "3",
            "champion",
            entry.at,
            2.5,
        )
    assert json.loads(rows[0]["key"]) == ASKED
    assert json.loads(rows[0]["feature_times"])["shop_weather"] == "2013-06-01T08:00:00Z"
    assert json.loads(rows[1]["features"]) == {
        "hour": 9,
        "sales_7d": None,
        "late_rate": None,
        "temp": 1,
        "orders": 4,
        "shop": "c",
    }
    assert len({row["prediction_id"] for row in rows}) == 2


@pytest.mark.parametrize(
    ("change", "field", "kind"),
    [
        pytest.param({"hour": ...}, "hour", "missing-request-feature", id="a request feature is missing"),
        pytest.param({"shop": ...}, "shop", "missing-join-key", id="a join key that is an input is missing"),
        pytest.param({"customer": ...}, "customer", "missing-join-key", id="a join key is missing"),
        pytest.param({"hour": "nine"}, "hour", "wrong-type", id="text for a number"),
        pytest.param({"temp": "warm"}, "temp", "wrong-type", id="text for an overriding number"),
        pytest.param({"shop": 1.5}, "shop", "wrong-type", id="a fraction for a category"),
        pytest.param({"shop": 1}, "shop", "wrong-type", id="a number for a key of text"),
        pytest.param({"customer": "7"}, "customer", "wrong-type", id="text for a key that is a number"),
        pytest.param({"customer": 2**70}, "customer", "wrong-type", id="a key beyond 64 bits"),
        pytest.param({"shop": "\ud800"}, "shop", "wrong-type", id="half a surrogate pair"),
        pytest.param({"hour": float("nan")}, "hour", "not-finite", id="NaN"),
        pytest.param({"hour": float("inf")}, "hour", "not-finite", id="infinity"),
        pytest.param({"hour": 1e39}, "hour", "not-finite", id="beyond 32 bits"),
        pytest.param({"hour": 10**400}, "hour", "not-finite", id="beyond any float"),
        pytest.param({"colour": "red"}, "colour", "unknown-field", id="an unknown field"),
    ],
)
def test_a_wrong_instance_is_refused_and_its_field_named(served, lookup, change, field, kind):
    wrong = {name: value for name, value in {**ASKED, **change}.items() if value is not ...}
    problem = refused(served, lookup, ASKED, wrong)
    assert (problem.status, problem.kind, problem.field) == (422, kind, f"instances[1].{field}")
    assert f"'{field}'" in problem.detail


def test_what_is_only_logged_is_checked_too(tmp_path, closed):
    """A request feature that is only logged is checked, too.

    It is not a model input. It is logged as JSON, which does not support infinity.
    """
    served = serve(tmp_path, contract={"request_features": ["hour", "note"]})
    problem = refused(served, closed, {"shop": "a", "hour": 1, "note": float("inf"), **GIVEN})
    assert (problem.kind, problem.field) == ("not-finite", "instances[0].note")


def test_without_look_up_what_needs_it_is_told_to_come_back(served, closed):
    problem = refused(served, closed, ASKED)
    assert (problem.status, problem.kind) == (503, "lookup-not-ready")


def test_a_service_that_is_not_the_models_is_named(tmp_path, lookup):
    contract = {"numeric": ["hour", "sales_7d", "late_rate", "temp", "rain"]}
    golden = {
        "instances": [{"hour": 1, "sales_7d": 0, "late_rate": 0, "temp": 0, "rain": 0, "shop": "a"}],
        "predictions": [101.0],
    }
    problem = refused(serve(tmp_path, contract=contract, golden=golden), lookup, ASKED)
    assert (problem.status, problem.kind) == (503, "feature-service-differs")
    assert "rain" in problem.detail


def test_a_service_that_is_not_there_is_named(tmp_path, lookup):
    problem = refused(serve(tmp_path, contract={"feature_service": "shops_v2"}), lookup, ASKED)
    assert (problem.status, problem.kind) == (503, "no-feature-service")
    assert "shops_v2" in problem.detail


def test_a_model_that_gives_no_number_is_not_answered(tmp_path, closed):
    """A prediction that is not a number is not returned.

    Golden requests cannot cover everything: this model fails for one shop only.
    """
    import onnx

    model = onnx.load_from_string(graph())
    (encoder,) = (node for node in model.graph.node if node.op_type == "LabelEncoder")
    values = next(attribute for attribute in encoder.attribute if attribute.name == "values_floats")
    keys = next(attribute for attribute in encoder.attribute if attribute.name == "keys_strings")
    keys.strings.append(b"z")
    values.floats.append(float("nan"))
    served = serve(tmp_path, model=model.SerializeToString())
    problem = refused(served, closed, {"shop": "a", "hour": 1, **GIVEN}, {"shop": "z", "hour": 1, **GIVEN})
    assert (problem.status, problem.field) == (422, "instances[1]")
