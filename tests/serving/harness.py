"""Small models with known answers in a real registry, and a small real feature store."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from tests.ports import free_port
from tests.waiting import wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "shops"
LOCAL = ("127.0.0.1", 50000)  # a caller on this machine
NUMERIC = ["hour", "sales_7d", "late_rate", "temp", "orders"]
CATEGORICAL = ["shop"]
CONTRACT = {
    "schema": 1,
    "project": NAME,
    "kind": "regression",
    "feature_service": "shops_v1",
    "join_keys": ["shop", "customer"],
    "request_features": ["hour"],
    "numeric": NUMERIC,
    "categorical": CATEGORICAL,
}
INSTANCES = [
    {"hour": 1, "sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": 4, "shop": "a"},
    {"hour": 2, "sales_7d": None, "late_rate": None, "temp": -1, "orders": None, "shop": None},
    {"hour": None, "sales_7d": 1e6, "late_rate": 0.5, "temp": 0.1, "orders": 0, "shop": "elsewhere"},
]


def expected(row: dict[str, Any], bias: float = 0) -> float:
    """Return the answer of ``graph``.

    It is the sum of each number (0 if missing) times its position, 100 for shop a, and the bias.
    """
    total = sum(place * (row[name] or 0) for place, name in enumerate(NUMERIC, start=1))
    return float(np.float32(total + bias + (100 if row["shop"] == "a" else 0)))


def graph(bias: float = 0, numeric: int = len(NUMERIC), output: str = "prediction") -> bytes:
    """Return a model in Airloop's layout.

    Its inputs are numeric [n, 5] (NaN: missing) and categorical [n, 1]. Its output is prediction
    [n].
    """
    weights = np.arange(1, numeric + 1, dtype="float32").reshape(numeric, 1)
    nodes = [
        helper.make_node("IsNaN", ["numeric"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "numeric"], ["filled"]),
        helper.make_node("MatMul", ["filled", "weights"], ["sum"]),
        helper.make_node(
            "LabelEncoder",
            ["categorical"],
            ["known"],
            domain="ai.onnx.ml",
            keys_strings=["a"],
            values_floats=[100.0],
            default_float=0.0,
        ),
        helper.make_node("Add", ["sum", "known"], ["both"]),
        helper.make_node("Add", ["both", "bias"], ["total"]),
        helper.make_node("Reshape", ["total", "flat"], [output]),
    ]
    constants = {
        "zero": np.float32(0),
        "weights": weights,
        "bias": np.array([bias], dtype="float32"),
        "flat": np.array([-1]),
    }
    inputs = [
        helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["n", numeric]),
        helper.make_tensor_value_info("categorical", TensorProto.STRING, ["n", 1]),
    ]
    body = helper.make_graph(
        nodes,
        "shops",
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 22), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=10
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_bundle(
    folder: Path, bias: float = 0, *, contract: dict[str, Any] | None = None, golden: dict[str, Any] | None = None, model: bytes | None = None,  # noqa: E501
    rule: float | None = None,
) -> Path:  # fmt: skip
    """Write a bundle's files. The given parts replace matching ones.

    ``rule`` is the bias of a baseline rule next to the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fitting = {"instances": INSTANCES, "predictions": [expected(row, bias) for row in INSTANCES], "tolerance": 1e-5}
    if rule is not None:
        (folder / "baseline.onnx").write_bytes(graph(rule))
        fitting["baseline"] = [expected(row, rule) for row in INSTANCES]
    (folder / "model.onnx").write_bytes(model or graph(bias))
    (folder / "contract.json").write_text(json.dumps({**CONTRACT, **(contract or {})}))
    (folder / "golden.json").write_text(json.dumps({**fitting, **(golden or {})}))
    return folder


class Registry:
    """An MLflow registry that is filled as training does it.

    A version is a logged model of a run, and its folder is the bundle. A registry in a file looks
    up the logged model on MLflow's global tracking server. The server is therefore set while a
    version is written.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        from mlflow import MlflowClient

        self.uri, self.folder = uri, folder
        self.client = MlflowClient(uri, uri)
        location = None if uri.startswith("http") else f"file://{folder / 'artifacts'}"
        self.experiment = self.client.create_experiment("shops", artifact_location=location)

    def add(self, bias: float = 0, *, name: str = NAME, champion: bool = True, **parts: Any) -> str:
        """Register a version of a bundle (see write_bundle) and return its number."""
        from mlflow.exceptions import MlflowException

        run = self.client.create_run(self.experiment)
        model = self.client.create_logged_model(self.experiment, name="model", source_run_id=run.info.run_id)
        contract = {"project": name, **parts.pop("contract", {})}
        bundle = write_bundle(self.folder / "bundles" / model.model_id, bias, contract=contract, **parts)
        self.client.log_model_artifacts(model.model_id, str(bundle))
        self.client.finalize_logged_model(model.model_id, "READY")
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            assert error.error_code == "RESOURCE_ALREADY_EXISTS"
        with _global_tracking(self.uri):
            version = str(
                self.client.create_model_version(
                    name, f"models:/{model.model_id}", run_id=run.info.run_id, model_id=model.model_id
                ).version
            )
        if champion:
            self.point(version, name=name)
        return version

    def point(self, version: str, *, name: str = NAME) -> None:
        self.client.set_registered_model_alias(name, "champion", version)

    def artifacts(self, version: str, *, name: str = NAME) -> Path:
        """Return the folder of a version's files (only for a registry in a file)."""
        model = self.client.get_logged_model(
            self.client.get_model_version(name, version).source.removeprefix("models:/")
        )
        return Path(model.artifact_location.removeprefix("file://"))


