"""An ONNX graph in the house's layout, ready to answer: ``numeric`` [n, k] and ``categorical`` [n, m] go in, ``prediction`` [n] comes out."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from serving.contract import Contract
from serving.inputs import Inputs

ELEMENT = {"numeric": "tensor(float)", "categorical": "tensor(string)"}


class BundleError(ValueError):
    """The bundle is wrong and will be as wrong the next time."""


class Graph:
    """A loaded graph.

    Raises:
        BundleError: it does not load, or does not take what the contract says.
    """

    def __init__(self, file: Path, contract: Contract, threads: int) -> None:
        self.name, self.contract, self.inputs = file.name, contract, Inputs(contract)
        self.seconds = 0.0  # what one row took when it was warm
        self._session = _session(file, contract, threads)

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Predictions float64 [n].

        Args:
            rows: n rows, each holding every input of the contract; None or NaN: missing.
        """
        return self.run([self.inputs.numbers(row) for row in rows], [self.inputs.texts(row) for row in rows])

    def run(self, numbers: Sequence[Sequence[float] | bytes] | np.ndarray, texts: Sequence[Sequence[str]] | np.ndarray) -> np.ndarray:
        """The graph's answers, float64 [n], for its numeric columns [n, k], whose rows may be packed (``Inputs.packed``), and its categorical ones [n, m]."""
        # Floats of 64 bits first, as in the batch, so that a number is rounded once and the same way.
        if not isinstance(numbers, np.ndarray):
            # Packed in a fifth of the time that an array takes to find out what is in lists.
            content = b"".join([row if type(row) is bytes else self.inputs.packed.pack(*row) for row in numbers])
            numbers = np.frombuffer(content, "float64").reshape(len(numbers), len(self.contract.numeric))
        with np.errstate(over="ignore"):  # a number that is too great for 32 bits becomes infinite; requests are checked before
            feeds = {"numeric": numbers.astype("float32")}
        if self.contract.categorical:
            feeds["categorical"] = np.asarray(texts, dtype=object).reshape(len(numbers), len(self.contract.categorical))
        return self._session.run(["prediction"], feeds)[0].astype("float64")

    def check(self, instances: Sequence[Mapping[str, Any]], predictions: Sequence[float], tolerance: float) -> None:
        """Answer golden requests, which also warms it, and measure what a row takes.

        Raises:
            BundleError: an answer is another one, or none.
        """
        lacking = sorted({name for instance in instances for name in self.contract.inputs if name not in instance})
        if lacking:
            raise BundleError(f"golden.json: instances lack the inputs {', '.join(lacking)}")
        expected = np.array(predictions)
        try:
            answers = self.predict(instances)
        except Exception as error:  # whatever ONNX Runtime or the values raise, this version cannot answer
            raise BundleError(f"{self.name} does not answer its golden requests: {_line(error)}") from error
        if answers.shape != expected.shape:
            raise BundleError(f"{self.name} answers {len(expected)} golden requests with an array of shape {answers.shape}")
        off = np.abs(answers - expected)
        wrong = np.flatnonzero(~(off <= tolerance * np.maximum(1.0, np.abs(expected))))  # not ... <= is true of NaN too
        if wrong.size:
            first = int(wrong[0])
            whose = "" if self.name == "model.onnx" else f"{self.name}: "
            raise BundleError(f"{whose}golden request {first} ({wrong.size} of {len(expected)}): expected {expected[first]}, got {answers[first]}")
        self.seconds = self._measure(instances[0])

    def _measure(self, row: Mapping[str, Any]) -> float:
        """Seconds that one row takes: the best of some."""
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            self.predict([row])
            taken.append(time.perf_counter() - began)
        return min(taken)


def _session(file: Path, contract: Contract, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes, one per way to fail
        raise BundleError(f"{file.name} does not load: {_line(error)}") from error
    wanted = {"numeric": len(contract.numeric)} | ({"categorical": len(contract.categorical)} if contract.categorical else {})
    found = {entry.name: entry for entry in session.get_inputs()}
    if found.keys() != wanted.keys():
        raise BundleError(f"{file.name} takes {', '.join(sorted(found))}; the contract says {', '.join(sorted(wanted))}")
    for name, columns in wanted.items():
        shape, element = found[name].shape, found[name].type
        if element != ELEMENT[name] or len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != columns):
            raise BundleError(f"{file.name}: input '{name}' is {element} {shape}; the contract needs {ELEMENT[name]} [n, {columns}]")
    outputs = [entry.name for entry in session.get_outputs()]
    if "prediction" not in outputs:
        raise BundleError(f"{file.name} gives {', '.join(outputs)}, but no 'prediction'")
    return session


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
