"""Load and run an ONNX graph in Airloop's layout.

The inputs are ``numeric`` [n, k] and ``categorical`` [n, m]. The output is ``prediction`` [n].
"""

import atexit
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime

from serving.models.contract import Contract
from serving.models.inputs import Inputs
from serving.models.onnx_file import OnnxFileError, operators
from serving.models.untrusted import line, printable
from serving.models.version_files import GRAPH, BundleError

# If a row of any golden request takes longer, the graph runs in a thread
# (serving/models/batching.py).
QUICK_SECONDS = 0.002
# Rows of the largest measured run, and the allowed ratio of its time to ``QUICK_SECONDS``.
MEASURED_ROWS, MOST_GROWTH = 256, 4
# CPU time in seconds of a run in the event loop, after which the graph runs in a thread. Its golden
# requests did not show how long it can take.
SLOW_SECONDS = 0.05
log = logging.getLogger(__name__)
_local = threading.local()  # The ``options`` of this thread's runs.
_running: set[onnxruntime.RunOptions] = set()  # The options of limited runs.
ELEMENT = {"numeric": "tensor(float)", "categorical": "tensor(string)"}


class Graph:
    """A loaded graph.

    Args:
        name: The name of its file, for errors.
        content: The file's bytes. ONNX Runtime does not get a path, so a graph cannot reference
            other files.

    Raises:
        BundleError: The graph cannot be loaded, or its inputs differ from the contract.
    """

    def __init__(self, name: str, content: bytes, contract: Contract, threads: int) -> None:
        self.name, self.contract, self.inputs = name, contract, Inputs(contract)
        # Seconds that one row takes when the graph is warm. Infinite if the golden requests are not
        # an upper bound for its run time. Then the graph never runs in the event loop.
        self.seconds = 0.0
        try:
            self._unbounded = not operators(content).bounded
        except OnnxFileError as error:
            raise BundleError(f"{name} {error}") from None
        self._session = _session(name, content, contract, threads)

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the predictions, float64 [n].

        Args:
            rows: n rows with every input of the contract. None or NaN means that a value is
                missing.
        """
        return self.run([self.inputs.numbers(row) for row in rows], [self.inputs.texts(row) for row in rows])

    def run(
        self,
        numbers: Sequence[Sequence[float] | bytes] | np.ndarray,
        texts: Sequence[Sequence[str]] | np.ndarray,
    ) -> np.ndarray:
        """Run the graph.

        Args:
            numbers: Numeric columns [n, k]. Rows may be packed (``Inputs.packed``).
            texts: Categorical columns [n, m].

        Returns:
            Predictions, float64 [n].
        """
        # Convert to float64 first, as in batch scoring, so that a number is rounded once and in the
        # same way.
        if not isinstance(numbers, np.ndarray):
            # Packing takes a fifth of the time that numpy needs to inspect nested lists.
            content = b"".join([row if type(row) is bytes else self.inputs.packed.pack(*row) for row in numbers])
            numbers = np.frombuffer(content, "float64").reshape(len(numbers), len(self.contract.numeric))
        # A number beyond float32 becomes infinite. Requests are checked before this.
        with np.errstate(over="ignore"):
            feeds = {"numeric": numbers.astype("float32")}
        if self.contract.categorical:
            feeds["categorical"] = np.asarray(texts, dtype=object).reshape(len(numbers), len(self.contract.categorical))
        predictions: np.ndarray = self._session.run(["prediction"], feeds, getattr(_local, "options", None))[0].astype(
            "float64"
        )
        return predictions

    def run_in_loop(self, numbers: Sequence[Sequence[float] | bytes], texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Run the graph in the event loop; see ``run``.

        A run that takes far longer than the golden requests is the last one there.
        """
        began = time.thread_time()
        try:
            return self.run(numbers, texts)
        finally:
            if (taken := time.thread_time() - began) > SLOW_SECONDS:
                log.warning(
                    "%s took %.0f ms for %d rows in the event loop: it runs in a thread from now on",
                    self.name,
                    taken * 1e3,
                    len(numbers),
                )
                self.seconds = math.inf

    def check(
        self,
        instances: Sequence[Mapping[str, Any]],
        predictions: Sequence[float],
        tolerance: float,
        seconds: float | None = None,
        *,
        scale: float = 1.0,
    ) -> None:
        """Compare the answers to golden requests, and measure the run time of a row.

        The runs also warm the graph.

        Args:
            tolerance: The largest allowed difference, relative to an answer, or to ``scale`` if the
                answer is smaller.
            seconds: Time after which the runs stop before their next operator, or None for no
                limit.

        Raises:
            BundleError: The graph returns a different answer, or does not return one.
        """
        lacking = sorted({name for instance in instances for name in self.contract.inputs if name not in instance})
        if lacking:
            raise BundleError(f"golden.json: instances lack the inputs {', '.join(lacking)}")
        expected = np.array(predictions)
        try:
            with limited(seconds):
                answers = self.predict(instances)
                slowest = math.inf if self._unbounded else self._measure(instances)
        except Exception as error:
            # After any exception of ONNX Runtime or of the values, this version cannot answer.
            raise BundleError(f"{self.name} does not answer its golden requests: {line(error, 300)}") from error
        if answers.shape != expected.shape:
            raise BundleError(
                f"{self.name} answers {len(expected)} golden requests with an array of shape {answers.shape}"
            )
        off = np.abs(answers - expected)
        # The negated "<=" also covers NaN.
        wrong = np.flatnonzero(~(off <= tolerance * np.maximum(scale, np.abs(expected))))
        if wrong.size:
            first = int(wrong[0])
            whose = "" if self.name == GRAPH else f"{self.name}: "
            raise BundleError(
                f"{whose}golden request {first} ({wrong.size} of {len(expected)}): expected {expected[first]}, got"
                f" {answers[first]}"
            )
        self.seconds = slowest

    def _measure(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """Return the seconds of the slowest row. Each row's time is the best of five."""
        slowest = 0.0
        for row in rows[:20]:
            taken = []
            for _ in range(5):
                began = time.perf_counter()
                self.predict([row])
                taken.append(time.perf_counter() - began)
            slowest = max(slowest, min(taken))
            if slowest > QUICK_SECONDS:
                return slowest
        # As many rows as may run at once in the event loop. A graph can take the square of its
        # rows, or worse.
        many = [
            rows[number % len(rows)] for number in range(min(MEASURED_ROWS, int(QUICK_SECONDS / max(slowest, 1e-9))))
        ]
        if len(many) < 2:
            return slowest
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            self.predict(many)
            taken.append(time.perf_counter() - began)
        return slowest if min(taken) <= MOST_GROWTH * QUICK_SECONDS else math.inf


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Limit the run time of graphs in this thread. None means no limit.

    After ``seconds``, a run raises an error before its next operator.
    """
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
    """Stop all limited runs and wait for their end.

    ONNX Runtime aborts the process if Python exits during a run.
    """
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
    # The memory arena keeps the memory of the largest batch, and grows in steps with batches of
    # different sizes.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime has its own exception classes, one per kind of failure.
        raise BundleError(f"{name} does not load: {line(error, 300)}") from error
    expected = {"numeric": len(contract.numeric)} | (
        {"categorical": len(contract.categorical)} if contract.categorical else {}
    )
    inputs = {entry.name: entry for entry in session.get_inputs()}
    if inputs.keys() != expected.keys():
        raise BundleError(
            printable(f"{name} takes {', '.join(sorted(inputs))}; the contract says {', '.join(sorted(expected))}")
        )
    for tensor, columns in expected.items():
        shape, element = inputs[tensor].shape, inputs[tensor].type
        if element != ELEMENT[tensor] or len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != columns):
            raise BundleError(
                printable(
                    f"{name}: input '{tensor}' is {element} {shape}; the contract needs {ELEMENT[tensor]} [n,"
                    f" {columns}]"
                )
            )
    outputs = [entry.name for entry in session.get_outputs()]
    if "prediction" not in outputs:
        raise BundleError(printable(f"{name} gives {', '.join(outputs)}, but no 'prediction'"))
    return session
