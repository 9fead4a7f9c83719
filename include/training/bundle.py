"""The model bundle: all files that serving, scoring and monitoring need of a model.

- ``model.onnx``: the graph.
- ``contract.json``: the input columns, their order, and the policy for incomplete look-ups.
- ``golden.json``: golden requests with the expected answers.
- ``reference.parquet``: rows that the judged model was not fitted on, with its predictions. Drift
  is measured against them.

A model version also has ``baseline.onnx``, the baseline rule that was judged on the same rows.
Serving may answer with it.
"""

import io
import json
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from upath import UPath

from include.data import storage
from include.projects.base import Project
from include.training.inference import predict, session
from include.training.inputs import matrices
from include.training.scale import scale_of

if TYPE_CHECKING:
    import onnxruntime

FILES = ("model.onnx", "contract.json", "golden.json", "reference.parquet")
RULE = "baseline.onnx"
GOLDEN, GOLDEN_TOLERANCE = 20, 1e-5
REFERENCE = 5000


class GoldenMismatchError(ValueError):
    """Raised when the answers to the golden requests differ from the recorded ones."""


@dataclass(frozen=True)
class Bundle:
    """A model as data."""

    graph: bytes
    contract: dict[str, Any]
    golden: dict[str, Any]
    reference_bytes: bytes
    rule: bytes | None = None  # the graph of the baseline rule

    @classmethod
    def load(cls, folder: str | Path | UPath) -> "Bundle":
        """Load a bundle from a folder.

        ``include.registry.versions.bundle`` returns the folder of a model version.
        """
        graph, contract, golden, reference = ((storage.path(folder) / name).read_bytes() for name in FILES)
        rule = storage.path(folder) / RULE
        return cls(
            graph, json.loads(contract), json.loads(golden), reference, rule.read_bytes() if rule.exists() else None
        )

    def with_rule(self, rule: "Bundle") -> "Bundle":
        """Return this model with a baseline rule.

        The rule's answers to the golden requests are added to ``golden.json``.
        """
        instances = self.golden["instances"]
        answers = [float(p) for p in rule.predict(_instances(instances, self.contract))] if instances else []
        return replace(self, rule=rule.graph, golden={**self.golden, "baseline": answers})

    def save(self, folder: str | UPath) -> None:
        target = storage.path(folder)
        for name, content in self._contents().items():
            storage.write(target / name, content)

    def hashes(self) -> dict[str, str]:
        """Return file -> SHA-256 (hex) of the bytes that ``save`` writes.

        The hashes become a tag of the version. Serving verifies the files that it loads against it.
        """
        return {name: sha256(content).hexdigest() for name, content in self._contents().items()}

    def _contents(self) -> dict[str, bytes]:
        files = dict(
            zip(FILES, (self.graph, _json(self.contract), _json(self.golden), self.reference_bytes), strict=True)
        )
        return files if self.rule is None else files | {RULE: self.rule}

    @cached_property
    def _session(self) -> "onnxruntime.InferenceSession":
        return session(self.graph)

    @property
    def input_columns(self) -> list[str]:
        return [*self.contract["numeric"], *self.contract["categorical"]]

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        """Return predictions float64 [n] for rows with the input columns.

        Raises:
            KeyError: an input column is missing.
        """
        numeric, categorical = matrices(rows, self.contract["numeric"], self.contract["categorical"])
        return predict(self._session, numeric, categorical).astype("float64")

    def predict_by_rule(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the baseline rule's predictions float64 [n] for the same rows.

        Raises:
            ValueError: the version was made before versions included their rule.
        """
        if self.rule is None:
            raise ValueError(
                f"the project's look-up policy answers by its baseline rule, and the version has no {RULE}: train it"
                " again"
            )
        return replace(self, graph=self.rule, rule=None).predict(rows)

    def reference(self) -> pd.DataFrame:
        """Return at most 5000 rows that the judged model was not fitted on.

        The columns are the input columns, ``prediction``, ``label`` and ``event_timestamp``.
        """
        return pd.read_parquet(io.BytesIO(self.reference_bytes))

    def golden_tensors(self) -> dict[str, np.ndarray]:
        """Return the golden requests as the graph's inputs."""
        numeric, categorical = matrices(
            _instances(self.golden["instances"], self.contract), self.contract["numeric"], self.contract["categorical"]
        )
        return {"numeric": numeric, **({"categorical": categorical.astype(str)} if categorical.shape[1] else {})}

    def check_golden(self) -> float:
        """Compute the answers to the golden requests again. Return the largest difference.

        Raises:
            GoldenMismatchError: an answer differs by more than the tolerance, or is not a number.
        """
        answers = self.predict(_instances(self.golden["instances"], self.contract))
        off = np.abs(answers - np.asarray(self.golden["predictions"], dtype="float64"))
        allowed = self.golden["tolerance"] * np.maximum(self.golden.get("scale", 1.0), np.abs(answers))
        if not (off <= allowed).all():  # also true of NaN
            worst = int(np.nanargmax(off)) if not np.isnan(off).all() else 0
            raise GoldenMismatchError(
                f"golden request {worst}: expected {self.golden['predictions'][worst]}, got {answers[worst]}"
            )
        return float(off.max(initial=0.0))


def contract_of(project: Project) -> dict[str, Any]:
    return {
        "schema": 1,
        "project": project.name,
        "kind": project.kind.value,
        "feature_service": project.feature_service,
        "join_keys": list(project.entities),
        "request_features": list(project.request_features),
        "numeric": list(project.inputs.numeric),
        "categorical": list(project.inputs.categorical),
        "lookup": project.lookup.model_dump(),
    }


def make_bundle(project: Project, graph: bytes, rows: pd.DataFrame, reference: pd.DataFrame | None = None) -> Bundle:
    """Return the bundle of a graph.

    Args:
        rows: rows with outcomes that the judged model was not fitted on. Golden requests and the
            reference are samples of them.
        reference: use this reference instead. A model that was refitted on those rows gets the
            judged model's reference.
    """
    contract = contract_of(project)
    bare = Bundle(graph, contract, {}, b"")
    sample = rows.sample(min(REFERENCE, len(rows)), random_state=0).sort_values("event_timestamp", kind="stable")
    if reference is None:
        reference = sample[[*bare.input_columns, "label", "event_timestamp"]].assign(prediction=bare.predict(sample))
    instances = _golden_instances(sample, bare.input_columns)
    predictions = bare.predict(_instances(instances, contract)) if instances else np.empty(0)
    golden = {
        "instances": instances,
        "predictions": [float(p) for p in predictions],
        "tolerance": GOLDEN_TOLERANCE,
        "scale": scale_of(project.kind, predictions),
    }
    buffer = io.BytesIO()
    reference.to_parquet(buffer, index=False, coerce_timestamps="us", allow_truncated_timestamps=True)
    return Bundle(graph, contract, golden, buffer.getvalue())


def _golden_instances(rows: pd.DataFrame, columns: list[str]) -> list[dict[str, Any]]:
    """Return rows spread over time, including those with the most missing values.

    Exports most often fail on missing values.
    """
    if rows.empty:
        return []
    spread = np.linspace(0, len(rows) - 1, min(GOLDEN - 4, len(rows))).astype(int)
    sparse = np.argsort(-rows[columns].isna().sum(axis=1).to_numpy(), kind="stable")[:4]
    chosen = rows.iloc[sorted({*spread.tolist(), *sparse.tolist()})][columns]
    return [
        {str(c): None if pd.isna(v) else v.item() if isinstance(v, np.generic) else v for c, v in row.items()}
        for row in chosen.to_dict("records")
    ]


def _instances(instances: list[dict[str, Any]], contract: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame(instances, columns=[*contract["numeric"], *contract["categorical"]])
    return frame.astype(dict.fromkeys(contract["numeric"], "float64"))


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()
