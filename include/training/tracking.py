"""Training's records in MLflow: runs and the best candidate's model.

There is one run for each retrain request. Nested below it is one for each candidate, and below that
one for each trial of a search. Runs are found by their tags (request and candidate), so a killed
step that runs again does not create duplicates.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.environment_variables import (
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR,
    MLFLOW_TRACKING_PASSWORD,
    MLFLOW_TRACKING_URI,
    MLFLOW_TRACKING_USERNAME,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from include.settings import get_settings
from include.training.bundle import FILES, Bundle


def tracking_uri() -> str:
    """Return the URL of MLflow's server: MLFLOW_TRACKING_URI if set, else the one of the settings.

    For the settings' server this process also gets the settings' credentials, unless it has its
    own. MLflow's clients read them from its environment.
    """
    settings = get_settings()
    uri = MLFLOW_TRACKING_URI.get() or settings.mlflow_url
    if (
        uri.rstrip("/") == settings.mlflow_url
        and settings.mlflow_username
        and settings.mlflow_password
        and not MLFLOW_TRACKING_USERNAME.is_set()
    ):
        MLFLOW_TRACKING_USERNAME.set(settings.mlflow_username)
        MLFLOW_TRACKING_PASSWORD.set(settings.mlflow_password.get_secret_value())
    return uri


def tracking_client() -> MlflowClient:
    return MlflowClient(tracking_uri=tracking_uri(), registry_uri=tracking_uri())


class RequestRuns:
    """The runs of one retrain request in the project's experiment."""

    def __init__(self, client: MlflowClient, project: str, request: str, tags: dict[str, str]) -> None:
        self._client, self._request, self._tags = client, request, tags
        self.experiment = _experiment(client, project)

    def request_run(self) -> str:
        """Return the id of the request's run, to which the registered model version points."""
        return self._run("request", f"request {self._request}", {})

    def candidate_run(self, candidate: str) -> str:
        """Return the id of a candidate's run, nested below the request's."""
        return self._run(candidate, candidate, {"mlflow.parentRunId": self.request_run()})

    def trial_run(self, candidate: str, place: int) -> str:
        """Return the id of the run of a candidate's trial, nested below the candidate's."""
        return self._run(
            f"{candidate}/trial_{place}",
            f"{candidate} trial {place}",
            {"mlflow.parentRunId": self.candidate_run(candidate)},
        )

    def find(self, candidate: str) -> str | None:
        """Return the id of a candidate's run, or None. ``request`` is the request's own run."""
        runs = self._client.search_runs(
            [self.experiment],
            f"tags.request = '{self._request}' and tags.candidate = '{candidate}'",
            ViewType.ACTIVE_ONLY,
            1,
            ["attributes.start_time ASC"],
        )
        return runs[0].info.run_id if runs else None

    def _run(self, candidate: str, name: str, tags: dict[str, str]) -> str:
        if existing_run := self.find(candidate):
            return existing_run
        # Create the run with its tags in one call, so that a kill cannot leave a run without tags.
        run_tags = {**self._tags, **tags, "request": self._request, "candidate": candidate}
        run_id: str = self._client.create_run(self.experiment, tags=run_tags, run_name=name).info.run_id
        return run_id


def log(
    client: MlflowClient,
    run_id: str,
    *,
    params: dict[str, Any],
    metrics: dict[str, float],
    tags: dict[str, str],
    curves: dict[str, list[float]] | None = None,
) -> None:
    """Write parameters, metrics, tags and curves of a run in one call.

    A NaN is shown as such. Existing values are not written again.
    """
    run = client.get_run(run_id).data
    # Two values with the same time and step are an error: MLflow would not show the newer one.
    # MLflow also copies all points of a run's metrics to its model, so it could not log a model of
    # the run.
    now = time.time_ns() // 1_000_000
    points = [Metric(k, v, now, 0) for k, v in metrics.items() if not _same(run.metrics.get(k), v)]
    for name, values in (curves or {}).items():
        if name not in run.metrics:
            points += [Metric(name, value, now, step) for step, value in enumerate(values)]
    new_params = [Param(k, str(v)) for k, v in params.items() if k not in run.params]
    client.log_batch(run_id, points, new_params, [RunTag(k, v) for k, v in tags.items()])


