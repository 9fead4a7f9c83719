"""A model as data: the graph, the contract that says what goes in, and golden requests with the answers they must get.

Made by training (``include/training/bundle.py``); read here by the schema alone.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.contract import Contract
from serving.inputs import Inputs

FILES = ("model.onnx", "contract.json", "golden.json")
ELEMENT = {"numeric": "tensor(float)", "categorical": "tensor(string)"}


class BundleError(ValueError):
    """The bundle is wrong and will be as wrong the next time."""


class Golden(BaseModel):
    """Requests with the answers that the model gave when it was made."""

    model_config = ConfigDict(frozen=True)

    instances: list[dict[str, Any]]
    predictions: list[float]
    tolerance: float = Field(gt=0)

    @model_validator(mode="after")
    def _one_answer_each(self):
        if not self.instances or len(self.instances) != len(self.predictions):
            raise ValueError(f"{len(self.instances)} instances with {len(self.predictions)} predictions: there must be one each, and at least one")
        return self


class Bundle:
    """A model that answers its golden requests.

    Raises (from ``load``):
        FileNotFoundError: a file is missing.
        BundleError: a file is not what it should be, or a golden request gets another answer.
    """

    def __init__(self, contract: Contract, session: onnxruntime.InferenceSession) -> None:
        self.contract, self.inputs = contract, Inputs(contract)
        self.seconds = 0.0  # what one row took when it was warm
        self._session = session

    @classmethod
    def load(cls, folder: Path, *, threads: int = 1) -> "Bundle":
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"no model bundle: {', '.join(missing)} missing")
        contract = Contract.model_validate(_json(folder / "contract.json", Contract))
        golden = Golden.model_validate(_json(folder / "golden.json", Golden))
        bundle = cls(contract, _session(folder / "model.onnx", contract, threads))
        bundle._check_golden(golden)  # also warms it
        bundle.seconds = bundle._measure(golden.instances[0])
        return bundle

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Predictions float64 [n].

        Args:
            rows: n rows, each holding every input of the contract; None or NaN: missing.
        """
        return self.run([self.inputs.numbers(row) for row in rows], [self.inputs.texts(row) for row in rows])

    def run(self, numbers: Sequence[Sequence[float]] | np.ndarray, texts: Sequence[Sequence[str]] | np.ndarray) -> np.ndarray:
        """The graph's answers, float64 [n], for its numeric columns [n, k] and its categorical ones [n, m]."""
        # Floats of 64 bits first, as in the batch, so that a number is rounded once and the same way.
        with np.errstate(over="ignore"):  # a number that is too great for 32 bits becomes infinite; requests are checked before
            feeds = {"numeric": np.asarray(numbers, dtype="float64").reshape(len(numbers), len(self.contract.numeric)).astype("float32")}
        if self.contract.categorical:
            feeds["categorical"] = np.asarray(texts, dtype=object).reshape(len(numbers), len(self.contract.categorical))
        return self._session.run(["prediction"], feeds)[0].astype("float64")

    def _measure(self, row: Mapping[str, Any]) -> float:
        """Seconds that one row takes: the best of some."""
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            self.predict([row])
            taken.append(time.perf_counter() - began)
        return min(taken)

    def _check_golden(self, golden: Golden) -> None:
        lacking = sorted({name for instance in golden.instances for name in self.contract.inputs if name not in instance})
        if lacking:
            raise BundleError(f"golden.json: instances lack the inputs {', '.join(lacking)}")
        expected = np.array(golden.predictions)
        try:
            answers = self.predict(golden.instances)
        except Exception as error:  # whatever ONNX Runtime or the values raise, this version cannot answer
            raise BundleError(f"the model does not answer its golden requests: {_line(error)}") from error
        if answers.shape != expected.shape:
            raise BundleError(f"the model answers {len(expected)} golden requests with an array of shape {answers.shape}")
        off = np.abs(answers - expected)
        wrong = np.flatnonzero(~(off <= golden.tolerance * np.maximum(1.0, np.abs(expected))))  # not ... <= is true of NaN too
        if wrong.size:
            first = int(wrong[0])
            raise BundleError(f"golden request {first} ({wrong.size} of {len(expected)}): expected {expected[first]}, got {answers[first]}")


def check_hashes(folder: Path, hashes: str) -> None:
    """Hold a bundle's files to what training wrote of them.

    Args:
        hashes: JSON object, file -> hex of its SHA-256.

    Raises:
        BundleError: a file is another one.
        FileNotFoundError: a file is missing.
    """
    try:
        wanted = {str(name): str(value) for name, value in json.loads(hashes).items()}
    except (ValueError, AttributeError) as error:
        raise BundleError(f"the version's hashes are not JSON ({error})") from error
    if unhashed := [name for name in FILES if name not in wanted]:
        raise BundleError(f"the version has no hash of {', '.join(unhashed)}")
    for name in FILES:
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted[name]:
            raise BundleError(f"{name} is not the file that was registered: its SHA-256 is another one")


def _json(file: Path, model: type[BaseModel]) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file.name}: {where + ': ' if where else ''}{first['msg']}") from error
    except ValueError as error:
        raise BundleError(f"{file.name}: not JSON ({error})") from error
    return content


def _session(file: Path, contract: Contract, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes, one per way to fail
        raise BundleError(f"model.onnx does not load: {_line(error)}") from error
    wanted = {"numeric": len(contract.numeric)} | ({"categorical": len(contract.categorical)} if contract.categorical else {})
    found = {entry.name: entry for entry in session.get_inputs()}
    if found.keys() != wanted.keys():
        raise BundleError(f"model.onnx takes {', '.join(sorted(found))}; the contract says {', '.join(sorted(wanted))}")
    for name, columns in wanted.items():
        shape, element = found[name].shape, found[name].type
        if element != ELEMENT[name] or len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != columns):
            raise BundleError(f"model.onnx: input '{name}' is {element} {shape}; the contract needs {ELEMENT[name]} [n, {columns}]")
    outputs = [entry.name for entry in session.get_outputs()]
    if "prediction" not in outputs:
        raise BundleError(f"model.onnx gives {', '.join(outputs)}, but no 'prediction'")
    return session


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
