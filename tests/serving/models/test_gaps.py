"""Unknown, stale and missing features are distinguished, and the project's policy applies.

The tests use the real service.
"""

from datetime import timedelta

import pytest

from tests.serving.conftest import NOW, filled
from tests.serving.harness import FeatureRepository, Registry, expected, logged, serving_process
from tests.serving.test_metrics import scraped
from tests.waiting import wait_for

pytestmark = pytest.mark.stack

ASKED = {"shop": "a", "customer": 7, "hour": 9}
MODEL_INPUT = {"hour": 9, "sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": 4, "shop": "a"}
UNKNOWN = {**ASKED, "shop": "c"}  # no shop view has this row
# Its row of shop_sales has no late_rate.
MISSING = {**ASKED, "shop": "b"}
# Its weather is two days old, and the TTL is one day.
STALE = {**ASKED, "shop": "d"}
POLICIES = {
    "plain": {},
    "refusing": {"unknown_entity": "refuse", "stale_feature": "refuse", "missing_feature": "refuse"},
    "filling": {"defaults": {"temp": 12.5, "late_rate": 0.5}},
    "ruled": {"unknown_entity": "baseline", "stale_feature": "baseline", "missing_feature": "baseline"},
    # A gap that is normal in one view does not affect the other views.
    "mixed": {
        "stale_feature": "refuse",
        "views": {"shop_weather": {"unknown_entity": "baseline"}, "shop_sales": {"unknown_entity": "default"}},
    },
}
RULE = 1000.0


@pytest.fixture(scope="module")
def served(migrated, tmp_path_factory):
    """Run the service as a process with a model for each policy. Return it and its log folder."""
    folder = tmp_path_factory.mktemp("policies")
    repository = filled(FeatureRepository(tmp_path_factory.mktemp("features")))
    repository.write("shop_sales", [{"shop": "d", "sales_7d": 5.0, "late_rate": 0.125}], NOW)
    repository.write("shop_weather", [{"shop": "d", "temp": 30.0}], NOW - timedelta(days=2))
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder)
    for name, policy in POLICIES.items():
        registry.add(name=name, contract={"lookup": policy}, rule=RULE)
    process = serving_process(folder, registry.uri, repository)
    try:
        wait_for(
            lambda: process.get("/ready")[0] == 200 and len(process.get("/models")[1]) == len(POLICIES),
            400,
            lambda: process.log.read_text()[-3000:],
        )
        yield process, folder / "store"
    finally:
        process.end()


def ask(served, name: str, *instances: dict) -> tuple[int, dict]:
    return served[0].get(f"/models/{name}/predict", {"instances": list(instances)})


def gap(kind: str, view: str, *features: str, shop: str, action: str, **more: str) -> dict:
    return {"kind": kind, "entity": {"shop": shop}, "view": view, "features": list(features), **more, "action": action}


def test_each_kind_is_told_apart_and_by_default_the_model_gets_nulls(served):
    status, body = ask(
        served, "plain", ASKED, UNKNOWN, STALE, MISSING, {**ASKED, "customer": None}, {**ASKED, "shop": None}
    )
    assert status == 200
    known, unknown, stale, missing, nobody, no_shop = body["predictions"]
    assert (known["gaps"], known["arm"]) == ([], "champion")
    assert unknown["gaps"] == [
        gap("unknown_entity", "shop_sales", "sales_7d", "late_rate", shop="c", action="default"),
        gap("unknown_entity", "shop_weather", "temp", shop="c", action="default"),
    ]
    assert unknown["prediction"] == expected(
        {**MODEL_INPUT, "sales_7d": None, "late_rate": None, "temp": None, "shop": "c"}
    )
    assert stale["gaps"] == [
        gap("stale_feature", "shop_weather", "temp", shop="d", action="default", feature_time="2013-05-30T10:00:00Z")
    ]
    assert stale["prediction"] == expected(
        {**MODEL_INPUT, "sales_7d": 5.0, "late_rate": 0.125, "temp": None, "shop": "d"}
    )
    assert (stale["missing"], stale["feature_times"]["shop_weather"]) == (["temp"], None)  # stale values are not used
    assert missing["gaps"] == [
        gap(
            "missing_feature",
            "shop_sales",
            "late_rate",
            shop="b",
            action="default",
            feature_time="2013-06-01T10:00:00Z",
        )
    ]
    # A key of null means that there is no such entity, so nothing is missing.
    assert (nobody["gaps"], nobody["missing"]) == ([], ["orders"])
    assert (no_shop["gaps"], no_shop["missing"]) == ([], ["sales_7d", "late_rate", "temp", "shop"])


def test_what_the_request_gives_lacks_nothing(served):
    given = {"temp": 1.0, "late_rate": None}
    (answer,) = ask(served, "refusing", {**STALE, **given})[1]["predictions"]
    assert (answer["gaps"], answer["prediction"]) == (
        [],
        expected({**MODEL_INPUT, "sales_7d": 5.0, "late_rate": None, "temp": 1.0, "shop": "d"}),
    )


