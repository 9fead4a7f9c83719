"""Load a model from its files: the graph, the input contract and the golden requests.

Training makes the files (``include/training/bundle.py``). This package shares only their schema. A
version may also contain the project's baseline rule, a graph with the same inputs. It answers
instances with missing features if the project does not trust the model with them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from serving.models.contract import Contract
from serving.models.graph import Graph
from serving.models.untrusted import DocumentError, parse_object, printable
from serving.models.version_files import (
    CONTRACT,
    DOCUMENT_BYTES,
    FILES,
    GOLDEN,
    GRAPH,
    RULE,
    BundleError,
    FileLimits,
    Files,
    hashes_of,
    read_version,
)

__all__ = ["FILES", "RULE", "Bundle", "BundleError"]
Document = TypeVar("Document", bound=BaseModel)


class Golden(BaseModel):
    """Golden requests with the answers that the model and the baseline rule gave at training time.

    Attributes:
        tolerance: The largest allowed difference of an answer, relative to the answer, or to
            ``scale`` if the answer is smaller.
    """

    model_config = ConfigDict(frozen=True)

    instances: list[dict[str, Any]] = Field(max_length=1000)
    predictions: list[FiniteFloat]
    baseline: list[FiniteFloat] | None = None
    tolerance: float = Field(gt=0, le=1)
    scale: FiniteFloat = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _one_answer_each(self) -> Self:
        for answers in (self.predictions, *([self.baseline] if self.baseline is not None else [])):
            if not self.instances or len(self.instances) != len(answers):
                raise ValueError(
                    f"{len(self.instances)} instances with {len(answers)} predictions: there must be one each, and at"
                    " least one"
                )
        return self


class Bundle:
    """A model that answers its golden requests correctly.

    Raises (from ``load``):
        FileNotFoundError: A file is missing.
        BundleError: A file is invalid, or a golden request gets a different answer.
    """

    def __init__(
        self, contract: Contract, graph: Graph, baseline: Graph | None = None, digests: Mapping[str, str] | None = None
    ) -> None:
        self.contract, self.inputs, self.graph, self.baseline = contract, graph.inputs, graph, baseline
        self.digests = dict(digests or {})  # Hex SHA-256 of every loaded file, by name.

    @classmethod
    def load(cls, folder: Path, *, threads: int = 1, hashes: str = "", limits: FileLimits = FileLimits()) -> "Bundle":
        """Load and test the version in a folder.

        Args:
            hashes: The version's tag ``bundle_sha256``, or an empty string if training did not
                write the tag.
        """
        return cls.from_files(read_version(folder, hashes_of(hashes), limits), threads=threads)

    @classmethod
    def from_files(cls, files: Files, *, threads: int = 1, seconds: float | None = None) -> "Bundle":
        """Load and test the version that ``read_version`` has read.

        Args:
            seconds: Deadline of the golden requests, or None for no deadline.
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
            raise BundleError(
                f"the project's look-up policy answers by its baseline rule, and the version has no {RULE}: train it"
                " again"
            )
        return cls(contract, graph, baseline, files.digests)

    @property
    def seconds(self) -> float:
        """Return the seconds that one row took when the model was warm."""
        return self.graph.seconds

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the model's predictions, float64 [n].

        Each row contains every input of the contract. None or NaN means that the value is missing.
        """
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
