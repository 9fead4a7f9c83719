"""The definition of a project as frozen data: owner, goal, task, metric, sources and policies.

A project is one folder of ``include/projects`` or of a path in AIRLOOP_PROJECTS. Its folder
contains

* ``__init__.py``: ``project = Project(...)``. Imported at every DAG parse, so it must be fast.
* ``expectations.py``: the expectations of each source and of each feature view.
* ``features.py``: the features and the examples, as pure functions bounded by time.
* ``feast.py``: the entities, views and service that Feast registers for these features.
* ``feed.py``: makes sample files, which ``include.data.feed`` writes to the landing zone.

The last four are imported inside tasks only (``project.module("features")``).
"""

from datetime import timedelta
from enum import StrEnum
from importlib import import_module
from types import ModuleType
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from include.projects.compute import ComputeClass
from include.projects.feedback import KEY as PREDICTION
from include.projects.lookup import LookupPolicy
from include.projects.rollout import RolloutPolicy
from include.projects.source import DType as DType
from include.projects.source import FrozenModel, Name
from include.projects.source import Reference as Reference
from include.projects.source import Source as Source

# Minimum number of rows when a stage only runs on a sample.
SAMPLE_ROWS = 50
# Every project has a DAG <project>__<stage> for each.
STAGES = ("ingest", "build_features", "train", "deploy", "score", "monitor")


class TaskKind(StrEnum):
    """The kind of prediction: a probability (binary) or a number (regression)."""

    BINARY = "binary"
    REGRESSION = "regression"


class Metric(FrozenModel):
    """The metric by which models are compared. Names are those of ``include.training.metrics``."""

    name: str
    higher_is_better: bool


class Range(FrozenModel):
    """Numbers from ``low`` to ``high``, inclusive.

    ``whole`` allows only whole numbers. ``log`` samples on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @model_validator(mode="after")
    def _holds_numbers(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"a range from {self.low:g} to {self.high:g} is empty, so there is nothing to choose from")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0, not at {self.low:g}")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(
                f"a range of whole numbers must begin and end with one, not with {self.low:g} and {self.high:g}"
            )
        return self


class Choices(FrozenModel):
    """A set of unordered values to choose from."""

    options: tuple[float | int | str | bool | None, ...] = Field(min_length=2)


class Search(FrozenModel):
    """A search for a candidate's parameters before its fit.

    Optuna proposes trials. Each is fitted and judged on a part of the rows to fit. The rows on
    which candidates are judged are not used. See ``include.training.search``.
    """

    trials: int = Field(
        20, ge=1, le=1000, description="Number of trials. The first one tries the candidate's own parameters."
    )
    space: dict[Name, Range | Choices] = Field(
        min_length=1, description="Parameter -> values to try. All other parameters keep the candidate's values."
    )
    at_once: int | None = Field(
        None,
        ge=1,
        description=(
            "Maximum number of concurrent trials of one run. Default: one per slot of the pool. With fewer, each trial"
            " learns from more results."
        ),
    )
    holdout: timedelta | None = Field(
        None,
        description=(
            "Time span of the newest rows to fit. Trials are judged on these rows. Default: the gate's holdout."
        ),
    )
    seed: int = Field(0, ge=0, description="Seed of the sampler.")


class Candidate(FrozenModel):
    """A model that training fits.

    ``trainer`` is a key of ``include.training.trainers.TRAINERS``.
    """

    name: Name
    trainer: Name
    parameters: dict[str, float | int | str | bool | None] = {}
    compute: Name = Field("cpu", description="Compute class of its fits, one of Project.compute.")
    workers: int = Field(
        1,
        ge=1,
        description=(
            "Number of processes (on a cluster: pods) that fit it together. Each one computes its slice of every batch."
        ),
    )
    search: Search | None = Field(
        None, description="Search for better parameters before the fit. Each request repeats the search."
    )


class Inputs(FrozenModel):
    """A model's inputs, in this order: numbers (missing allowed) and categories (strings)."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...] = ()


