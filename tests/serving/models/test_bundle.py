"""A bundle is accepted only if it is complete and answers its golden requests."""

import hashlib
import json

import numpy as np
import pytest

from serving.models.bundle import Bundle, BundleError
from tests.serving.harness import INSTANCES, expected, graph, write_bundle


def test_a_bundle_predicts_what_its_graph_says(tmp_path):
    bundle = Bundle.load(write_bundle(tmp_path, bias=2))
    answers = bundle.predict(INSTANCES)
    assert answers.dtype == np.float64
    assert answers.tolist() == [expected(row, 2) for row in INSTANCES]


def test_the_contract_says_which_inputs_feast_has(tmp_path):
    assert Bundle.load(write_bundle(tmp_path)).contract.view_features == ("sales_7d", "late_rate", "temp", "orders")


def test_what_training_makes_can_be_served(tmp_path):
    """A bundle that training writes can be served.

    Training and serving share only the layout. Serving reads what training writes, and gives the
    same numbers.
    """
    import pandas as pd

    from include.projects.flights import project
    from include.training.bundle import make_bundle
    from include.training.onnx import Graph

    made = Graph(len(project.inputs.numeric), len(project.inputs.categorical))
    first = made.add("Gather", "numeric", made.constant([0], "int64"), axis=1)
    model = made.model(made.add("Add", first, made.category_codes(0, ["JFK", "EWR"])))
    random = np.random.default_rng(0)
    rows = pd.DataFrame(random.normal(size=(30, len(project.inputs.numeric))), columns=list(project.inputs.numeric))
    rows = rows.assign(
        origin=["JFK", None, "LGA"] * 10, carrier="B6", label=0.0, event_timestamp=pd.Timestamp("2013-01-01", tz="UTC")
    )
    theirs = make_bundle(project, model.SerializeToString(), rows)
    theirs.save(tmp_path)
    ours = Bundle.load(tmp_path).predict(rows[theirs.input_columns].to_dict("records"))
    assert ours.tolist() == theirs.predict(rows).tolist()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        pytest.param(
            {"golden": {"predictions": [1.0, 2.0, 3.0]}},
            r"golden request 0 \(3 of 3\): expected 1.0, got",
            id="golden requests get other answers",
        ),
        pytest.param(
            {"golden": {"predictions": [1.0]}}, "3 instances with 1 predictions", id="golden requests without answers"
        ),
        pytest.param({"golden": {"instances": [], "predictions": []}}, "at least one", id="no golden requests"),
        pytest.param(
            {"golden": {"instances": [{"hour": 1}], "predictions": [1.0]}},
            "lack the inputs late_rate, orders",
            id="golden requests lack inputs",
        ),
        pytest.param(
            {"golden": {"instances": [{**INSTANCES[0], "temp": "warm"}], "predictions": [1.0]}},
            "does not answer its golden",
            id="golden text in a number",
        ),
        pytest.param({"contract": {"schema": 2}}, "contract.json: schema", id="a contract of another schema"),
        pytest.param(
            {"contract": {"project": "../elsewhere"}},
            "contract.json: project",
            id="a project that would leave the log's folder",
        ),
        pytest.param(
            {"contract": {"numeric": ["hour"]}},
            "input 'numeric' is .* needs .* 1",
            id="fewer inputs than the graph takes",
        ),
        pytest.param(
            {"contract": {"categorical": []}},
            "takes categorical, numeric; the contract says numeric",
            id="no categories in the contract",
        ),
        pytest.param({"contract": {"categorical": ["hour"]}}, "named twice: hour", id="an input named twice"),
        pytest.param({"model": b"no graph"}, "model.onnx does not load", id="no graph"),
        pytest.param(
            {"model": graph(output="score")}, "gives score, but no 'prediction'", id="an output of another name"
        ),
    ],
)
def test_a_wrong_bundle_is_refused_and_says_why(tmp_path, parts, message):
    write_bundle(tmp_path, **parts)
    with pytest.raises(BundleError, match=message):
        Bundle.load(tmp_path)


