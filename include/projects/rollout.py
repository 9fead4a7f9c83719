"""How a version that passed the gate comes to answer everybody: at once, or step by step, judged on real requests (after Argo Rollouts' analysis).

Intervals are real time: the requests that they wait for are real. Labels count by the project's own clock (ADR 33).
"""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ArmName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Share = Annotated[float, Field(gt=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelPolicy(_Frozen):
    """Judge on outcomes too, where they come while a step lasts: ``label`` by ``prediction_id``, one a prediction, as ``Source.feedback()`` takes them in."""

    source: str = Field("feedback", description="The source that brings them; one of Project.sources.")
    # Fewer would let luck decide; and so many must have come when a bad version is taken out: the project says how soon that is.
    min_labels: int = Field(500, ge=20, description="Outcomes of the arm's own predictions below which nothing is said.")
    # A version that is surely worse is worse, by however little. What is only perhaps worse was let through by the gate, on far more rows.
    max_metric_loss: float = Field(0.0, ge=0, description="Surely worse than those beside it by more than this is a breach.")
    wait: bool = Field(False, description="Too few outcomes are inconclusive, and hold the step up; else the step does without them.")


class Analysis(_Frozen):
    """What is asked of a version's answers at each look, against the champion's in the same time. Only what is surely so (95 %) is a breach."""

    min_samples: int = Field(200, ge=10, description="Answers of either below which latency and distribution say nothing.")
    # A champion's failures are answered with an error, an arm's by the champion: nobody is harmed, so one in a hundred may still be luck of the network.
    max_failure_share: float = Field(0.01, ge=0, lt=1, description="Of the requests that were the arm's: it threw, gave no number, or was late.")
    # One that takes twice as long doubles what serving costs; an arm runs in a thread, which is a fraction of a millisecond by itself.
    max_latency_ratio: float | None = Field(2.0, gt=1, description="Its 95th percentile over the champion's; None: not looked at.")
    latency_floor_ms: float = Field(20.0, ge=0, description="Latencies below this are good enough, whatever the champion's are.")
    # .25 is the usual bound of "another distribution"; below it a version that has learned something is to be expected to answer otherwise.
    max_psi: float | None = Field(0.25, gt=0, description="Population stability index of its predictions against the champion's; None: not looked at.")
    labels: LabelPolicy | None = Field(None, description="None: outcomes come too late to be waited for; the monitor looks at them.")
    # One breach is sure at 95 % already: to look again is to harm again.
    failure_limit: int = Field(0, ge=0, description="So many looks of a step may find a breach; one more takes the version out.")
    inconclusive_limit: int = Field(5, ge=0, description="So many looks of a step may come to nothing; one more pauses the rollout for a person.")


class Step(_Frozen):
    """A part of the traffic for a time: a shadow, which answers nobody, or an arm (a canary, one side of an A/B test), which answers its entities."""

    name: ArmName = Field("canary", description="Of the shadow or arm, in the log, the metrics and the report.")
    shadow: Share | None = Field(None, description="Share of the requests that it is asked too.")
    weight: Share | None = Field(None, description="Share of the entities that it answers.")
    # Else the champion's rows are those of all other entities; for an A/B test both sides are alike in everything but the version.
    control: ArmName | None = Field(None, description="A second arm of the same weight, answered by the champion's version: the A of an A/B test.")
    interval: timedelta = Field(timedelta(minutes=10), gt=timedelta(0), description="From one look to the next.")
    looks: int = Field(1, ge=1, description="So many looks must find it good.")
    metric: Literal["auc", "brier", "log_loss", "mae", "rmse", "r2"] | None = Field(
        None, description="For outcomes; None: the project's. An A/B test may have one of its own."
    )

    @model_validator(mode="after")
    def _is_one_thing(self):
        if (self.shadow is None) == (self.weight is None):
            raise ValueError(f"step '{self.name}' needs either shadow or weight")
        if self.control and (self.weight is None or self.weight > 0.5 or self.control == self.name):
            raise ValueError(f"step '{self.name}': a control is a second arm with a name of its own, of the same weight, so of 0.5 at most")
        if "champion" in (self.name, self.control):
            raise ValueError("'champion' is whoever answers all others: give the arm another name")
        return self


class Approval(_Frozen):
    """A person says yes before the version becomes champion, after its steps, with the report before his eyes."""

    by: tuple[str, ...] = Field((), description="Ids of the Airflow users who may; empty: whoever may run the DAG.")
    within: timedelta = Field(timedelta(days=3), gt=timedelta(0), description="No answer in this time is a no: what was judged grows old.")


class RolloutPolicy(_Frozen):
    """What lies between the gate and everybody. The default is ``direct``: the version becomes champion once it passes the smoke test."""

    # Steps need requests, and a project that nobody asks online yet would wait for them in vain.
    steps: tuple[Step, ...] = Field((), description="One after another; none: direct.")
    analysis: Analysis = Analysis()
    # Serving takes an arm out by itself, within seconds; the analysis is for what is not that plain.
    max_seconds: float = Field(0.5, gt=0, le=60, description="An arm's answer that takes longer is a failure, and the champion answers.")
    max_failures: int = Field(5, ge=1, description="So many failures among its last 100 requests take an arm out, in serving itself.")
    approval: Approval | None = None
    patience: timedelta = Field(timedelta(days=7), gt=timedelta(0), description="A rollout whose steps are not over by then is taken back.")

    @property
    def look_every(self) -> timedelta:
        """How often the task that waits is woken: to look whether the arm still answers, at least."""
        return min([timedelta(seconds=30), *(step.interval for step in self.steps)])