class GatePolicy(FrozenModel):
    """When a challenger may replace the champion.

    The gate is armed by default; see ``include.registry.gate``.
    """

    min_rows: int = Field(
        1000, ge=1, description="Minimum number of judged rows. With fewer new labels, the gate refuses the challenger."
    )
    floor: float | None = Field(
        None, description="Bound of the metric: it must be at least this, or at most this if lower is better."
    )
    min_improvement: float = Field(0.0, description="Minimum improvement of the challenger over the champion.")
    beat_baseline_by: float = Field(
        0.0, description="Minimum improvement of the challenger over the rule-based baseline."
    )
    holdout: timedelta = Field(
        timedelta(days=28), description="Time span of the newest examples, which are excluded from the judged fit."
    )


class RetrainPolicy(FrozenModel):
    """When to request a retraining; see ``include.monitoring.controller``."""

    schedule: str | None = Field(
        None, description="Cron expression (UTC) for periodic requests. Without it, no periodic requests are made."
    )
    window: timedelta = Field(
        timedelta(days=28), description="Time span of the newest labels, which are compared with the reference."
    )
    min_labels: int = Field(
        1000, ge=1, description="Minimum number of labels in the window. With fewer, the champion's state is unknown."
    )
    max_metric_loss: float | None = Field(
        None, description="Make a request if the loss of the metric since training is significantly more than this."
    )
    max_bias: float | None = Field(
        None, description="Make a request if mean prediction minus mean outcome is significantly outside +-this."
    )
    max_drifted_share: float | None = Field(
        None,
        description=(
            "Make a request if more than this share of the input columns drifted. Off by default, because inputs drift"
            " every season."
        ),
    )
    max_age: timedelta | None = Field(
        None, description="Make a request if a healthy champion was trained this long ago, at most once in this time."
    )
    cooldown: timedelta = Field(timedelta(days=14), description="Minimum time between two requests.")


