"""A small multi-layer perceptron in torch.

Its inputs are standardised numbers, flags for missing ones, and one-hot categories.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch

from include.projects.base import Inputs, TaskKind
from include.training.onnx import Graph
from include.training.trainers.base import SEED, category_codes, known_categories
from include.training.trainers.torch_loop import BatchDropout, train_network
from include.training.workers import FitRun

# Standard deviations. A broken sensor must not dominate the network.
FARTHEST = 8.0


@dataclass
class Preparation:
    """The conversion of rows to the network's input, learned only from the rows of the fit."""

    mean: np.ndarray
    scale: np.ndarray
    flagged: np.ndarray  # columns that had missing values
    categories: list[list[str]]

    @classmethod
    def from_columns(cls, numeric: np.ndarray, categorical: np.ndarray) -> "Preparation":
        missing = np.isnan(numeric)
        empty = missing.all(axis=0)
        known = np.where(empty, 0.0, numeric)  # a column that is always missing counts as zeros
        mean, scale = np.nanmean(known, axis=0, dtype="float64"), np.nanstd(known, axis=0, dtype="float64")
        scale = np.where(scale > 1e-9, scale, 1.0)
        flagged = np.flatnonzero(missing.any(axis=0))
        return cls(mean.astype("float32"), scale.astype("float32"), flagged, known_categories(categorical))

    def __call__(self, numeric: np.ndarray, categorical: np.ndarray) -> torch.Tensor:
        missing = np.isnan(numeric)
        standard = np.clip(np.where(missing, 0.0, (numeric - self.mean) / self.scale), -FARTHEST, FARTHEST)
        codes = category_codes(categorical, self.categories)
        one_hot = [codes[:, [i]] == np.arange(len(known)) for i, known in enumerate(self.categories)]
        return torch.from_numpy(np.hstack([standard, missing[:, self.flagged], *one_hot]).astype("float32"))

    def to_onnx(self, graph: Graph) -> str:
        missing = graph.add("IsNaN", "numeric")
        standard = graph.add("Div", graph.add("Sub", "numeric", graph.constant(self.mean)), graph.constant(self.scale))
        filled = graph.add("Where", missing, graph.constant(0.0), standard)
        parts = [graph.add("Clip", filled, graph.constant(-FARTHEST), graph.constant(FARTHEST))]
        if len(self.flagged):
            flags = graph.add("Gather", missing, graph.constant(self.flagged, "int64"), axis=1)
            parts.append(graph.add("Cast", flags, to=onnx.TensorProto.FLOAT))
        for i, known in enumerate(self.categories):
            if known:
                same = graph.add("Equal", graph.category_codes(i, known), graph.constant(np.arange(len(known))))
                parts.append(graph.add("Cast", same, to=onnx.TensorProto.FLOAT))
        return graph.add("Concat", *parts, axis=1)


@dataclass
class Mlp:
    """The fitted network.

    It is exported node by node, because torch's own exporter needs onnxscript, and three layers do
    not.
    """

    kind: TaskKind
    prepare: Preparation
    layers: torch.nn.Sequential
    label_mean: float
    label_scale: float
    width: int
    history: dict[str, list[float]] = field(default_factory=dict)

    @torch.no_grad()
    def predict(self, numeric: np.ndarray, categorical: np.ndarray) -> np.ndarray:
        raw = self.layers(self.prepare(numeric, categorical)).squeeze(1)
        scaled = torch.sigmoid(raw) if self.kind == TaskKind.BINARY else raw * self.label_scale + self.label_mean
        predictions: np.ndarray = scaled.numpy()
        return predictions

    def to_onnx(self) -> onnx.ModelProto:
        graph = Graph(self.width, len(self.prepare.categories))
        out = self.prepare.to_onnx(graph)
        for layer in self.layers:
            if isinstance(layer, torch.nn.Linear):
                weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
                out = graph.add("Gemm", out, graph.constant(weight), graph.constant(bias), transB=1)
            elif isinstance(layer, torch.nn.ReLU):
                out = graph.add("Relu", out)
        if self.kind == TaskKind.BINARY:
            return graph.model(graph.add("Sigmoid", out))
        scaled = graph.add("Mul", out, graph.constant(self.label_scale))
        return graph.model(graph.add("Add", scaled, graph.constant(self.label_mean)))


def fit(
    kind: TaskKind,
    inputs: Inputs,
    rule: str,
    numeric: np.ndarray,
    categorical: np.ndarray,
    label: np.ndarray,
    parameters: dict[str, Any],
    run: FitRun,
) -> Mlp:
    """Fit a candidate; see ``fit_mlp`` for its parameters."""
    return fit_mlp(kind, numeric, categorical, label, run=run, **parameters)


def fit_mlp(
    kind: TaskKind,
    numeric: np.ndarray,
    categorical: np.ndarray,
    label: np.ndarray,
    *,
    hidden: int = 64,
    epochs: int = 4,
    learning_rate: float = 0.002,
    batch_size: int = 2048,
    dropout: float = 0.1,
    weight_decay: float = 1e-4,
    run: FitRun | None = None,
) -> Mlp:
    """Fit two hidden layers with AdamW and a one-cycle learning rate.

    The loss is cross entropy for binary tasks and squared error for regression.

    Args:
        numeric: float32 [n, Fn], NaN for missing.
        categorical: strings [n, Fc].
        label: [n].
        run: the workers, the device and the checkpoints. By default one worker on the CPU without
            checkpoints.
    """
    run = run or FitRun()
    torch.manual_seed(SEED)
    # One thread is not slower for such a small network, and sums are the same on every machine.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    prepare = Preparation.from_columns(numeric, categorical)
    rows = prepare(numeric, categorical)
    binary = kind == TaskKind.BINARY
    label_mean, label_scale = (0.0, 1.0) if binary else (float(np.mean(label)), float(np.std(label)) or 1.0)
    target = torch.from_numpy(((label - label_mean) / label_scale).astype("float32")).unsqueeze(1)

    layers = torch.nn.Sequential(
        torch.nn.Linear(rows.shape[1], hidden), torch.nn.ReLU(), BatchDropout(dropout),
        torch.nn.Linear(hidden, hidden // 2), torch.nn.ReLU(), torch.nn.Linear(hidden // 2, 1),
    ).to(run.device)  # fmt: skip
    loss_of = torch.nn.BCEWithLogitsLoss(reduction="sum") if binary else torch.nn.MSELoss(reduction="sum")
    optimizer = torch.optim.AdamW(layers.parameters(), lr=learning_rate, weight_decay=weight_decay)
    steps = -(-len(rows) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, epochs=epochs, steps_per_epoch=steps
    )
    curve = train_network(
        layers, rows, target, loss_of=loss_of, optimizer=optimizer, schedule=schedule,
        epochs=epochs, batch_size=batch_size, run=run,
    )  # fmt: skip
    history = {"training_loss": curve}
    return Mlp(kind, prepare, layers.cpu().eval(), label_mean, label_scale, numeric.shape[1], history)
