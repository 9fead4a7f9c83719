"""Every trainer, for both kinds of task: the exported graph predicts what the model predicts.

This also holds for missing and new values.
"""

import numpy as np
import pandas as pd
import pytest

from include.projects.base import Candidate, Inputs, TaskKind
from include.training import candidates, trainers
from include.training.bundle import Bundle, GoldenMismatchError, make_bundle
from include.training.inference import predict, session
from include.training.inputs import matrices
from include.training.onnx import ExportError, Graph, check_equal
from include.training.scale import scale_of
from include.training.trainers import hist_gradient_boosting

INPUTS = Inputs(numeric=("plain", "gaps", "empty", "big"), categorical=("place", "carrier"))
CANDIDATES = {
    "baseline_rule": Candidate(name="baseline_rule", trainer="baseline_rule"),
    "hist_gradient_boosting": Candidate(name="trees", trainer="hist_gradient_boosting", parameters={"max_iter": 30}),
    "torch_mlp": Candidate(
        name="network", trainer="torch_mlp", parameters={"epochs": 4, "hidden": 16, "batch_size": 256}
    ),
}


def project(kind, inputs=INPUTS):
    """Return the flights project with other inputs. The rest does not matter here."""
    from include.projects.flights import project as flights

    return flights.model_copy(update={"kind": kind, "inputs": inputs, "baseline_rule": "gaps"})


def rows(kind, n=4000, seed=0):
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "plain": generator.normal(size=n),
            "gaps": generator.normal(size=n),
            "empty": np.nan,
            "big": generator.uniform(0, 1e6, n),
            "place": generator.choice(["EWR", "JFK", "LGA"], n),
            "carrier": generator.choice(["UA", "DL", None], n),
            "event_timestamp": pd.date_range("2013-01-01", periods=n, freq="15min", tz="UTC"),
        }
    )
    signal = 1.5 * frame["gaps"] + frame["plain"] + (frame["place"] == "EWR") + generator.normal(0, 0.5, n)
    frame["gaps"] = frame["gaps"].where(generator.uniform(size=n) > 0.3)
    frame["label"] = (signal > 0.3).astype(float) if kind == TaskKind.BINARY else 10 + 5 * signal
    return frame


def fitted(trainer, kind, inputs=INPUTS):
    chosen, frame = project(kind, inputs), rows(kind)
    numeric, categorical = matrices(frame, inputs.numeric, inputs.categorical)
    return chosen, frame, trainers.train(chosen, CANDIDATES[trainer], numeric, categorical, frame["label"].to_numpy())


def strange_rows(kind, inputs=INPUTS):
    """Return new rows: all values missing, a category that no fit has seen, and extreme values."""
    frame = rows(kind, 300, seed=1)
    frame.loc[:20, ["plain", "gaps", "big"]] = np.nan
    frame.loc[10:30, "place"] = "SFO"
    frame.loc[25:40, "carrier"] = ""
    frame.loc[35:45, "big"] = 1e12
    frame.loc[50:60, "empty"] = 3.0
    return matrices(frame, inputs.numeric, inputs.categorical)


@pytest.mark.parametrize("kind", TaskKind)
@pytest.mark.parametrize("trainer", CANDIDATES)
def test_the_graph_predicts_what_the_model_predicts(trainer, kind):
    _, frame, model = fitted(trainer, kind)
    graph = model.to_onnx().SerializeToString()
    numeric, categorical = strange_rows(kind)
    assert check_equal(graph, np.asarray(model.predict(numeric, categorical)), numeric, categorical) < 1e-4
    got = predict(session(graph), numeric, categorical)
    assert got.dtype == np.float32 and got.shape == (300,) and np.isfinite(got).all()
    if kind == TaskKind.BINARY:
        assert (got >= 0).all() and (got <= 1).all()
    learned = predict(session(graph), *matrices(frame, INPUTS.numeric, INPUTS.categorical))
    assert np.corrcoef(learned, frame["label"])[0, 1] > 0.4


@pytest.mark.parametrize("scale", [1e-4, 1.0, 2000.0, 1e7])
@pytest.mark.parametrize("trainer", CANDIDATES)
def test_a_graph_is_compared_at_the_scale_of_the_labels(trainer, scale):
    """A graph is compared at the scale of the labels.

    Labels range from 0 to the scale. The 32-bit rounding error of a prediction near 0 depends on
    the size of the other values.
    """
    chosen, frame = project(TaskKind.REGRESSION), rows(TaskKind.REGRESSION)
    label = frame["label"].to_numpy()
    label = scale * ((label - label.min()) / (label.max() - label.min())) ** 3
    numeric, categorical = matrices(frame, INPUTS.numeric, INPUTS.categorical)
    model = trainers.train(chosen, CANDIDATES[trainer], numeric, categorical, label)
    native, graph = np.asarray(model.predict(numeric, categorical)), model.to_onnx().SerializeToString()
    scale_of_all = scale_of(TaskKind.REGRESSION, native)
    assert check_equal(graph, native, numeric, categorical, scale=scale_of_all) < 1e-5
    for wrong in (
        native + 0.01 * scale_of_all,
        native * np.where(np.arange(len(native)) == 7, 0, 1) + 0.001 * scale_of_all,
    ):
        with pytest.raises(ExportError, match="at most 0.0001 is allowed"):
            check_equal(graph, wrong, numeric, categorical, scale=scale_of_all)
    bundle = make_bundle(chosen, graph, frame.assign(label=label))
    assert bundle.check_golden() == 0
    bundle.golden["predictions"][0] += 1e-4 * bundle.golden["scale"] + 1e-4 * abs(bundle.golden["predictions"][0])
    with pytest.raises(GoldenMismatchError):
        bundle.check_golden()


