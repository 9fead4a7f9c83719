"""Predict with onnxruntime and ed25519.py: python client.py BUNDLE PUBLIC_KEY < instances.json"""

import base64
import io
import json
import os
import sys
import zipfile
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime
from ed25519 import verify


class BundleRefusedError(Exception):
    """Raised when a bundle is damaged, not signed with the key, or fails golden requests."""


class Model:
    """A verified bundle with correct golden answers; ``contract`` names the inputs."""

    def __init__(self, bundle: str | Path, public_key: str | Path) -> None:
        content = Path(bundle).read_bytes()
        if content[-66:-64] != b"\x40\x00":  # the archive's comment is the signature, of 64 bytes
            raise BundleRefusedError(f"{bundle} is not signed")
        key = base64.b64decode("".join(Path(public_key).read_text().split("-----")[2].split()))[-32:]
        if not verify(key, content[:-64], content[-64:]):
            raise BundleRefusedError(f"{bundle} is damaged, or not signed with the key of {public_key}")
        with zipfile.ZipFile(io.BytesIO(content)) as files:
            self.contract, golden = json.loads(files.read("contract.json")), json.loads(files.read("golden.json"))
            graph, cpu = files.read("model.onnx"), ["CPUExecutionProvider"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=cpu)
        answers = np.array(self.predict(golden["instances"]))
        allowed = golden["tolerance"] * np.maximum(golden.get("scale", 1.0), np.abs(answers))
        if not (np.abs(answers - golden["predictions"]) <= allowed).all():
            raise BundleRefusedError(f"{bundle} answers differently with onnxruntime {onnxruntime.__version__}")

    def predict(self, instances: list[dict[str, object]]) -> list[float]:
        """Return a float for each instance (every input of the contract; null if missing)."""
        numeric, texts = self.contract["numeric"], self.contract["categorical"]
        numbers = np.array([[row[name] for name in numeric] for row in instances], dtype="float64")  # None becomes NaN
        feeds = {"numeric": numbers.reshape(len(instances), -1).astype("float32")}
        if texts:
            words = [["" if row[name] is None else str(row[name]) for name in texts] for row in instances]
            feeds["categorical"] = np.array(words, dtype=object)
        return list(self._session.run(["prediction"], feeds)[0].astype("float64").tolist())


if __name__ == "__main__":
    print(json.dumps(Model(*sys.argv[1:3]).predict(json.load(sys.stdin))))
