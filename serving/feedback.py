"""Labels that come in over the API: files in the landing zone, where ``ingest`` judges them like any other source's.

Nothing is believed here: a label that is impossible, or contradicts another one, is ``ingest``'s to refuse. What is added is where it came from.
A label that comes twice has the same ``label_id``, and a request that comes twice makes no second file.
"""

import asyncio
import hashlib
import logging
from datetime import UTC, datetime
from typing import Annotated, Any

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, ValidationError, model_validator

from serving import metrics
from serving.encoding import dumps
from serving.front import Answer, Asked
from serving.log_files import array_of, log_files, microseconds
from serving.parts import Parts
from serving.problems import Problem, invalid, unavailable

FOLDER = "landing/feedback"
MOST = 10_000
MOMENT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        pa.field("label_id", pa.string(), nullable=False),
        pa.field("prediction_id", pa.string(), nullable=False),  # empty: the label names an entity and a time
        pa.field("entity", pa.string(), nullable=False),  # JSON object of join keys and request features; empty: it names a prediction
        pa.field("event_timestamp", pa.string(), nullable=False),
        pa.field("label", pa.float64(), nullable=False),
        pa.field("known_at", MOMENT, nullable=False),
        pa.field("received_at", MOMENT, nullable=False),
        pa.field("sent_by", pa.string(), nullable=False),  # name of the API key
    ],
    metadata={"feedback_version": "1"},
)

log = logging.getLogger(__name__)


class Label(BaseModel):
    """An outcome: of a prediction, or of what was asked for an entity at a time."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = Field(None, examples=["5f0c9b1e6f5d4a2c8a7b3e9d1c4f6a80"])
    entity: Annotated[dict[StrictStr, StrictStr | StrictInt | StrictFloat | bool], Field(min_length=1, max_length=50)] | None = Field(
        None,
        description="All join keys, as the prediction was asked for; request features too, where one entity is asked for often.",
        examples=[None],
    )
    event_timestamp: AwareDatetime | None = Field(
        None,
        description="When it was asked for: the label is of the entity's prediction nearest to this, within what the project allows (a minute).",
        examples=[None],
    )
    label: Annotated[float, Field(strict=True, allow_inf_nan=False)] = Field(examples=[1])
    known_at: AwareDatetime | None = Field(None, description="When it became known; default: now.", examples=["2026-01-01T12:00:00Z"])

    @model_validator(mode="after")
    def _names_one_thing(self):
        by_entity = self.entity is not None and self.event_timestamp is not None
        if (self.prediction_id is None) != by_entity or (self.prediction_id is not None and (self.entity or self.event_timestamp)):
            raise ValueError("a label names either a prediction_id, or an entity and its event_timestamp")
        return self


class Feedback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(max_length=100, examples=["flights"])]
    labels: Annotated[list[Label], Field(min_length=1, max_length=MOST)]


class FeedbackTaken(BaseModel):
    labels: int = Field(description="Labels in the landing zone now, of this request or the same one before.", examples=[1])
    file: str = Field(examples=["feedback-0f343b0931126a20f133d67c2b018a3b.parquet"])
    repeated: bool = Field(description="The same labels of the same caller were taken before; nothing was written.", examples=[False])


async def take(parts: Parts, asked: Asked) -> Answer:
    """Answer ``POST /feedback`` once the labels lie in the landing zone."""
    try:
        given = Feedback.model_validate_json(asked.body)
    except ValidationError as error:
        raise _wrong(error) from None
    parts.registry.model(given.model)  # 404 for a model that is not served here
    ids = [_label_id(given.model, label) for label in given.labels]
    if len(set(ids)) < len(ids):
        first = next(number for number, label_id in enumerate(ids) if label_id in ids[:number])
        raise invalid("repeated-label", "A label is there twice", "each outcome is told once in a request", f"labels[{first}]")
    # The same labels of the same caller are the same file, in whatever order they come.
    name = f"feedback-{hashlib.sha256(dumps([asked.caller, sorted(ids)])).hexdigest()[:32]}.parquet"
    files = log_files(parts.settings.log_root, folder=FOLDER, endpoint=parts.settings.s3_endpoint, region=parts.settings.s3_region)
    try:
        repeated = await asyncio.to_thread(_write, files, given, ids, asked.caller, name)
    except OSError as error:
        log.warning("feedback of %s: %s: %s", asked.caller, type(error).__name__, error)
        raise unavailable("landing-zone-away", "The landing zone cannot be written", "nothing of this request was taken; send it again") from error
    if not repeated:
        metrics.feedback.labels(given.model).inc(len(given.labels))
    return Answer(dumps({"labels": len(given.labels), "file": name, "repeated": repeated}))


def _write(files: Any, given: Feedback, ids: list[str], caller: str, name: str) -> bool:
    """Write the file; gives whether it was there."""
    if files.there(given.model, name):
        return True
    now = microseconds(datetime.now(UTC))
    columns: dict[str, list[Any]] = {
        "label_id": ids,
        "prediction_id": [label.prediction_id or "" for label in given.labels],
        "entity": [dumps(label.entity) if label.entity else b"" for label in given.labels],
        "event_timestamp": [_iso(label.event_timestamp) if label.event_timestamp else "" for label in given.labels],
        "label": [float(label.label) for label in given.labels],
        "known_at": [microseconds(label.known_at) if label.known_at else now for label in given.labels],
        "received_at": [now] * len(ids),
        "sent_by": [caller] * len(ids),
    }
    files.write(given.model, name, [pa.Table.from_arrays([array_of(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)])
    return False


def _label_id(model: str, label: Label) -> str:
    """Of the outcome that is told: the same one, told again, has the same id; another label of the same thing has another."""
    at = _iso(label.event_timestamp) if label.event_timestamp else None
    entity = sorted(label.entity.items()) if label.entity else None
    return hashlib.sha256(dumps([model, label.prediction_id, entity, at, float(label.label)])).hexdigest()[:32]


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _wrong(error: ValidationError) -> Problem:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return Problem(400, "not-json", "The body is not JSON", first["msg"], field="body")
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".") or "body"
    return invalid("invalid-request", "The request is not as it should be", first["msg"], where)