def test_a_golden_answer_that_is_no_number_is_refused(tmp_path):
    write_bundle(tmp_path, model=graph(bias=float("nan")))
    with pytest.raises(BundleError, match="golden request 0 .* got nan"):
        Bundle.load(tmp_path)


def test_a_file_that_is_not_json_is_refused(tmp_path):
    (write_bundle(tmp_path) / "golden.json").write_text("{")
    with pytest.raises(BundleError, match="golden.json: not JSON"):
        Bundle.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    (write_bundle(tmp_path) / "golden.json").unlink()
    with pytest.raises(FileNotFoundError, match="golden.json missing"):
        Bundle.load(tmp_path)


def test_a_change_within_the_tolerance_is_taken(tmp_path):
    golden = {"predictions": [expected(row) * (1 + 5e-6) for row in INSTANCES]}
    Bundle.load(write_bundle(tmp_path, golden=golden))
    assert json.loads((tmp_path / "golden.json").read_text())["tolerance"] == 1e-5


@pytest.mark.parametrize(
    ("scale", "off", "well"), [(1e4, 0.09, True), (1e4, 0.2, False), (1e-3, 1e-9, True), (1, 0.09, False)]
)
def test_a_difference_is_measured_against_the_scale_of_the_predictions(tmp_path, scale, off, well):
    nothing = {**INSTANCES[2], "sales_7d": 0, "late_rate": 0, "temp": 0, "shop": "b"}
    folder = write_bundle(
        tmp_path, golden={"instances": [nothing], "predictions": [expected(nothing) + off], "scale": scale}
    )
    if well:
        Bundle.load(folder)
        return
    with pytest.raises(BundleError, match="golden request 0"):
        Bundle.load(folder)


@pytest.mark.parametrize("scale", [0, -1, "1e999"])
def test_a_scale_that_would_take_any_answer_is_refused(tmp_path, scale):
    folder = write_bundle(tmp_path)
    content = json.loads((folder / "golden.json").read_text())
    (folder / "golden.json").write_text(json.dumps({**content, "scale": 1}).replace('"scale": 1', f'"scale": {scale}'))
    with pytest.raises(BundleError, match="golden.json"):
        Bundle.load(folder)


def test_a_baseline_rule_is_held_to_its_golden_answers_and_must_be_there_where_the_policy_needs_it(tmp_path):
    policy = {"lookup": {"unknown_entity": "baseline"}}
    with pytest.raises(BundleError, match="answers by its baseline rule, and the version has no baseline.onnx"):
        Bundle.load(write_bundle(tmp_path / "none", contract=policy))
    bundle = Bundle.load(write_bundle(tmp_path / "good", contract=policy, rule=7))
    assert bundle.baseline.predict(INSTANCES).tolist() == [expected(row, 7) for row in INSTANCES]
    with pytest.raises(BundleError, match=r"baseline.onnx: golden request 0 \(3 of 3\)"):
        Bundle.load(write_bundle(tmp_path / "other", rule=7, golden={"baseline": [1.0, 2.0, 3.0]}))
    with pytest.raises(BundleError, match="lookup.defaults names 'hour'"):
        Bundle.load(write_bundle(tmp_path / "default", contract={"lookup": {"defaults": {"hour": 1}}}))


def test_a_baseline_rule_without_its_hash_is_not_loaded(tmp_path):
    write_bundle(tmp_path, rule=7)
    hashes = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("model.onnx", "contract.json", "golden.json", "baseline.onnx")
    }
    Bundle.load(tmp_path, hashes=json.dumps(hashes))
    with pytest.raises(BundleError, match="no hash of baseline.onnx"):
        Bundle.load(
            tmp_path, hashes=json.dumps({name: value for name, value in hashes.items() if name != "baseline.onnx"})
        )
    (tmp_path / "baseline.onnx").write_bytes(graph(8))
    with pytest.raises(BundleError, match="baseline.onnx is not the file that was registered"):
        Bundle.load(tmp_path, hashes=json.dumps(hashes))
