"""What a project is: owner, goal, kind of task, metric, sources and policies, as frozen data.

A project is one folder of ``include/projects`` plus one module of ``feature_repo``. Its folder holds

* ``__init__.py``      ``project = Project(...)``; imported at every DAG parse, so nothing heavy here,
* ``expectations.py``  what must be true of each source and of each feature view,
* ``features.py``      the features and the examples, pure functions bounded by time,
* ``feed.py``          how sample data comes into the landing zone.

The last three are imported inside tasks only (``project.module("features")``).
"""

from datetime import timedelta
from enum import StrEnum
from importlib import import_module
from types import ModuleType
from typing import Literal

from pydantic import Field, field_validator, model_validator

from include.projects.compute import ComputeClass
from include.projects.feedback import KEY as PREDICTION
from include.projects.lookup import LookupPolicy
from include.projects.rollout import RolloutPolicy
from include.projects.source import DType as DType
from include.projects.source import Frozen, Name, Source
from include.projects.source import Reference as Reference

SAMPLE_ROWS = 50  # rows that must do where a stage is only tried
STAGES = ("ingest", "build_features", "train", "deploy", "score", "monitor")  # every project has a DAG <project>__<stage> for each


class TaskKind(StrEnum):
    """What is predicted: a probability (binary) or a number (regression)."""

    BINARY = "binary"
    REGRESSION = "regression"


class Metric(Frozen):
    """The figure by which models are compared. Names are those of ``include.training.metrics``."""

    name: str
    higher_is_better: bool


class Range(Frozen):
    """Numbers from ``low`` to ``high``, both among them; ``whole`` ones only, or evenly on a logarithmic scale (``log``)."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @model_validator(mode="after")
    def _holds_numbers(self):
        if self.low >= self.high:
            raise ValueError(f"a range from {self.low:g} to {self.high:g} holds nothing to choose from")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0, not at {self.low:g}")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"a range of whole numbers must begin and end with one, not with {self.low:g} and {self.high:g}")
        return self


class Choices(Frozen):
    """One of these values, which have no order."""

    options: tuple[float | int | str | bool | None, ...] = Field(min_length=2)


class Search(Frozen):
    """A search for a candidate's parameters, before its fit: trials that Optuna proposes, each fitted and judged on a part of the rows to fit.

    The rows on which candidates are judged take no part in it. See ``include.training.search``.
    """

    trials: int = Field(20, ge=1, le=1000, description="The first one tries the candidate's own parameters.")
    space: dict[Name, Range | Choices] = Field(min_length=1, description="Parameter -> what to try; all other parameters stay as the candidate has them.")
    at_once: int | None = Field(None, ge=1, description="Trials of one run that may run at once; None: as many as the pool has slots. Fewer learn more.")
    holdout: timedelta | None = Field(None, description="The newest rows to fit, on which trials are judged; None: as long as the gate's holdout.")
    seed: int = Field(0, ge=0, description="Of the sampler.")


class Candidate(Frozen):
    """A model that training fits. ``trainer`` is a function of ``include.training.trainers``."""

    name: Name
    trainer: Name
    parameters: dict[str, float | int | str | bool | None] = {}
    compute: Name = Field("cpu", description="The compute class that its fits run in; one of Project.compute.")
    workers: int = Field(1, ge=1, description="Processes (on a cluster: pods) that fit it together, each on its slice of every batch.")
    search: Search | None = Field(None, description="Look for better parameters first, anew on each request.")


class Inputs(Frozen):
    """What a model is given, in this order: numbers (missing allowed) and categories (strings)."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...] = ()


class GatePolicy(Frozen):
    """When a challenger may replace the champion. Armed by default; see ``include.registry.gate``."""

    min_rows: int = Field(1000, ge=1, description="Fewer judged rows than this is a refusal: not enough new labels.")
    floor: float | None = Field(None, description="The metric must be at least (at most, if lower is better) this.")
    min_improvement: float = Field(0.0, description="By how much the challenger must beat the champion.")
    beat_baseline_by: float = Field(0.0, description="By how much it must beat the rule-based baseline.")
    holdout: timedelta = Field(timedelta(days=28), description="The newest examples, kept out of the judged fit.")


class RetrainPolicy(Frozen):
    """When to ask for a retraining; see ``include.monitoring.controller``."""

    schedule: str | None = Field(None, description="Cron (UTC) of a periodic request, or none.")
    window: timedelta = Field(timedelta(days=28), description="Labels this recent are compared with the reference.")
    min_labels: int = Field(1000, ge=1, description="Fewer labels than this in the window say nothing.")
    max_metric_loss: float | None = Field(None, description="Ask when the metric is surely worse than at training by more than this.")
    max_bias: float | None = Field(None, description="Ask when mean prediction minus mean outcome is surely beyond +-this.")
    max_drifted_share: float | None = Field(None, description="Ask when this share of input columns drifted; off by default: inputs drift every season.")
    max_age: timedelta | None = Field(None, description="Ask when the champion, though healthy, was trained this long ago; once in this time.")
    cooldown: timedelta = Field(timedelta(days=14), description="No second request within this time after one.")