def log_training_set(client: MlflowClient, run_id: str, project: str, uri: str, description: dict[str, Any]) -> None:
    """Log the training set as the run's input.

    The record has its URI, and the table versions and cutoff from which it can be rebuilt.
    """
    source: dict[str, Any] = {
        "uri": uri,
        **{k: description[k] for k in ("cutoff", "table_versions", "feature_service") if k in description},
    }
    dataset = Dataset(
        name=f"{project}_training_set",
        digest=description["sha256"][:12],
        source_type="airloop",
        source=json.dumps(source, sort_keys=True),
        profile=json.dumps({"rows": description["rows"]}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def log_model(
    client: MlflowClient, run_id: str, bundle: Bundle, *, experiment: str, tags: dict[str, str], params: dict[str, Any]
) -> str:
    """Log a bundle as the MLflow model of a run. Return its id.

    Models that an earlier, killed try left without a version are deleted first. All files of the
    bundle are in the model's own folder, so downloading ``models:/<name>/<version>`` includes them.
    """
    import mlflow
    import onnx
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    registered = {version.source for version in client.search_model_versions(f"run_id = '{run_id}'")}
    for left in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if f"models:/{left.model_id}" not in registered:
            client.delete_logged_model(left.model_id)
    contract = bundle.contract
    specs = [TensorSpec(np.dtype("float32"), (-1, len(contract["numeric"])), "numeric")]
    if contract["categorical"]:
        specs.append(TensorSpec(np.dtype("str"), (-1, len(contract["categorical"])), "categorical"))
    signature = ModelSignature(Schema(specs), Schema([TensorSpec(np.dtype("float32"), (-1,), "prediction")]))
    with _fluent_api(), mlflow.start_run(run_id=run_id):
        info = mlflow.onnx.log_model(
            onnx.load_from_string(bundle.graph),
            name="model",
            signature=signature,
            input_example=bundle.golden_tensors(),
            # Otherwise the graph in memory is emptied and a second file is written.
            save_as_external_data=False,
            onnx_execution_providers=["CPUExecutionProvider"],
            # Given explicitly, because MLflow needs nine seconds to infer it.
            pip_requirements=["onnxruntime"],
            tags=tags,
            params={k: str(v) for k, v in params.items()},
        )
    with tempfile.TemporaryDirectory() as folder:
        bundle.save(folder)
        # Also the graph: its hash is that of the bundle's bytes, not of the bytes that MLflow
        # writes.
        for name in bundle.hashes():
            client.log_model_artifact(info.model_id, str(Path(folder) / name))
    model_id: str = info.model_id
    return model_id


@contextmanager
def _fluent_api() -> Iterator[None]:
    """Point MLflow's global functions to this deployment's server.

    These settings persist in the process, so they are restored afterwards.
    """
    import mlflow

    before = MLFLOW_TRACKING_URI.get_raw()
    mlflow.set_tracking_uri(tracking_uri())
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # also removes the variable from the environment
        if before is not None:
            MLFLOW_TRACKING_URI.set(before)


def download_model(name: str, version: str) -> Path:
    """Return the folder of a model version's bundle, downloaded once for each machine.

    A version's content never changes, so the copy stays valid.

    Args:
        name: the registered model.
        version: its number. The copy's name also contains the model's id, because another registry
            has a version 1 too.
    """
    import mlflow

    model_uri = f"models:/{name}/{version}"
    source = tracking_client().get_model_version(name, version).source
    target = get_settings().home / "cache" / "models" / name / f"{version}-{source.rpartition('/')[2]}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # it would log a line for each of its steps
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        mlflow.artifacts.download_artifacts(
            artifact_uri=model_uri, dst_path=str(partial), tracking_uri=tracking_uri(), registry_uri=tracking_uri()
        )
        missing = [name for name in FILES if not (partial / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{model_uri} is not a bundle of Airloop: it lacks {', '.join(missing)}")
        partial.rename(target)
    except OSError:
        if not target.exists():  # another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _experiment(client: MlflowClient, project: str) -> str:
    experiment = client.get_experiment_by_name(project)
    if experiment:
        known: str = experiment.experiment_id
        return known
    try:
        created: str = client.create_experiment(project)
        return created
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
        of_another: str = client.get_experiment_by_name(project).experiment_id
        return of_another


def _same(known: float | None, value: float) -> bool:
    return known is not None and (known == value or (np.isnan(known) and np.isnan(value)))
