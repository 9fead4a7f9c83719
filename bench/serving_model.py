"""Make the model of the serving benchmark, in the formats of all servers.

It is a HistGradientBoosting model with 32 features.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

FEATURES = tuple(f"f{number}" for number in range(32))
NAME = "bench"


def fit():
    """Return a classifier of a typical size: 100 trees of up to 31 leaves."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    random = np.random.default_rng(0)
    rows = random.normal(size=(20_000, len(FEATURES)))
    labels = (rows[:, 0] + rows[:, 1] * rows[:, 2] + random.normal(scale=0.5, size=len(rows))) > 0
    return HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=0).fit(rows, labels)


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, len(FEATURES))).round(4)


def write_bundle(
    model, folder: Path, *, project: str = NAME, join_keys: tuple[str, ...] = (), looked_up: tuple[str, ...] = ()
) -> None:
    """Write the model in the format in which Airloop's training passes it to serving."""
    import onnx
    from onnx import TensorProto, helper
    from skl2onnx import to_onnx

    converted = to_onnx(
        model,
        np.zeros((1, len(FEATURES)), "float32"),
        options={"zipmap": False},
        target_opset={"": 22, "ai.onnx.ml": 3},
    )
    graph = converted.graph
    probabilities = graph.output[1].name
    # Serving expects Airloop's names of inputs and outputs.
    for node in graph.node:
        for number, name in enumerate(node.input):
            node.input[number] = "numeric" if name == graph.input[0].name else name
    graph.input[0].name = "numeric"
    graph.initializer.extend([helper.make_tensor("one", TensorProto.INT64, [], [1])])
    graph.node.extend([helper.make_node("Gather", [probabilities, "one"], ["prediction"], axis=1)])
    del graph.output[:]
    graph.output.extend([helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"])])
    onnx.checker.check_model(converted)
    rows = samples(20)
    expected = model.predict_proba(rows.astype("float32"))[:, 1]
    contract = {
        "schema": 1,
        "project": project,
        "kind": "binary",
        "feature_service": f"{project}_v1",
        "join_keys": list(join_keys),
        "request_features": [name for name in FEATURES if name not in looked_up],
        "numeric": list(FEATURES),
        "categorical": [],
    }
    instances = [dict(zip(FEATURES, row.tolist(), strict=True)) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(converted.SerializeToString())
    (folder / "contract.json").write_text(json.dumps(contract))
    (folder / "golden.json").write_text(
        json.dumps({"instances": instances, "predictions": expected.tolist(), "tolerance": 1e-4})
    )


def write_cache(model, cache: Path, **parts: Any) -> None:
    """Write a serving cache with the bundle as the last good version.

    The service starts from it without a registry.
    """
    # Serving computes the same name of the folder.
    write_bundle(model, cache / NAME / f"1-{sha256(b'bench').hexdigest()[:12]}", **parts)
    (cache / NAME / "current.json").write_text(json.dumps({"name": NAME, "version": "1", "source": "bench"}))
