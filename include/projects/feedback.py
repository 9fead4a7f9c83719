"""Labels from POST /feedback: columns of their files, and how they are matched to predictions."""

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field

# The columns that serving/http/feedback.py writes; a test compares both. For a label by entity and
# time, ingest fills in the prediction_id.
COLUMNS = {
    "label_id": "string", "prediction_id": "string", "entity": "string", "event_timestamp": "string",
    "label": "float64", "known_at": "timestamp", "received_at": "timestamp", "sent_by": "string",
}  # fmt: skip
# With this key, ingest accepts one label for each prediction, whatever client sends more and
# however it names it.
KEY = ("prediction_id",)
# Labels that differ only in these columns do not contradict each other.
PROVENANCE = ("label_id", "entity", "event_timestamp", "known_at", "received_at", "sent_by")


class ServedPredictions(BaseModel):
    """The source's rows are labels of predictions in the project's prediction log.

    A label names its prediction by id, or by entity and time (ADR 37).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # A minute covers clock skew and slow networks. A client that predicts one entity more often
    # than that, and labels it by time, needs a smaller value.
    match_tolerance: timedelta = Field(
        timedelta(minutes=1),
        ge=timedelta(0),
        description=(
            "Maximum distance of a label by entity and time from its prediction, which is the nearest one to that time."
        ),
    )
    # Limits how much of the log an ingest must read for an invented id.
    lookback: timedelta = Field(
        timedelta(days=30),
        gt=timedelta(0),
        description="Maximum age of a prediction when its label arrives. Older predictions are not searched.",
    )