@pytest.mark.parametrize(
    ("instance", "kind", "field", "view", "features", "words"),
    [
        pytest.param(
            UNKNOWN,
            "unknown-entity",
            "shop",
            "shop_sales",
            ["sales_7d", "late_rate"],
            "has no row of shop 'c'",
            id="unknown",
        ),
        pytest.param(
            STALE,
            "stale-feature",
            "temp",
            "shop_weather",
            ["temp"],
            "only values of 2013-05-30T10:00:00Z, older than its TTL",
            id="stale",
        ),
        pytest.param(
            MISSING,
            "missing-feature",
            "late_rate",
            "shop_sales",
            ["late_rate"],
            "has no value of late_rate for shop 'b'",
            id="missing",
        ),
    ],
)
def test_a_refusal_is_a_problem_document_that_names_entity_view_and_features(
    served, instance, kind, field, view, features, words
):
    status, problem = ask(served, "refusing", ASKED, instance)
    assert (status, problem["status"], problem["type"], problem["field"]) == (
        422,
        422,
        f"urn:airloop:{kind}",
        f"instances[1].{field}",
    )
    assert (problem["entity"], problem["view"], problem["features"]) == ({"shop": instance["shop"]}, view, features)
    assert words in problem["detail"] and problem["title"]
    assert ask(served, "refusing", ASKED)[0] == 200


def test_defaults_of_the_project_stand_in(served):
    unknown, stale, missing = ask(served, "filling", UNKNOWN, STALE, MISSING)[1]["predictions"]
    assert unknown["prediction"] == expected(
        {**MODEL_INPUT, "sales_7d": None, "late_rate": 0.5, "temp": 12.5, "shop": "c"}
    )
    assert unknown["missing"] == ["sales_7d"]  # it has no default
    assert stale["prediction"] == expected(
        {**MODEL_INPUT, "sales_7d": 5.0, "late_rate": 0.125, "temp": 12.5, "shop": "d"}
    )
    assert missing["prediction"] == expected(
        {**MODEL_INPUT, "sales_7d": 20.0, "late_rate": 0.5, "temp": -1.0, "shop": "b"}
    )


def test_the_baseline_rule_answers_in_the_models_place_and_says_so(served):
    known, unknown, missing, stale = ask(served, "ruled", ASKED, UNKNOWN, MISSING, STALE)[1]["predictions"]
    assert (known["arm"], known["prediction"]) == ("champion", expected(MODEL_INPUT))
    for answer in (unknown, missing, stale):
        assert answer["arm"] == "baseline" and {gap["action"] for gap in answer["gaps"]} == {"baseline"}
    assert unknown["prediction"] == expected(
        {**MODEL_INPUT, "sales_7d": None, "late_rate": None, "temp": None, "shop": "c"}, RULE
    )
    assert missing["prediction"] == expected(
        {**MODEL_INPUT, "sales_7d": 20.0, "late_rate": None, "temp": -1.0, "shop": "b"}, RULE
    )
    assert known["model_version"] == unknown["model_version"] == "1"


def test_a_view_can_have_a_policy_of_its_own(served):
    (unknown,) = ask(served, "mixed", UNKNOWN)[1]["predictions"]
    assert [(gap["view"], gap["action"]) for gap in unknown["gaps"]] == [
        ("shop_sales", "default"),
        ("shop_weather", "baseline"),
    ]
    assert unknown["arm"] == "baseline"
    assert ask(served, "mixed", STALE)[0] == 422


def test_the_log_and_the_metrics_tell_it(served):
    predictions = ask(served, "ruled", ASKED, UNKNOWN)[1]["predictions"]
    arms = {p["prediction_id"]: p["arm"] for p in predictions}
    rows = wait_for(lambda: [row for row in logged(served[1], "ruled") if row["prediction_id"] in arms] or None, 60)
    assert {row["prediction_id"]: row["arm"] for row in rows} == arms
    ask(served, "refusing", STALE)
    metrics = scraped(served[0])
    for name, view, kind, action in (
        ("ruled", "shop_weather", "unknown_entity", "baseline"), ("refusing", "shop_weather", "stale_feature", "refuse"),  # noqa: E501
    ):  # fmt: skip
        assert (
            metrics[
                f'airloop_serving_lookup_gaps_total{{action="{action}",kind="{kind}",model="{name}",view="{view}"}}'
            ]
            >= 1
        )
    assert metrics['airloop_serving_baseline_answers_total{model="ruled",version="1"}'] >= 1


def test_tensors_are_whole_rows_of_which_nothing_is_looked_up(served):
    """The protocol's tensors are complete rows without look-ups.

    They have a value for every input. NaN is a value that the caller does not know, and no policy
    applies.
    """
    inputs = [
        {"name": "numeric", "datatype": "FP32", "shape": [1, 5], "data": [9.0, 10.0, None, None, 4.0]},
        {"name": "categorical", "datatype": "BYTES", "shape": [1, 1], "data": ["c"]},
    ]
    status, body = served[0].get("/v2/models/refusing/infer", {"inputs": inputs})
    assert status == 200
    assert body["outputs"][0]["data"] == [expected({**MODEL_INPUT, "late_rate": None, "temp": None, "shop": "c"})]


def test_the_openapi_tells_of_gaps(served):
    _, document = served[0].get("/openapi.json")
    shown = document["components"]["schemas"]
    assert shown["GapDocument"]["properties"]["kind"]["examples"] == ["unknown_entity"]
    assert shown["PredictionDocument"]["properties"]["gaps"]["examples"][0][0]["view"] == "plane"
