"""What training writes into MLflow: one run per retrain request, below it one per candidate, below that one per trial of a search, and the best one's model.

Runs are found again by their tags (request and candidate), so that a step that was killed and runs again makes nothing twice.
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
    """MLflow's server: MLflow's own variable MLFLOW_TRACKING_URI where it is set, else the one of the settings.

    For the settings' server this process also gets the settings' credentials, where it has none of its own: MLflow's clients read them in its environment.
    """
    settings = get_settings()
    uri = MLFLOW_TRACKING_URI.get() or settings.mlflow_url
    if uri.rstrip("/") == settings.mlflow_url and settings.mlflow_username and settings.mlflow_password and not MLFLOW_TRACKING_USERNAME.is_set():
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
        """Id of the run that stands for the request; the registered model version points at it."""
        return self._run("request", f"request {self._request}", {})

    def candidate_run(self, candidate: str) -> str:
        """Id of a candidate's run, nested below the request's."""
        return self._run(candidate, candidate, {"mlflow.parentRunId": self.request_run()})

    def trial_run(self, candidate: str, place: int) -> str:
        """Id of the run of a trial of a candidate's search, nested below the candidate's."""
        return self._run(f"{candidate}/trial_{place}", f"{candidate} trial {place}", {"mlflow.parentRunId": self.candidate_run(candidate)})

    def find(self, candidate: str) -> str | None:
        """Id of a candidate's run (``request``: the request's own), if there is one yet."""
        found = self._client.search_runs(
            [self.experiment], f"tags.request = '{self._request}' and tags.candidate = '{candidate}'", ViewType.ACTIVE_ONLY, 1, ["attributes.start_time ASC"]
        )
        return found[0].info.run_id if found else None

    def _run(self, candidate: str, name: str, tags: dict[str, str]) -> str:
        if found := self.find(candidate):
            return found
        # The tags come with the run, in one call: a kill in between leaves no run that is not found again.
        wanted = {**self._tags, **tags, "request": self._request, "candidate": candidate}
        return self._client.create_run(self.experiment, tags=wanted, run_name=name).info.run_id


def log(
    client: MlflowClient, run_id: str, *, params: dict[str, Any], metrics: dict[str, float], tags: dict[str, str], curves: dict[str, list[float]] | None = None
) -> None:
    """Parameters, metrics (a NaN is shown as such), tags and curves of a run in one call; what is there already is not written again."""
    run = client.get_run(run_id).data
    # Two values of one moment and step are one point too many: the newer would not be the one shown, and no model of the run could be logged,
    # since MLflow gives a model its run's metrics, all points of them.
    now = time.time_ns() // 1_000_000
    points = [Metric(k, v, now, 0) for k, v in metrics.items() if not _same(run.metrics.get(k), v)]
    for name, values in (curves or {}).items():
        if name not in run.metrics:
            points += [Metric(name, value, now, step) for step, value in enumerate(values)]
    new_params = [Param(k, str(v)) for k, v in params.items() if k not in run.params]
    client.log_batch(run_id, points, new_params, [RunTag(k, v) for k, v in tags.items()])


def log_training_set(client: MlflowClient, run_id: str, project: str, uri: str, description: dict[str, Any]) -> None:
    """The training set as the run's input: where it lies, and the table versions and cutoff it can be made again from."""
    source: dict[str, Any] = {"uri": uri, **{k: description[k] for k in ("cutoff", "table_versions", "feature_service") if k in description}}
    dataset = Dataset(
        name=f"{project}_training_set",
        digest=description["sha256"][:12],
        source_type="airloop",
        source=json.dumps(source, sort_keys=True),
        profile=json.dumps({"rows": description["rows"]}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def log_model(client: MlflowClient, run_id: str, bundle: Bundle, *, experiment: str, tags: dict[str, str], params: dict[str, Any]) -> str:
    """Log a bundle as MLflow model of a run; gives its id. What an earlier, killed try left behind, and no version points at, is deleted first.

    All files of the bundle lie in the model's own folder, so that downloading ``models:/<name>/<version>`` brings them.
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
            save_as_external_data=False,  # else the graph in memory is emptied and a second file written
            onnx_execution_providers=["CPUExecutionProvider"],
            pip_requirements=["onnxruntime"],  # given: MLflow would take nine seconds to find out
            tags=tags,
            params={k: str(v) for k, v in params.items()},
        )
    with tempfile.TemporaryDirectory() as folder:
        bundle.save(folder)
        for name in bundle.hashes():  # the graph too: its hash is that of our bytes, not of those that MLflow wrote of it
            client.log_model_artifact(info.model_id, str(Path(folder) / name))
    return info.model_id


@contextmanager
def _fluent_api() -> Iterator[None]:
    """MLflow's global functions speak to this house's server; what they are told stays behind in the process, so it is taken back."""
    import mlflow

    before = MLFLOW_TRACKING_URI.get_raw()
    mlflow.set_tracking_uri(tracking_uri())
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # takes the variable out of the environment, too
        if before is not None:
            MLFLOW_TRACKING_URI.set(before)


def download_model(name: str, version: str) -> Path:
    """The folder of a model version's bundle, downloaded once a machine. A version's content never changes, so the copy stays good.

    Args:
        name: of the registered model.
        version: its number; the copy is also named by the model it points at, since another registry has a version 1 too.
    """
    import mlflow

    model_uri = f"models:/{name}/{version}"
    source = tracking_client().get_model_version(name, version).source
    target = get_settings().home / "cache" / "models" / name / f"{version}-{source.rpartition('/')[2]}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # into a task's log it would write a line for each of its steps
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=str(partial), tracking_uri=tracking_uri(), registry_uri=tracking_uri())
        missing = [name for name in FILES if not (partial / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{model_uri} is no bundle of this house: it lacks {', '.join(missing)}")
        partial.rename(target)
    except OSError:
        if not target.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _experiment(client: MlflowClient, project: str) -> str:
    found = client.get_experiment_by_name(project)
    if found:
        return found.experiment_id
    try:
        return client.create_experiment(project)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
        return client.get_experiment_by_name(project).experiment_id


def _same(known: float | None, value: float) -> bool:
    return known is not None and (known == value or (np.isnan(known) and np.isnan(value)))
