"""Read the demo's output as plain files.

These are the prediction log (Delta), the registry (SQLite), the models (ONNX) and the result
(JSON).
"""

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
    """A registered model version from MLflow's database.

    It has the version's tags and the folder of its bundle, which is None if it was not found.
    """

    number: str
    tags: dict[str, str]
    bundle: Path | None

    @property
    def cutoff(self) -> np.datetime64:
        """The version's tag ``cutoff``: the model may use only data that was known by then."""
        return np.datetime64(self.tags["cutoff"].removesuffix("Z"), "us")


def predictions(store: Path) -> pd.DataFrame:
    """Return the log of batch predictions, with times as datetime64[us] in UTC.

    Raises:
        deltalake.exceptions.TableNotFoundError: No prediction was ever made.
    """
    log = DeltaTable(str(store / MODEL / "predictions")).to_pandas()
    for column, dtype in log.dtypes.items():
        if isinstance(dtype, pd.DatetimeTZDtype):
            log[column] = log[column].dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[us]")
    return log


def versions(home: Path) -> dict[str, Version]:
    """Read every registered version of the project's model from MLflow's database by SQL.

    Raises:
        sqlite3.OperationalError: The database does not exist.
    """
    with closing(sqlite3.connect(f"file:{home / 'mlflow' / 'mlflow.db'}?mode=ro", uri=True)) as database:
        sources = dict(database.execute("SELECT version, source FROM model_versions WHERE name = ?", [MODEL]))
        tags: dict[int, dict[str, str]] = {number: {} for number in sources}
        for number, key, value in database.execute(
            "SELECT version, key, value FROM model_version_tags WHERE name = ?", [MODEL]
        ):
            tags[number][key] = value
    return {
        str(number): Version(str(number), tags[number], _bundle(home, source)) for number, source in sources.items()
    }


def _bundle(home: Path, source: str) -> Path | None:
    """Return the folder of model.onnx, or None if it does not exist.

    MLflow's server stores a logged model at artifacts/<experiment>/models/<model id>/artifacts.
    """
    paths = [*(home / "mlflow" / "artifacts").glob(f"*/models/{source.rpartition('/')[2]}/artifacts/model.onnx")]
    return paths[0].parent if paths else None


def result(home: Path) -> dict[str, Any]:
    return json.loads((home / "demo" / "result.json").read_text())


def training_rows(store: Path, version: Version) -> pd.DataFrame | None:
    """Return the rows that a version was trained and evaluated on.

    The columns are key, label and ``event_timestamp``. Return None if the training set is missing.
    """
    paths = [*(store / MODEL / "training" / version.tags["request"]).glob("training_set-*.parquet")]
    if not paths:
        return None
    rows = pd.read_parquet(paths[0], columns=[*KEY, "event_timestamp", "label"])
    return rows.assign(
        **{c: rows[c].dt.tz_localize(None).astype("datetime64[us]") for c in ("scheduled_departure", "event_timestamp")}
    )


def ask(version: Version, rows: pd.DataFrame) -> np.ndarray:
    """Return the output of a version's ONNX graph for logged inputs.

    Raises:
        FileNotFoundError: The version's artifacts do not exist.
    """
    import onnxruntime

    if version.bundle is None:
        raise FileNotFoundError(f"version {version.number}: no model.onnx among MLflow's artifacts")
    contract = json.loads((version.bundle / "contract.json").read_text())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(version.bundle / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    inputs = {"numeric": rows[contract["numeric"]].to_numpy("float32")}
    if contract["categorical"]:
        inputs["categorical"] = rows[contract["categorical"]].fillna("").astype(str).to_numpy(dtype=object)
    return session.run(["prediction"], inputs)[0].reshape(-1).astype("float64")