class Project(Frozen):
    """One prediction problem: everything outside its folder works from this."""

    name: Name
    owner: str
    email: str
    goal: str = Field(description="The business goal: what gets better, for whom.")
    success: str = Field(description="How success is counted.")
    kind: TaskKind
    metric: Metric
    entities: tuple[str, ...] = Field(description="Feast's join keys, as columns of the examples.")
    feature_views: tuple[Name, ...] = Field(description="The Feature views of feature_repo/<project>.py.")
    service_version: int = 1
    request_features: tuple[str, ...] = Field(description="Inputs that come with the request, not from Feast.")
    example_key: tuple[str, ...] = Field(description="Columns that name one thing to predict.")
    inputs: Inputs
    baseline_rule: str = Field(description="The one input column that the rule-based baseline looks at.")
    sources: tuple[Source, ...]
    label_source: Name = Field(description="The source whose rows bring the outcomes.")
    candidates: tuple[Candidate, ...]
    gate: GatePolicy = GatePolicy()
    lookup: LookupPolicy = LookupPolicy()
    refit: bool = Field(True, description="Deploy the best candidate fitted again on all rows known by the cutoff, not the judged fit.")
    retrain: RetrainPolicy = RetrainPolicy()
    rollout: RolloutPolicy = Field(RolloutPolicy(), description="How a version that passed the gate comes to answer everybody; direct by default.")
    compute: dict[Name, ComputeClass] = Field({}, description="Compute classes by name (cpu, gpu_<class>): what steps ask for. There is always one named cpu.")
    ingest_schedule: str | None = "0 4 * * *"
    monitor_schedule: str | None = "0 6 * * *"
    serving_sample: int = Field(25, ge=1, description="Next things to predict that the demo and tests ask serving for.")

    @field_validator("candidates")
    @classmethod
    def _has_candidates(cls, candidates):
        if not candidates:
            raise ValueError("a project needs at least one candidate to train")
        return candidates

    @model_validator(mode="after")
    def _consistent(self):
        names = [s.name for s in self.sources]
        for wanted in (self.label_source, *(s.references.source for s in self.sources if s.references)):
            if wanted not in names:
                raise ValueError(f"project '{self.name}' names source '{wanted}'; its sources are {names}")
        if self.baseline_rule not in self.inputs.numeric:
            raise ValueError(f"project '{self.name}': baseline_rule '{self.baseline_rule}' is not one of inputs.numeric")
        for view in self.lookup.views:
            if view not in self.feature_views:
                raise ValueError(f"project '{self.name}': lookup.views names '{view}'; its feature_views are {', '.join(self.feature_views)}")
        for feature, value in self.lookup.defaults.items():
            if feature not in self.input_columns or feature in (*self.request_features, *self.entities):
                raise ValueError(f"project '{self.name}': lookup.defaults names '{feature}', which is no input that is looked up")
            if value is not None and isinstance(value, str) != (feature in self.inputs.categorical):
                raise ValueError(
                    f"project '{self.name}': lookup.defaults: '{feature}' must be {'a text' if not isinstance(value, str) else 'a number'} or None"
                )
        labels = self.rollout.analysis.labels
        if labels and not (labels.source in names and "label" in self.source(labels.source).columns and self.source(labels.source).key == PREDICTION):
            raise ValueError(
                f"project '{self.name}': rollout labels come from source '{labels.source}', which is no source with the column label "
                "and the key prediction_id, such as Source.feedback()"
            )
        for candidate in self.candidates:
            if candidate.compute not in self.compute_classes:
                raise ValueError(f"candidate '{candidate.name}': {self._no_such_class(candidate.compute)}")
        return self

    @property
    def compute_classes(self) -> dict[str, ComputeClass]:
        """All compute classes, ``cpu`` among them."""
        return {"cpu": ComputeClass(), **self.compute}

    def compute_class(self, name: str) -> ComputeClass:
        """The compute class of that name.

        Raises:
            ValueError: the project has none; the message says which it has.
        """
        if name not in self.compute_classes:
            raise ValueError(self._no_such_class(name))
        return self.compute_classes[name]

    def _no_such_class(self, name: str) -> str:
        return f"project '{self.name}' has no compute class '{name}'; it has {', '.join(self.compute_classes)}: add it to Project.compute"

    def workers(self, compute: str) -> int:
        """The most workers that a candidate of this compute class has: a pool's slots are fixed for a task, whatever candidate it is mapped to.

        A fit with fewer workers then holds slots that it does not use; one with more than its slots would share its GPUs with another step.
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
        """The compute classes in which the best candidate may be fitted again: those of the candidates; ``cpu`` first, then sorted."""
        return tuple(sorted({c.compute for c in self.candidates}, key=lambda name: (name != "cpu", name)))

    @property
    def fitting(self) -> tuple[Name, ...]:
        """The compute classes in which candidates are fitted: ``cpu`` first, for the baseline rule always, then the others, sorted."""
        return ("cpu", *(name for name in self.refitting if name != "cpu"))

    @property
    def searching(self) -> tuple[Name, ...]:
        """The compute classes in which trials of a search run, sorted."""
        return tuple(sorted({c.compute for c in self.candidates if c.search}))

    @property
    def trials_at_once(self) -> int | None:
        """The least that a search of this project allows; None: no search says anything."""
        return min((c.search.at_once for c in self.candidates if c.search and c.search.at_once), default=None)

    def source(self, name: str) -> Source:
        return next(s for s in self.sources if s.name == name)

    def on_sample(self, days: float) -> "Project":
        """This project with those policies cut down that count days or rows, so that a sample of so many days can go through them; rolled out at once."""
        gate = {"holdout": min(self.gate.holdout, timedelta(days=days / 10)), "min_rows": min(self.gate.min_rows, SAMPLE_ROWS)}
        retrain = {"window": min(self.retrain.window, timedelta(days=days)), "min_labels": min(self.retrain.min_labels, SAMPLE_ROWS)}
        cut_down = {"gate": self.gate.model_copy(update=gate), "retrain": self.retrain.model_copy(update=retrain)}
        return self.model_copy(update={**cut_down, "rollout": RolloutPolicy()})  # nobody asks a scratch store's serving anything

    def module(self, part: Literal["expectations", "features", "feed"]) -> ModuleType:
        """One of the project's own modules; imports ML libraries, so call it inside tasks only."""
        return import_module(f"include.projects.{self.name}.{part}")
