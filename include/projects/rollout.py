"""Rollout policies: how a version that passed the gate takes over all traffic.

It is promoted directly, or step by step after an evaluation on real requests (like the analysis of
Argo Rollouts). Intervals are real time, because the requests are real. Labels count by the
project's own clock (ADR 33).
"""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ArmName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Share = Annotated[float, Field(gt=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelPolicy(_Frozen):
    """Evaluate outcomes too, if they arrive during a step.

    The source has one ``label`` for each ``prediction_id``, as in ``Source.feedback()``.
    """

    source: str = Field("feedback", description="Source of the outcomes, one of Project.sources.")
    # With fewer labels, sampling variation would decide. The number also determines how soon a bad
    # version is rolled back.
    min_labels: int = Field(
        500,
        ge=20,
        description="Minimum number of outcomes of the arm's own predictions. With fewer, outcomes are not judged.",
    )
    # A version that is significantly worse is rejected, however small the difference is. A
    # non-significant difference has passed the gate, which uses many more rows.
    max_metric_loss: float = Field(
        0.0,
        ge=0,
        description="Maximum loss of the metric compared with the champion's. A significantly larger loss is a breach.",
    )
    wait: bool = Field(
        False,
        description=(
            "If true, too few outcomes are inconclusive and delay the step. Otherwise the step continues without them."
        ),
    )


class Analysis(_Frozen):
    """The rules that compare a version's answers with the champion's at each look.

    Only a significant difference (95 %) is a breach.
    """

    min_samples: int = Field(
        200,
        ge=10,
        description="Minimum number of answers of each version. With fewer, latency and distribution are inconclusive.",
    )
    # If an arm fails, the champion answers, so the client is not affected. One failure in a hundred
    # may still be caused by the network.
    max_failure_share: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Maximum share of the arm's requests that fail: with an exception, without a number, or too late.",
    )
    # A version that takes twice as long doubles the cost of serving. An arm runs in a thread, which
    # adds only a fraction of a millisecond.
    max_latency_ratio: float | None = Field(
        2.0,
        gt=1,
        description="Maximum ratio of its 95th percentile latency to the champion's. If None, latency is not checked.",
    )
    latency_floor_ms: float = Field(20.0, ge=0, description="Latencies below this are always acceptable.")
    # 0.25 is the usual threshold for a shifted distribution. Smaller shifts are expected of a
    # version that has learned from new data.
    max_psi: float | None = Field(
        0.25,
        gt=0,
        description=(
            "Maximum population stability index of its predictions compared with the champion's. If None, it is not"
            " checked."
        ),
    )
    labels: LabelPolicy | None = Field(
        None,
        description=(
            "Rules for outcomes. If None, outcomes arrive too late for the rollout, and only the monitor evaluates"
            " them."
        ),
    )
    # One breach is already significant at 95 %. Another look would prolong the harm.
    failure_limit: int = Field(
        0, ge=0, description="Number of looks of a step that may find a breach. One more rolls the version back."
    )
    inconclusive_limit: int = Field(
        5,
        ge=0,
        description=(
            "Number of consecutive looks of a step that may be inconclusive. One more pauses the rollout for an"
            " operator."
        ),
    )


class Step(_Frozen):
    """A part of the traffic for a time: a shadow or an arm.

    A shadow's answers are not returned to clients. An arm (a canary, or one side of an A/B test)
    answers its entities.
    """

    name: ArmName = Field("canary", description="Name of the shadow or arm in the log, the metrics and the report.")
    shadow: Share | None = Field(None, description="Share of the requests that the shadow also gets.")
    weight: Share | None = Field(None, description="Share of the entities that the arm answers.")
    # Without a control, the champion's rows are those of all other entities. In an A/B test, both
    # sides differ only in the version.
    control: ArmName | None = Field(
        None,
        description=(
            "Name of a second arm of the same weight that the champion's version answers: the A of an A/B test."
        ),
    )
    interval: timedelta = Field(timedelta(minutes=10), gt=timedelta(0), description="Time between two looks.")
    looks: int = Field(1, ge=1, description="Number of looks that must pass.")
    metric: Literal["auc", "brier", "log_loss", "mae", "rmse", "r2"] | None = Field(
        None, description="Metric for outcomes. Default: the project's metric. An A/B test may use a different one."
    )

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.shadow is None) == (self.weight is None):
            raise ValueError(f"step '{self.name}' needs either shadow or weight")
        if self.control and (self.weight is None or self.weight > 0.5 or self.control == self.name):
            raise ValueError(
                f"step '{self.name}': a control is a second arm with another name and the same weight, so at most 0.5"
            )
        if "champion" in (self.name, self.control):
            raise ValueError("'champion' is the name of the deployed version: give the arm another name")
        return self


class Approval(_Frozen):
    """A user's approval before the version becomes champion, after its steps.

    The user sees the rollout report.
    """

    by: tuple[str, ...] = Field(
        (),
        description=(
            "Ids of the Airflow users with the right to approve. If empty, all users with permission to run the DAG can"
            " approve."
        ),
    )
    within: timedelta = Field(
        timedelta(days=3),
        gt=timedelta(0),
        description=(
            "Time limit of the approval. Without an answer the version is rejected, because its evaluation becomes"
            " outdated."
        ),
    )


class RolloutPolicy(_Frozen):
    """The stages between the gate and full traffic.

    The default is ``direct``: the version becomes champion once it passes the smoke test.
    """

    # Steps need requests. A project without online requests would wait forever.
    steps: tuple[Step, ...] = Field((), description="Steps in their order. If empty, the rollout is direct.")
    analysis: Analysis = Analysis()
    # Serving removes a failing arm within seconds. The analysis detects less obvious problems.
    max_seconds: float = Field(
        0.5,
        gt=0,
        le=60,
        description="Time limit of an arm's answer. A slower answer is a failure, and the champion answers instead.",
    )
    max_failures: int = Field(
        5, ge=1, description="Serving itself stops an arm after this many failures among its last 100 requests."
    )
    approval: Approval | None = None
    patience: timedelta = Field(
        timedelta(days=7),
        gt=timedelta(0),
        description="Time limit of all steps. A rollout with unfinished steps is then rolled back.",
    )

    @property
    def look_every(self) -> timedelta:
        """Return the interval at which the waiting task checks at least the arm's status."""
        return min([timedelta(seconds=30), *(step.interval for step in self.steps)])
