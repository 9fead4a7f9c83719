"""A model as data: the graph, the contract that says what goes in, and golden requests with the answers they must get.

Made by training (``include/training/bundle.py``); read here by the schema alone. Beside the model there may be the project's baseline rule, a
graph with the same inputs, for instances of which the look-up lacks something and the project trusts the model with nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from serving.contract import Contract
from serving.graph import Graph
from serving.untrusted import DocumentError, parse_object, printable
from serving.version_files import CONTRACT, DOCUMENT_BYTES, FILES, GOLDEN, GRAPH, RULE, BundleError, Files, Limits, hashes_of, read_version

__all__ = ["FILES", "RULE", "Bundle", "BundleError"]
Document = TypeVar("Document", bound=BaseModel)


class Golden(BaseModel):
    """Requests with the answers that the model, and the baseline rule, gave when they were made.

    Attributes:
        tolerance: the largest difference of an answer, relative to the answer, or to ``scale`` where the answer is smaller.
    """

    model_config = ConfigDict(frozen=True)

    instances: list[dict[str, Any]] = Field(max_length=1000)
    predictions: list[FiniteFloat]
    baseline: list[FiniteFloat] | None = None
    tolerance: float = Field(gt=0, le=1)
    scale: FiniteFloat = Field(1.0, gt=0)

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

    def __init__(self, contract: Contract, graph: Graph, baseline: Graph | None = None, digests: Mapping[str, str] | None = None) -> None:
        self.contract, self.inputs, self.graph, self.baseline = contract, graph.inputs, graph, baseline
        self.digests = dict(digests or {})  # hex SHA-256 of every file that it was loaded with, by name

    @classmethod
    def load(cls, folder: Path, *, threads: int = 1, hashes: str = "", limits: Limits = Limits()) -> "Bundle":  # noqa: B008 (frozen)
        """Load and test the version in a folder.

        Args:
            hashes: the version's tag ``bundle_sha256``; empty: training wrote none.
        """
        return cls.of(read_version(folder, hashes_of(hashes), limits), threads=threads)

    @classmethod
    def of(cls, files: Files, *, threads: int = 1, seconds: float | None = None) -> "Bundle":
        """Load and test the version that ``read_version`` has read.

        Args:
            seconds: after which the golden requests are ended; None: never.
        """
        contract = _document(files, CONTRACT, Contract)
        golden = _document(files, GOLDEN, Golden)
        graph = Graph(GRAPH, files.contents[GRAPH], contract, threads)
        graph.check(golden.instances, golden.predictions, golden.tolerance, seconds, scale=golden.scale)
        baseline = None
        if RULE in files.contents:
            if golden.baseline is None:
                raise BundleError(f"golden.json has no answers of {RULE}")
            baseline = Graph(RULE, files.contents[RULE], contract, threads)
            baseline.check(golden.instances, golden.baseline, golden.tolerance, seconds, scale=golden.scale)
        elif contract.lookup.takes("baseline"):
            raise BundleError(f"the project's look-up policy answers by its baseline rule, and the version has no {RULE}: train it again")
        return cls(contract, graph, baseline, files.digests)

    @property
    def seconds(self) -> float:
        """What one row took when the model was warm."""
        return self.graph.seconds

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The model's predictions, float64 [n], for rows that hold every input of the contract; None or NaN: missing."""
        return self.graph.predict(rows)


def _document(files: Files, name: str, model: type[Document]) -> Document:
    try:
        return model.model_validate(parse_object(files.contents[name], name, most_bytes=DOCUMENT_BYTES[name]))
    except DocumentError as error:
        raise BundleError(str(error)) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(printable(f"{name}: {where + ': ' if where else ''}{first['msg']}")) from None