class Project(FrozenModel):
    """One prediction problem. All code outside its folder is driven by this."""

    name: Name
    owner: str
    email: str
    goal: str = Field(description="Business goal: the improvement, and who benefits.")
    success: str = Field(description="How success is measured.")
    kind: TaskKind
    metric: Metric
    entities: tuple[str, ...] = Field(description="Join keys of Feast, as columns of the examples.")
    feature_views: tuple[Name, ...] = Field(description="Feature views of the project's feast.py.")
    service_version: int = 1
    request_features: tuple[str, ...] = Field(description="Inputs that the request contains, instead of Feast.")
    example_key: tuple[str, ...] = Field(description="Columns that identify one prediction target.")
    inputs: Inputs
    baseline_rule: str = Field(description="Single input column that the rule-based baseline uses.")
    sources: tuple[Source, ...]
    label_source: Name = Field(description="Source whose rows contain the outcomes.")
    candidates: tuple[Candidate, ...]
    gate: GatePolicy = GatePolicy()
    lookup: LookupPolicy = LookupPolicy()
    refit: bool = Field(
        True,
        description=(
            "Refit the best candidate on all rows known by the cutoff, and deploy the refit instead of the judged fit."
        ),
    )
    retrain: RetrainPolicy = RetrainPolicy()
    rollout: RolloutPolicy = Field(
        RolloutPolicy(), description="How a version that passed the gate takes over all traffic. Default: direct."
    )
    compute: dict[Name, ComputeClass] = Field(
        {},
        description=(
            "Compute classes of the training steps, by name (cpu, gpu_<class>). A class named cpu always exists."
        ),
    )
    ingest_schedule: str | None = "0 4 * * *"
    monitor_schedule: str | None = "0 6 * * *"
    serving_sample: int = Field(
        25, ge=1, description="Number of upcoming predictions that the demo and tests request from serving."
    )

    @field_validator("candidates")
    @classmethod
    def _has_candidates(cls, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        if not candidates:
            raise ValueError("a project needs at least one candidate to train")
        return candidates

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [s.name for s in self.sources]
        for wanted in (self.label_source, *(s.references.source for s in self.sources if s.references)):
            if wanted not in names:
                raise ValueError(f"project '{self.name}' names source '{wanted}'; its sources are {names}")
        if self.baseline_rule not in self.inputs.numeric:
            raise ValueError(
                f"project '{self.name}': baseline_rule '{self.baseline_rule}' is not one of inputs.numeric"
            )
        for view in self.lookup.views:
            if view not in self.feature_views:
                raise ValueError(
                    f"project '{self.name}': lookup.views names '{view}'; its feature_views are"
                    f" {', '.join(self.feature_views)}"
                )
        for feature, value in self.lookup.defaults.items():
            if feature not in self.input_columns or feature in (*self.request_features, *self.entities):
                raise ValueError(
                    f"project '{self.name}': lookup.defaults names '{feature}', which is not an input that is looked up"
                )
            if value is not None and isinstance(value, str) != (feature in self.inputs.categorical):
                raise ValueError(
                    f"project '{self.name}': lookup.defaults: '{feature}' must be"
                    f" {'a text' if not isinstance(value, str) else 'a number'} or None"
                )
        labels = self.rollout.analysis.labels
        if labels and not (
            labels.source in names
            and "label" in self.source(labels.source).columns
            and self.source(labels.source).key == PREDICTION
        ):
            raise ValueError(
                f"project '{self.name}': rollout labels come from source '{labels.source}', which is not a source with"
                " the column label and the key prediction_id, such as Source.feedback()"
            )
        for candidate in self.candidates:
            if candidate.compute not in self.compute_classes:
                raise ValueError(f"candidate '{candidate.name}': {self._no_such_class(candidate.compute)}")
        return self

    @property
    def compute_classes(self) -> dict[str, ComputeClass]:
        """Return all compute classes, including ``cpu``."""
        return {"cpu": ComputeClass(), **self.compute}

    def compute_class(self, name: str) -> ComputeClass:
        """Return the compute class of that name.

        Raises:
            ValueError: the project does not have it. The message lists its classes.
        """
        if name not in self.compute_classes:
            raise ValueError(self._no_such_class(name))
        return self.compute_classes[name]

    def _no_such_class(self, name: str) -> str:
        return (
            f"project '{self.name}' has no compute class '{name}'; it has {', '.join(self.compute_classes)}: add it to"
            " Project.compute"
        )

    def workers(self, compute: str) -> int:
        """Return the largest number of workers of the candidates in this compute class.

        A task has a fixed number of pool slots, whatever candidate it is mapped to. So a fit with
        fewer workers holds slots that it does not use. A fit with more workers than slots would
        share its GPUs with another step.
        """
        return max((c.workers for c in self.candidates if c.compute == compute), default=1)

    @property
    def feature_service(self) -> str:
        return f"{self.name}_v{self.service_version}"

    @property
    def input_columns(self) -> tuple[str, ...]:
        return (*self.inputs.numeric, *self.inputs.categorical)

    @property
    def refitting(self) -> tuple[Name, ...]:
        """Return the compute classes in which the best candidate may be refitted.

        These are the candidates' classes: ``cpu`` first, then sorted.
        """
        return tuple(sorted({c.compute for c in self.candidates}, key=lambda name: (name != "cpu", name)))

    @property
    def fitting(self) -> tuple[Name, ...]:
        """Return the compute classes in which candidates are fitted.

        ``cpu`` is first and always included, because of the baseline rule. The others are sorted.
        """
        return ("cpu", *(name for name in self.refitting if name != "cpu"))

    @property
    def searching(self) -> tuple[Name, ...]:
        """Return the compute classes in which trials of a search run, sorted."""
        return tuple(sorted({c.compute for c in self.candidates if c.search}))

    @property
    def trials_at_once(self) -> int | None:
        """Return the smallest limit that a search of this project sets, or None if none is set."""
        return min((c.search.at_once for c in self.candidates if c.search and c.search.at_once), default=None)

    def source(self, name: str) -> Source:
        return next(s for s in self.sources if s.name == name)

    def on_sample(self, days: float) -> "Project":
        """Return this project with reduced policies, for a sample of ``days`` days.

        Policies that count days or rows are reduced. The rollout is direct.
        """
        gate = {
            "holdout": min(self.gate.holdout, timedelta(days=days / 10)),
            "min_rows": min(self.gate.min_rows, SAMPLE_ROWS),
        }
        retrain = {
            "window": min(self.retrain.window, timedelta(days=days)),
            "min_labels": min(self.retrain.min_labels, SAMPLE_ROWS),
        }
        cut_down = {"gate": self.gate.model_copy(update=gate), "retrain": self.retrain.model_copy(update=retrain)}
        # A scratch store's serving does not get requests.
        return self.model_copy(update={**cut_down, "rollout": RolloutPolicy()})

    def module(self, part: Literal["expectations", "features", "feed"]) -> ModuleType:
        """Import and return one of the project's own modules.

        It imports ML libraries, so call it inside tasks only.
        """
        return import_module(f"include.projects.{self.name}.{part}")
