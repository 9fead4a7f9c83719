"""An ONNX graph in the house's layout, ready to answer: ``numeric`` [n, k] and ``categorical`` [n, m] go in, ``prediction`` [n] comes out."""

import atexit
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime

from serving.contract import Contract
from serving.inputs import Inputs
from serving.onnx_file import UNBOUNDED, OnnxFileError, operators
from serving.untrusted import line, printable
from serving.version_files import GRAPH, BundleError

# A row that takes longer in any of the golden requests decides that the graph runs in a thread (serving/batching.py).
QUICK_SECONDS = 0.002
_local = threading.local()  # ``options`` of the runs of this thread
_running: set[onnxruntime.RunOptions] = set()  # of limited runs
ELEMENT = {"numeric": "tensor(float)", "categorical": "tensor(string)"}


class Graph:
    """A loaded graph.

    Args:
        name: name of its file, for errors.
        content: the file's bytes. ONNX Runtime gets no path, so a graph can name no other file.

    Raises:
        BundleError: it does not load, or does not take what the contract says.
    """

    def __init__(self, name: str, content: bytes, contract: Contract, threads: int) -> None:
        self.name, self.contract, self.inputs = name, contract, Inputs(contract)
        # Seconds that one row takes when the graph is warm. Infinite: the golden requests do not bound it, so it never runs in the event loop.
        self.seconds = 0.0
        try:
            self._unbounded = bool(operators(content) & UNBOUNDED)
        except OnnxFileError as error:
            raise BundleError(f"{name} {error}") from None
        self._session = _session(name, content, contract, threads)

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Predictions float64 [n].

        Args:
            rows: n rows, each holding every input of the contract; None or NaN: missing.
        """
        return self.run([self.inputs.numbers(row) for row in rows], [self.inputs.texts(row) for row in rows])

    def run(
        self,
        numbers: Sequence[Sequence[float] | bytes] | np.ndarray,
        texts: Sequence[Sequence[str]] | np.ndarray,
    ) -> np.ndarray:
        """Run the graph.

        Args:
            numbers: numeric columns [n, k]; rows may be packed (``Inputs.packed``).
            texts: categorical columns [n, m].

        Returns:
            Predictions, float64 [n].
        """
        # Floats of 64 bits first, as in the batch, so that a number is rounded once and the same way.
        if not isinstance(numbers, np.ndarray):
            # Packed in a fifth of the time that an array takes to find out what is in lists.
            content = b"".join([row if type(row) is bytes else self.inputs.packed.pack(*row) for row in numbers])
            numbers = np.frombuffer(content, "float64").reshape(len(numbers), len(self.contract.numeric))
        with np.errstate(over="ignore"):  # a number that is too great for 32 bits becomes infinite; requests are checked before
            feeds = {"numeric": numbers.astype("float32")}
        if self.contract.categorical:
            feeds["categorical"] = np.asarray(texts, dtype=object).reshape(len(numbers), len(self.contract.categorical))
        return self._session.run(["prediction"], feeds, getattr(_local, "options", None))[0].astype("float64")

    def check(
        self, instances: Sequence[Mapping[str, Any]], predictions: Sequence[float], tolerance: float, seconds: float | None = None, *, scale: float = 1.0
    ) -> None:
        """Answer golden requests, which also warms it, and measure what a row takes.

        Args:
            tolerance: the largest difference, relative to an answer, or to ``scale`` where the answer is smaller.
            seconds: after which the runs are ended, before their next operator; None: never.

        Raises:
            BundleError: an answer is another one, or none.
        """
        lacking = sorted({name for instance in instances for name in self.contract.inputs if name not in instance})
        if lacking:
            raise BundleError(f"golden.json: instances lack the inputs {', '.join(lacking)}")
        expected = np.array(predictions)
        try:
            with limited(seconds):
                answers = self.predict(instances)
                slowest = math.inf if self._unbounded else self._measure(instances)
        except Exception as error:  # whatever ONNX Runtime or the values raise, this version cannot answer
            raise BundleError(f"{self.name} does not answer its golden requests: {line(error, 300)}") from error
        if answers.shape != expected.shape:
            raise BundleError(f"{self.name} answers {len(expected)} golden requests with an array of shape {answers.shape}")
        off = np.abs(answers - expected)
        wrong = np.flatnonzero(~(off <= tolerance * np.maximum(scale, np.abs(expected))))  # not ... <= is true of NaN too
        if wrong.size:
            first = int(wrong[0])
            whose = "" if self.name == GRAPH else f"{self.name}: "
            raise BundleError(f"{whose}golden request {first} ({wrong.size} of {len(expected)}): expected {expected[first]}, got {answers[first]}")
        self.seconds = slowest

    def _measure(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """Seconds that the slowest of some rows takes: of each the best of five."""
        slowest = 0.0
        for row in rows[:20]:
            taken = []
            for _ in range(5):
                began = time.perf_counter()
                self.predict([row])
                taken.append(time.perf_counter() - began)
            slowest = max(slowest, min(taken))
            if slowest > QUICK_SECONDS:
                break
        return slowest


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """End this thread's runs of graphs after so many seconds, before their next operator; they raise an error then. None: never."""
    if seconds is None:
        yield
        return
    options = _local.options = onnxruntime.RunOptions()
    _running.add(options)
    timer = threading.Timer(seconds, _terminate, (options,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _local.options = None
        _running.discard(options)


@atexit.register
def end_runs(seconds: float = 2.0) -> None:
    """End all limited runs, and wait for that: ONNX Runtime aborts the process when Python ends under a run."""
    end = time.monotonic() + seconds
    for options in tuple(_running):
        _terminate(options)
    while _running and time.monotonic() < end:
        time.sleep(0.005)


def _terminate(options: onnxruntime.RunOptions) -> None:
    options.terminate = True


def _session(name: str, content: bytes, contract: Contract, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Its arena keeps what the largest batch took, and grows in steps with batches of different sizes.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes, one per way to fail
        raise BundleError(f"{name} does not load: {line(error, 300)}") from error
    wanted = {"numeric": len(contract.numeric)} | ({"categorical": len(contract.categorical)} if contract.categorical else {})
    found = {entry.name: entry for entry in session.get_inputs()}
    if found.keys() != wanted.keys():
        raise BundleError(printable(f"{name} takes {', '.join(sorted(found))}; the contract says {', '.join(sorted(wanted))}"))
    for tensor, columns in wanted.items():
        shape, element = found[tensor].shape, found[tensor].type
        if element != ELEMENT[tensor] or len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != columns):
            raise BundleError(printable(f"{name}: input '{tensor}' is {element} {shape}; the contract needs {ELEMENT[tensor]} [n, {columns}]"))
    outputs = [entry.name for entry in session.get_outputs()]
    if "prediction" not in outputs:
        raise BundleError(printable(f"{name} gives {', '.join(outputs)}, but no 'prediction'"))
    return session
