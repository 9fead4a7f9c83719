"""Training writes to a real MLflow."""

import numpy as np
import pytest

from include.projects import get_project
from include.training import tracking
from include.training.bundle import contract_of, make_bundle
from include.training.candidates import BASELINE
from include.training.inputs import matrices
from include.training.trainers import train
from tests.serving.conftest import migrated  # noqa: F401
from tests.unit.training.made_up import examples

FLIGHTS = get_project("flights")


@pytest.fixture
def runs(tmp_path, migrated, monkeypatch):  # noqa: F811
    (tmp_path / "mlflow.db").write_bytes(migrated.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = tracking.tracking_client()
    client.create_experiment("flights", artifact_location=str(tmp_path / "artifacts"))
    return client, tracking.RequestRuns(client, "flights", "r1", {})


@pytest.fixture(scope="module")
def bundle():
    rows = examples(FLIGHTS, days=30, a_day=40)
    contract = contract_of(FLIGHTS)
    model = train(
        FLIGHTS, BASELINE, *matrices(rows, contract["numeric"], contract["categorical"]), rows["label"].to_numpy()
    )
    return make_bundle(FLIGHTS, model.to_onnx().SerializeToString(), rows)


def test_a_figure_that_changed_is_shown_as_it_is_now_and_the_run_s_model_can_still_be_logged(runs, bundle):
    """A changed metric is shown with its latest value, and the run's model can still be logged.

    This happens after an evicted refit: the cost of its pods is already recorded, and has
    increased.
    """
    client, of_request = runs
    run = of_request.request_run()
    # The latest value counts, not the largest.
    for tries, loss in ((8.0, 0.5), (7.0, 0.5), (7.0, np.nan)):
        tracking.log(
            client,
            run,
            params={},
            metrics={"pod.tries": tries, "loss": loss},
            tags={},
            curves={"loss_curve": [0.9, 0.8]},
        )
    shown = client.get_run(run).data.metrics
    assert shown["pod.tries"] == 7.0 and np.isnan(shown["loss"]) and shown["loss_curve"] == 0.8
    assert [len(client.get_metric_history(run, name)) for name in ("pod.tries", "loss", "loss_curve")] == [2, 2, 2]
    ids = [
        tracking.log_model(client, run, bundle, experiment=of_request.experiment, tags={}, params={}) for _ in range(2)
    ]
    left = {model.model_id for model in client.search_logged_models([of_request.experiment])}
    assert left == {ids[1]}, "what an earlier try logged is deleted"