@pytest.mark.parametrize(
    ("kind", "predictions", "scale"),
    [
        (TaskKind.BINARY, [0.1, 0.9], 1.0),
        (TaskKind.REGRESSION, [], 1.0),
        (TaskKind.REGRESSION, [0.0, 0.0], 1.0),
        (TaskKind.REGRESSION, [3.0, -4.0], 12.5**0.5),
        (TaskKind.REGRESSION, [np.nan, np.inf, 2.0], 2.0),
        (TaskKind.REGRESSION, [1e300, 1e300], 1e300),
        (TaskKind.REGRESSION, [1e-300, -1e-300], 1e-300),
    ],
)
def test_the_scale_of_predictions(kind, predictions, scale):
    assert scale_of(kind, np.array(predictions)) == pytest.approx(scale)


def test_rows_next_to_a_threshold_go_the_same_way_in_the_graph():
    """Rows next to a threshold take the same branch in the graph.

    Rolling means differ in their last bit. There is no float32 between two such values, and a
    threshold that is rounded up lets the upper one pass.
    """
    place = np.random.default_rng(0).integers(0, 40, 2000)
    numeric, nothing = (
        (1 + place[:, None] * np.finfo("float32").eps).astype("float32"),
        np.empty((2000, 0), dtype=object),
    )
    model = hist_gradient_boosting.fit(
        TaskKind.REGRESSION,
        Inputs(numeric=("a",)),
        "a",
        numeric,
        nothing,
        (place % 7).astype("float64"),
        {"max_iter": 20},
    )
    assert check_equal(model.to_onnx().SerializeToString(), model.predict(numeric, nothing), numeric, nothing) < 1e-5


@pytest.mark.parametrize("trainer", CANDIDATES)
def test_a_project_without_categories_has_one_input_less(trainer):
    inputs = Inputs(numeric=INPUTS.numeric)
    _, _, model = fitted(trainer, TaskKind.BINARY, inputs)
    numeric, categorical = strange_rows(TaskKind.BINARY, inputs)
    running = session(model.to_onnx().SerializeToString())
    assert [i.name for i in running.get_inputs()] == ["numeric"]
    assert np.allclose(predict(running, numeric, categorical), model.predict(numeric, categorical), atol=1e-5)


@pytest.mark.parametrize("trainer", CANDIDATES)
def test_the_same_rows_give_the_same_model(trainer):
    first, second = (
        fitted(trainer, TaskKind.BINARY)[2].to_onnx().SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second


def test_a_difference_between_graph_and_model_is_an_error():
    numeric, categorical = np.ones((5, 2), dtype="float32"), np.empty((5, 0), dtype=object)
    graph = Graph(2, 0)
    halves = graph.model(
        graph.add("Mul", graph.add("ReduceSum", "numeric", graph.constant([1], "int64")), graph.constant(0.5))
    ).SerializeToString()
    assert check_equal(halves, np.ones(5), numeric, categorical) == 0
    for wrong in (np.full(5, 1.001), np.full(5, np.nan)):
        with pytest.raises(ExportError, match="where the model predicts"):
            check_equal(halves, wrong, numeric, categorical)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        pytest.param(np.array([]), "no rows to fit 'trees' on", id="no rows"),
        pytest.param(np.ones(7), "all 7 rows to fit 'trees' on have the outcome 1", id="one outcome only"),
    ],
)
def test_rows_that_teach_nothing_are_refused_with_the_reason(label, message):
    numeric, categorical = np.zeros((len(label), 4), dtype="float32"), np.full((len(label), 2), "", dtype=object)
    with pytest.raises(trainers.UnfitDataError, match=message):
        trainers.train(project(TaskKind.BINARY), CANDIDATES["hist_gradient_boosting"], numeric, categorical, label)


def test_an_unknown_candidate_is_named():
    with pytest.raises(ValueError, match=r"no candidate 'xgboost'; it has .*baseline_rule"):
        candidates.candidate_of(project(TaskKind.BINARY), "xgboost")


def test_missing_columns_are_all_named():
    with pytest.raises(KeyError, match="gaps, big"):
        matrices(rows(TaskKind.BINARY).drop(columns=["gaps", "big"]), INPUTS.numeric, INPUTS.categorical)


def test_a_bundle_comes_back_from_disk_and_keeps_its_word(tmp_path):
    chosen, frame, model = fitted("hist_gradient_boosting", TaskKind.BINARY)
    make_bundle(chosen, model.to_onnx().SerializeToString(), frame).save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "contract.json",
        "golden.json",
        "model.onnx",
        "reference.parquet",
    ]
    bundle = Bundle.load(tmp_path)
    assert bundle.check_golden() == 0
    # Missing values are among the golden requests.
    assert any(value is None for instance in bundle.golden["instances"] for value in instance.values())
    assert list(bundle.reference().columns) == [*chosen.input_columns, "label", "event_timestamp", "prediction"]
    assert np.allclose(bundle.reference()["prediction"], bundle.predict(bundle.reference()))
    assert bundle.contract["numeric"] == list(INPUTS.numeric) and bundle.contract["kind"] == "binary"

    bundle.golden["predictions"][3] += 0.01
    with pytest.raises(GoldenMismatchError, match="golden request 3"):
        bundle.check_golden()
