"""Predictions of a model's graph (the layout is that of ``include.training.onnx``). It needs onnxruntime alone: Airflow's image has neither onnx nor torch."""

import numpy as np


def session(graph: bytes, threads: int = 1):
    """An onnxruntime session on the CPU with that many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def predict(running, numeric: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    """Predictions float32 [n] of a session for numeric [n, Fn] and categorical [n, Fc]."""
    feeds = {"numeric": numeric.astype("float32", copy=False)}
    if categorical.shape[1]:
        feeds["categorical"] = categorical.astype(object, copy=False)
    return running.run(["prediction"], feeds)[0]
