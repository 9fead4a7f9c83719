"""Predictions of a model's graph (the layout is that of ``include.training.onnx``).

It needs only onnxruntime, because Airflow's image has neither onnx nor torch.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime


def session(graph: bytes, threads: int = 1) -> "onnxruntime.InferenceSession":
    """Return an onnxruntime session on the CPU with that many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def predict(running: "onnxruntime.InferenceSession", numeric: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    """Return predictions float32 [n] of a session for numeric [n, Fn] and categorical [n, Fc]."""
    feeds = {"numeric": numeric.astype("float32", copy=False)}
    if categorical.shape[1]:
        feeds["categorical"] = categorical.astype(object, copy=False)
    predictions: np.ndarray = running.run(["prediction"], feeds)[0]
    return predictions
