"""A model as data: the graph, the contract that says what goes in, and golden requests with the answers they must get.

Made by training (``include/training/bundle.py``); read here by the schema alone. Beside the model there may be the project's baseline rule, a
graph with the same inputs, for instances of which the look-up lacks something and the project trusts the model with nothing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.contract import Contract
from serving.graph import BundleError, Graph

__all__ = ["FILES", "RULE", "Bundle", "BundleError", "check_hashes"]
FILES = ("model.onnx", "contract.json", "golden.json")
RULE = "baseline.onnx"


class Golden(BaseModel):
    """Requests with the answers that the model, and the baseline rule, gave when they were made."""

    model_config = ConfigDict(frozen=True)

    instances: list[dict[str, Any]]
    predictions: list[float]
    baseline: list[float] | None = None
    tolerance: float = Field(gt=0)

    @model_validator(mode="after")
    def _one_answer_each(self):
        for answers in (self.predictions, *([self.baseline] if self.baseline is not None else [])):
            if not self.instances or len(self.instances) != len(answers):
                raise ValueError(f"{len(self.instances)} instances with {len(answers)} predictions: there must be one each, and at least one")
        return self


class Bundle:
    """A model that answers its golden requests.

    Raises (from ``load``):
        FileNotFoundError: a file is missing.
        BundleError: a file is not what it should be, or a golden request gets another answer.
    """

    def __init__(self, contract: Contract, graph: Graph, baseline: Graph | None = None) -> None:
        self.contract, self.inputs, self.graph, self.baseline = contract, graph.inputs, graph, baseline

    @classmethod
    def load(cls, folder: Path, *, threads: int = 1) -> "Bundle":
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"no model bundle: {', '.join(missing)} missing")
        contract = Contract.model_validate(_json(folder / "contract.json", Contract))
        golden = Golden.model_validate(_json(folder / "golden.json", Golden))
        graph = Graph(folder / "model.onnx", contract, threads)
        graph.check(golden.instances, golden.predictions, golden.tolerance)
        baseline = None
        if (folder / RULE).is_file():
            if golden.baseline is None:
                raise BundleError(f"golden.json has no answers of {RULE}")
            baseline = Graph(folder / RULE, contract, threads)
            baseline.check(golden.instances, golden.baseline, golden.tolerance)
        elif contract.lookup.takes("baseline"):
            raise BundleError(f"the project's look-up policy answers by its baseline rule, and the version has no {RULE}: train it again")
        return cls(contract, graph, baseline)

    @property
    def seconds(self) -> float:
        """What one row took when the model was warm."""
        return self.graph.seconds

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The model's predictions, float64 [n], for rows that hold every input of the contract; None or NaN: missing."""
        return self.graph.predict(rows)


def check_hashes(folder: Path, hashes: str) -> None:
    """Hold a bundle's files to what training wrote of them.

    Args:
        hashes: JSON object, file -> hex of its SHA-256.

    Raises:
        BundleError: a file is another one.
        FileNotFoundError: a file is missing.
    """
    try:
        wanted = {str(name): str(value) for name, value in json.loads(hashes).items()}
    except (ValueError, AttributeError) as error:
        raise BundleError(f"the version's hashes are not JSON ({error})") from error
    files = (*FILES, RULE) if RULE in wanted or (folder / RULE).exists() else FILES
    if unhashed := [name for name in files if name not in wanted]:
        raise BundleError(f"the version has no hash of {', '.join(unhashed)}")
    for name in files:
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted[name]:
            raise BundleError(f"{name} is not the file that was registered: its SHA-256 is another one")


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
