"""A model as data: the graph, the contract that says what goes in, and golden requests with the answers they must get.

Made by training (``include/training/bundle.py``); read here by the schema alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Value = float | int | str | bool | None
FILES = ("model.onnx", "contract.json", "golden.json")
ELEMENT = {"numeric": "tensor(float)", "categorical": "tensor(string)"}


class BundleError(ValueError):
    """The bundle is wrong and will be as wrong the next time."""


class Contract(BaseModel):
    """Which columns a model takes, in which order, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(alias="schema")
    project: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")]  # names a folder of the prediction log
    kind: str
    feature_service: str
    join_keys: tuple[str, ...]
    request_features: tuple[str, ...]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]

    @model_validator(mode="after")
    def _inputs_are_unique(self):
        if not self.inputs:
            raise ValueError("the model takes no input")
        repeated = {name for name in self.inputs if self.inputs.count(name) > 1}
        if repeated:
            raise ValueError(f"inputs are named twice: {', '.join(sorted(repeated))}")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.numeric, *self.categorical)

    @property
    def view_features(self) -> tuple[str, ...]:
        """The inputs that neither come with the request nor are join keys: Feast has them."""
        given = {*self.request_features, *self.join_keys}
        return tuple(name for name in self.inputs if name not in given)


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
        self.contract = contract
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
        return bundle

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Predictions float64 [n].

        Args:
            rows: n rows, each holding every input of the contract; None or NaN: missing.
        """
        contract = self.contract
        # Floats of 64 bits first, as in the batch, so that a number is rounded once and the same way.
        numeric = np.array([[np.nan if row[name] is None else row[name] for name in contract.numeric] for row in rows], dtype="float64")
        with np.errstate(over="ignore"):  # a number that is too great for 32 bits becomes infinite; requests are checked before
            feeds = {"numeric": numeric.reshape(len(rows), len(contract.numeric)).astype("float32")}
        if contract.categorical:
            strings = ["" if row[name] is None else str(row[name]) for row in rows for name in contract.categorical]
            feeds["categorical"] = np.array(strings, dtype=object).reshape(len(rows), len(contract.categorical))
        return self._session.run(["prediction"], feeds)[0].astype("float64")

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
