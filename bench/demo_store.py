"""What the demo left behind, read as plain files: the prediction log (Delta), the registry (SQLite), the models (ONNX), its result (JSON)."""

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from deltalake import DeltaTable

KEY = ["carrier", "flight", "scheduled_departure"]
MODEL = "flights"


@dataclass(frozen=True)
class Version:
    """A registered model version, as MLflow's database has it: its tags, and the folder of its bundle (None: not found)."""

    number: str
    tags: dict[str, str]
    bundle: Path | None

    @property
    def cutoff(self) -> np.datetime64:
        """By when everything that the model may have learnt from was known: the version's tag ``cutoff``."""
        return np.datetime64(self.tags["cutoff"].removesuffix("Z"), "us")


def predictions(store: Path) -> pd.DataFrame:
    """The log of batch predictions; times as datetime64[us] in UTC.

    Raises:
        deltalake.exceptions.TableNotFoundError: nothing was ever predicted.
    """
    log = DeltaTable(str(store / MODEL / "predictions")).to_pandas()
    for column, dtype in log.dtypes.items():
        if isinstance(dtype, pd.DatetimeTZDtype):
            log[column] = log[column].dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[us]")
    return log


def versions(home: Path) -> dict[str, Version]:
    """Every registered version of the project's model, read from MLflow's database by SQL.

    Raises:
        sqlite3.OperationalError: there is no such database.
    """
    with closing(sqlite3.connect(f"file:{home / 'mlflow' / 'mlflow.db'}?mode=ro", uri=True)) as database:
        sources = dict(database.execute("SELECT version, source FROM model_versions WHERE name = ?", [MODEL]))
        tags: dict[int, dict[str, str]] = {number: {} for number in sources}
        for number, key, value in database.execute("SELECT version, key, value FROM model_version_tags WHERE name = ?", [MODEL]):
            tags[number][key] = value
    return {str(number): Version(str(number), tags[number], _bundle(home, source)) for number, source in sources.items()}


def _bundle(home: Path, source: str) -> Path | None:
    """The folder of model.onnx: MLflow's server keeps a logged model at artifacts/<experiment>/models/<model id>/artifacts."""
    found = [*(home / "mlflow" / "artifacts").glob(f"*/models/{source.rpartition('/')[2]}/artifacts/model.onnx")]
    return found[0].parent if found else None


def result(home: Path) -> dict[str, Any]:
    return json.loads((home / "demo" / "result.json").read_text())


def training_rows(store: Path, version: Version) -> pd.DataFrame | None:
    """Key, label and ``event_timestamp`` of what a version was trained and judged on; None if its training set is not there."""
    found = [*(store / MODEL / "training" / version.tags["request"]).glob("training_set-*.parquet")]
    if not found:
        return None
    rows = pd.read_parquet(found[0], columns=[*KEY, "event_timestamp", "label"])
    return rows.assign(**{c: rows[c].dt.tz_localize(None).astype("datetime64[us]") for c in ("scheduled_departure", "event_timestamp")})


def ask(version: Version, rows: pd.DataFrame) -> np.ndarray:
    """What a version's ONNX graph answers to logged inputs.

    Raises:
        FileNotFoundError: its artifacts are gone.
    """
    import onnxruntime

    if version.bundle is None:
        raise FileNotFoundError(f"version {version.number}: no model.onnx among MLflow's artifacts")
    contract = json.loads((version.bundle / "contract.json").read_text())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(version.bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])
    inputs = {"numeric": rows[contract["numeric"]].to_numpy("float32")}
    if contract["categorical"]:
        inputs["categorical"] = rows[contract["categorical"]].fillna("").astype(str).to_numpy(dtype=object)
    return session.run(["prediction"], inputs)[0].reshape(-1).astype("float64")