class FeatureRepository:
    """A new Feast repository with a SQL registry, and SQLite or Redis as online store.

    The defaults are those of the embedded stack.
    """

    # The rows are of 2013, and so is the present.
    tags = {"clock": "replay"}

    def __init__(self, folder: Path, online: str | None = None, registry: str | None = None) -> None:
        self.folder = folder
        online = online or f"{{type: sqlite, path: {folder / 'online.db'}}}"
        (folder / "feature_store.yaml").write_text(
            "project: tests\nprovider: local\nentity_key_serialization_version: 3\nregistry: {registry_type: sql,"
            f" path: '{registry or f'sqlite:///{folder}/registry.db'}', cache_ttl_seconds: 60}}\noffline_store: {{type:"
            f" feature_repo_that_is_not_there.Store}}\nonline_store: {online}\n"
        )

    def store(self):
        """Return Feast's own store, opened as for materialization."""
        import yaml
        from feast import FeatureStore
        from feast.repo_config import RepoConfig

        config = yaml.safe_load((self.folder / "feature_store.yaml").read_text())
        return FeatureStore(
            config=RepoConfig(**{**config, "offline_store": {"type": "dask"}}, repo_path=str(self.folder))
        )

    def register(
        self, service: str = "shops_v1", views: tuple[str, ...] = ("shop_sales", "shop_weather", "customer_orders")
    ) -> None:
        from feast import FeatureService

        entities, known = self._objects()
        chosen = [known[view] for view in views]
        self.store().apply([*entities, *chosen, FeatureService(name=service, features=chosen, tags=self.tags)])

    def materialized(self, until: datetime) -> None:
        """Record for each view that it is materialized up to this time."""
        store = self.store()
        for view in store.list_feature_views():
            store.registry.apply_materialization(view, store.project, until - timedelta(days=1), until)

    def write(self, view: str, rows: list[dict[str, Any]], at: datetime) -> None:
        import pandas as pd

        self.store().write_to_online_store(view, pd.DataFrame(rows).assign(event_timestamp=pd.Timestamp(at)))

    def _objects(self):
        from feast import Entity, FeatureView, Field, FileSource
        from feast.types import Float64, Int64, String
        from feast.value_type import ValueType

        shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
        customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)

        def view(name, entity, key_type, fields, ttl):
            source = FileSource(name=name, path=str(self.folder / f"{name}.parquet"), timestamp_field="event_timestamp")
            return FeatureView(
                name=name,
                entities=[entity],
                ttl=ttl,
                schema=[Field(name=entity.name, dtype=key_type), *fields],
                source=source,
            )

        numbers = {"shop_sales": ["sales_7d", "late_rate"], "shop_weather": ["temp"]}
        # The TTL is one day, and the rows are of 2013. By the wall clock all of them would be
        # stale.
        views = {
            name: view(name, shop, String, [Field(name=f, dtype=Float64) for f in fields], timedelta(days=1))
            for name, fields in numbers.items()
        }
        views["customer_orders"] = view(
            "customer_orders", customer, Int64, [Field(name="orders", dtype=Int64)], timedelta(0)
        )
        return [shop, customer], views


class Process:
    """A child process that serves HTTP on a free port. It is ended with its process group."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.started = time.monotonic()
        options = [] if arguments[0].startswith("-") else ["-m"]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *options, *arguments, "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=REPOSITORY, env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def get(self, path: str, body: dict[str, Any] | None = None, timeout: float = 20) -> tuple[int, Any]:
        """Return status and JSON of the answer, or (0, None) if no server answers."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={} if body is None else {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, _json(response.read())
        except urllib.error.HTTPError as error:
            return error.code, _json(error.read())
        except OSError:
            return 0, None

    def wait(self, path: str, timeout: float) -> float:
        """Wait until ``path`` answers 200. Return the seconds since the process's start."""
        wait_for(lambda: self.get(path)[0] == 200, timeout, lambda: (self.get(path), self.log.read_text()[-2000:]))
        return time.monotonic() - self.started

    def send(self, which: int) -> None:
        os.killpg(self._process.pid, which)

    def send_parent(self, which: int) -> None:
        """Send a signal only to the process that was started, as a container runtime does."""
        self._process.send_signal(which)

    def wait_for_end(self, timeout: float) -> None:
        self._process.wait(timeout)

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self, how: int = signal.SIGTERM) -> None:
        if self._process.poll() is None:
            self.send(how)
            self._process.wait(30)


def serving_process(
    folder: Path,
    registry_uri: str,
    features: FeatureRepository,
    *,
    arguments: tuple[str, ...] = ("serving",),
    **settings: Any,
) -> Process:
    """Start the service with its state under ``folder``."""
    wanted = {
        "mlflow_uri": registry_uri,
        "feature_repo": features.folder,
        "log_root": folder / "store",
        "cache": folder / "cache",
        "poll_seconds": 0.2,
        **settings,
    }
    environment = {f"SERVING_{key.upper()}": str(value) for key, value in wanted.items()}
    return Process(list(arguments), environment, folder / "serving.log")


def logged(root: Path, project: str = NAME) -> list[dict[str, Any]]:
    """Return the prediction log's rows with parsed JSON columns."""
    rows = [
        row
        for file in sorted((root / project / "prediction_log").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    return [
        {**row, **{column: json.loads(row[column]) for column in ("key", "features", "feature_times")}} for row in rows
    ]


@contextmanager
def _global_tracking(uri: str) -> Iterator[None]:
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _json(text: bytes) -> Any:
    return json.loads(text) if text[:1] in b"{[" else text.decode()
