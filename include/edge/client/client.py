"""Predict from an edge bundle: python client.py BUNDLE PUBLIC_KEY < instances.json. Needs onnxruntime (with its numpy) and ed25519.py beside it."""

import base64
import io
import json
import os
import sys
import zipfile
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from ed25519 import verify  # noqa: E402


class BundleRefused(Exception):
    """The bundle is not signed, not whole, signed with another key, or does not answer its golden requests."""


class Model:
    """A bundle whose signature holds and whose golden requests are answered; ``contract`` names the inputs."""

    def __init__(self, bundle, public_key):
        content = Path(bundle).read_bytes()
        if content[-66:-64] != b"\x40\x00":  # the archive's comment is the signature, of 64 bytes
            raise BundleRefused(f"{bundle} is not signed")
        key = base64.b64decode("".join(Path(public_key).read_text().split("-----")[2].split()))[-32:]
        if not verify(key, content[:-64], content[-64:]):
            raise BundleRefused(f"{bundle} is damaged, or not signed with the key of {public_key}")
        with zipfile.ZipFile(io.BytesIO(content)) as files:
            self.contract, golden = json.loads(files.read("contract.json")), json.loads(files.read("golden.json"))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(files.read("model.onnx"), options, providers=["CPUExecutionProvider"])
        off = np.abs(np.array(self.predict(golden["instances"])) - golden["predictions"])
        if not (off <= golden["tolerance"] * np.maximum(golden.get("scale", 1.0), np.abs(golden["predictions"]))).all():
            raise BundleRefused(f"{bundle} answers its golden requests otherwise here (onnxruntime {onnxruntime.__version__})")

    def predict(self, instances):
        """Of objects that hold every input of the contract, null where a value is missing: a float for each."""
        numbers = np.array([[row[name] for name in self.contract["numeric"]] for row in instances], dtype="float64")  # None becomes NaN
        feeds = {"numeric": numbers.reshape(len(instances), -1).astype("float32")}
        if self.contract["categorical"]:
            feeds["categorical"] = np.array([["" if row[n] is None else str(row[n]) for n in self.contract["categorical"]] for row in instances], dtype=object)
        return self._session.run(["prediction"], feeds)[0].astype("float64").tolist()


if __name__ == "__main__":
    print(json.dumps(Model(*sys.argv[1:3]).predict(json.load(sys.stdin))))
