"""Labels that come in over POST /feedback: what serving writes into their files, and how a label finds its prediction."""

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field

# As serving/feedback.py writes them; a test holds both to it. Of a label by entity and time, ingest fills in the prediction_id.
COLUMNS = {
    "label_id": "string", "prediction_id": "string", "entity": "string", "event_timestamp": "string",
    "label": "float64", "known_at": "timestamp", "received_at": "timestamp", "sent_by": "string",
}  # fmt: skip
KEY = ("prediction_id",)  # so that ingest takes one label a prediction, whoever sends more, and however they name it
PROVENANCE = ("label_id", "entity", "event_timestamp", "known_at", "received_at", "sent_by")  # two who say the same do not contradict each other


class ServedPredictions(BaseModel):
    """A source's rows are labels of predictions in the project's prediction log, named by their id or by entity and time (ADR 37)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # A minute covers clocks and slow networks. Whoever predicts one entity more often than that, and labels it by time, wants less.
    apart: timedelta = Field(
        timedelta(minutes=1), ge=timedelta(0), description="A label by entity and time is of its prediction nearest to that time, and no further off than this."
    )
    # It bounds what an ingest must read of the log for an id that was made up.
    back: timedelta = Field(timedelta(days=30), gt=timedelta(0), description="Predictions answered so long before their label came are not looked for.")
