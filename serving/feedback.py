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
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from serving import metrics
from serving.access import Caller
from serving.encoding import dumps, loads
from serving.front import Answer, Asked
from serving.log_files import array_of, log_files, microseconds
from serving.parts import Parts
from serving.problems import Problem, invalid, unavailable

FOLDER = "landing/feedback"
MOST = 10_000
# Names in an entity.
MOST_NAMES = 50
# A text of an entity, in characters.
LONGEST_TEXT = 1000
# What follows from them must be computable: a time zone moves the first and the last year out of Python's range.
FIRST_YEAR, LAST_YEAR = 1900, 2200
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
    metadata={"feedback_version": "2"},
)

log = logging.getLogger(__name__)


def _in_range(moment: datetime) -> datetime:
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise ValueError(f"its year must be from {FIRST_YEAR} to {LAST_YEAR}")
    return moment


Moment = Annotated[AwareDatetime, AfterValidator(_in_range)]
Text = Annotated[str, StringConstraints(strict=True, max_length=LONGEST_TEXT)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Label(BaseModel):
    """An outcome: of a prediction, or of what was asked for an entity at a time."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = Field(None, examples=["5f0c9b1e6f5d4a2c8a7b3e9d1c4f6a80"])
    entity: Annotated[dict[Text, Text | StrictBool | StrictInt | Number], Field(min_length=1, max_length=MOST_NAMES)] | None = Field(
        None,
        description="All join keys, as the prediction was asked for; request features too, where one entity is asked for often.",
        examples=[None],
    )
    event_timestamp: Moment | None = Field(
        None,
        description="When it was asked for: the label is of the entity's prediction nearest to this, within what the project allows (a minute).",
        examples=[None],
    )
    label: Annotated[float, Field(strict=True, allow_inf_nan=False)] = Field(examples=[1])
    known_at: Moment | None = Field(None, description="When it became known; default: now.", examples=["2026-01-01T12:00:00Z"])

    @model_validator(mode="after")
    def _names_one_thing(self):
        by_entity = self.entity is not None and self.event_timestamp is not None
        if (self.prediction_id is None) != by_entity or (self.prediction_id is not None and (self.entity or self.event_timestamp)):
            raise ValueError("a label names either a prediction_id, or an entity and its event_timestamp")
        return self


class Feedback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(max_length=100, examples=["flights"])]
    # The first wrong label ends the check: the answer names one, and reports of all of them would take gigabytes.
    labels: Annotated[list[Label], FailFast(), Field(min_length=1, max_length=MOST)]
    corrects: StrictBool = Field(
        False,
        description="The labels and their known_at, which each of them needs then, replace those that were sent before. The key must be allowed to correct.",
    )


class FeedbackTaken(BaseModel):
    labels: int = Field(description="Labels in the landing zone now, of this request or the same one before.", examples=[1])
    file: str = Field(examples=["feedback-0f343b0931126a20f133d67c2b018a3b.parquet"])
    repeated: bool = Field(description="The same labels of the same caller were taken before; nothing was written.", examples=[False])


async def take(parts: Parts, asked: Asked) -> Answer:
    """Answer ``POST /feedback`` when the labels are in the landing zone."""
    # In a thread: thousands of labels take longer to check than other callers should wait.
    given, ids = await asyncio.to_thread(_checked, asked.body)
    asked.caller.check_model(given.model)
    if given.corrects and not asked.caller.corrects:
        detail = f"key '{asked.caller.name}' may not replace labels; `python -m serving.keys create --corrects` makes one that may"
        raise Problem(403, "may-not-correct", "The key may not correct labels", detail, field="corrects")
    if given.corrects and any(label.known_at is None for label in given.labels):
        number = next(number for number, label in enumerate(given.labels) if label.known_at is None)
        detail = "a label that replaces another one must say when it became known"
        raise invalid("invalid-request", "The request is not as it should be", detail, f"labels[{number}].known_at")
    parts.registry.model(given.model)  # 404 for a model that is not served here
    asked.take_rows(len(ids))
    files = log_files(parts.settings.log_root, folder=FOLDER, endpoint=parts.settings.s3_endpoint, region=parts.settings.s3_region)
    name = _file_name(given, ids, asked.caller)
    try:
        repeated = await asyncio.to_thread(_write, files, given, ids, asked.caller, name)
    except OSError as error:
        log.warning("feedback of %s: %s: %s", asked.caller.name, type(error).__name__, error)
        raise unavailable("landing-zone-away", "The landing zone cannot be written", "nothing of this request was taken; send it again") from error
    if not repeated:
        metrics.feedback.labels(given.model).inc(len(given.labels))
    return Answer(dumps({"labels": len(given.labels), "file": name, "repeated": repeated}))


def _checked(body: bytes) -> tuple[Feedback, list[str]]:
    """Return the request and the ids of its labels.

    Raises:
        Problem: 400, 413 or 422, with the field.
    """
    try:
        document = loads(body)
    except ValueError as error:
        raise Problem(400, "not-json", "The body is not JSON", str(error)[:200], field="body") from None
    _check_sizes(document)
    try:
        given = Feedback.model_validate(document)
    except ValidationError as error:
        raise _wrong(error) from None
    ids: list[str] = []
    seen: set[str] = set()
    for number, label in enumerate(given.labels):
        label_id = _label_id(given.model, label)
        if label_id in seen:
            raise invalid("repeated-label", "A label is there twice", "send each outcome once in a request", f"labels[{number}]")
        seen.add(label_id)
        ids.append(label_id)
    return given, ids


def _check_sizes(document: Any) -> None:
    """Check how many parts a request has. pydantic reports every wrong part, even of a list or an object that is too long by itself.

    Raises:
        Problem: 422, there are too many.
    """
    _check_size(document, Feedback.model_fields, "body")
    labels = document.get("labels") if isinstance(document, dict) else None
    if not isinstance(labels, list):
        return
    if len(labels) > MOST:
        raise _too_many(f"{len(labels)} labels; at most {MOST}", "labels")
    for number, label in enumerate(labels):
        _check_size(label, Label.model_fields, f"labels[{number}]")
        entity = label.get("entity") if isinstance(label, dict) else None
        if isinstance(entity, dict) and len(entity) > MOST_NAMES:
            raise _too_many(f"{len(entity)} names; at most {MOST_NAMES}", f"labels[{number}].entity")


def _check_size(given: Any, fields: Any, where: str) -> None:
    if isinstance(given, dict) and len(given) > len(fields):
        raise _too_many(f"{len(given)} fields; it has {', '.join(fields)}", where)


def _too_many(detail: str, where: str) -> Problem:
    return invalid("invalid-request", "The request is not as it should be", detail, where)


def _file_name(given: Feedback, ids: list[str], caller: Caller) -> str:
    """Return the name of the request's file: the same labels of the same caller are the same file, in whatever order they come.

    Another time when a label became known is another file: it may correct the first one.
    """
    told = sorted([label_id, _iso(label.known_at) if label.known_at else None] for label_id, label in zip(ids, given.labels, strict=True))
    return f"feedback-{hashlib.sha256(dumps([caller.name, given.corrects, sorted(caller.labels_of or ()), told])).hexdigest()[:32]}.parquet"


def _write(files: Any, given: Feedback, ids: list[str], caller: Caller, name: str) -> bool:
    """Write the file; return whether it was there.

    A file is one request of one caller. Its metadata say what the caller may do, for ``ingest`` to hold the labels to it.
    """
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
        "sent_by": [caller.name] * len(ids),
    }
    rights = {"corrects": dumps(given.corrects), "labels_of": dumps(sorted(caller.labels_of) if caller.labels_of is not None else None)}
    schema = SCHEMA.with_metadata({**(SCHEMA.metadata or {}), **rights})
    files.write(given.model, name, [pa.Table.from_arrays([array_of(columns[field.name], field.type) for field in SCHEMA], schema=schema)])
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
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".") or "body"
    return invalid("invalid-request", "The request is not as it should be", first["msg"], where)
