"""Accept labels over the API and write them as files to the landing zone.

``ingest`` validates them there like those of any other source. It also rejects impossible or
contradicting labels; this module does not. Serving only adds the sender of the labels. A label that
is sent twice has the same ``label_id``, and a request that is sent twice does not create a second
file.
"""

import asyncio
import hashlib
import logging
from datetime import UTC, datetime
from typing import Annotated, Any, Self

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
from serving.access.callers import Caller
from serving.encoding import dumps, loads
from serving.http.gateway import ParsedRequest, RawResponse
from serving.predicting.context import ServingContext
from serving.prediction_log.files import array_of, log_files, microseconds
from serving.problems import ProblemError, invalid, unavailable

FOLDER = "landing/feedback"
MOST = 10_000
# Maximum number of names in an entity.
MOST_NAMES = 50
# Maximum length of a text in an entity, in characters.
LONGEST_TEXT = 1000
# Later computations must not fail: a time zone moves the first and the last year out of Python's
# range.
FIRST_YEAR, LAST_YEAR = 1900, 2200
MOMENT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        pa.field("label_id", pa.string(), nullable=False),
        # Empty if the label names an entity and a time.
        pa.field("prediction_id", pa.string(), nullable=False),
        # JSON object of join keys and request features. Empty if the label names a prediction.
        pa.field("entity", pa.string(), nullable=False),
        pa.field("event_timestamp", pa.string(), nullable=False),
        pa.field("label", pa.float64(), nullable=False),
        pa.field("known_at", MOMENT, nullable=False),
        pa.field("received_at", MOMENT, nullable=False),
        pa.field("sent_by", pa.string(), nullable=False),  # The name of the API key.
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
    """The outcome of a prediction, which is named by its id or by its entity and time."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = Field(
        None, examples=["5f0c9b1e6f5d4a2c8a7b3e9d1c4f6a80"]
    )
    entity: (
        Annotated[dict[Text, Text | StrictBool | StrictInt | Number], Field(min_length=1, max_length=MOST_NAMES)] | None
    ) = Field(
        None,
        description=(
            "All join keys, as the prediction was asked for; request features too, where one entity is asked for often."
        ),
        examples=[None],
    )
    event_timestamp: Moment | None = Field(
        None,
        description=(
            "When it was asked for: the label is of the entity's prediction nearest to this, within what the project"
            " allows (a minute)."
        ),
        examples=[None],
    )
    label: Annotated[float, Field(strict=True, allow_inf_nan=False)] = Field(examples=[1])
    known_at: Moment | None = Field(
        None, description="When it became known; default: now.", examples=["2026-01-01T12:00:00Z"]
    )

    @model_validator(mode="after")
    def _names_one_thing(self) -> Self:
        by_entity = self.entity is not None and self.event_timestamp is not None
        if (self.prediction_id is None) != by_entity or (
            self.prediction_id is not None and (self.entity or self.event_timestamp)
        ):
            raise ValueError("a label names either a prediction_id, or an entity and its event_timestamp")
        return self


class Feedback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(max_length=100, examples=["flights"])]
    # The first invalid label ends the validation. The answer names only one, and a report of all of
    # them would take gigabytes.
    labels: Annotated[list[Label], FailFast(), Field(min_length=1, max_length=MOST)]
    corrects: StrictBool = Field(
        False,
        description=(
            "The labels and their known_at, which each of them needs then, replace those that were sent before. The key"
            " must be allowed to correct."
        ),
    )


class FeedbackTaken(BaseModel):
    labels: int = Field(
        description="Labels in the landing zone now, of this request or the same one before.", examples=[1]
    )
    file: str = Field(examples=["feedback-0f343b0931126a20f133d67c2b018a3b.parquet"])
    repeated: bool = Field(
        description="The same labels of the same caller were taken before; nothing was written.", examples=[False]
    )


async def take(context: ServingContext, request: ParsedRequest) -> RawResponse:
    """Answer ``POST /feedback`` after the labels have been written to the landing zone."""
    # This runs in a thread, because the check of thousands of labels would delay other callers.
    document = await context.turns.run(request.caller.name, lambda: _document(request.body))
    # Take the rows before the check: a check of wrong labels takes as long.
    request.take_rows(_count(document))
    given, ids = await context.turns.run(request.caller.name, lambda: _checked(document))
    request.caller.check_model(given.model)
    if given.corrects and not request.caller.corrects:
        detail = (
            f"key '{request.caller.name}' may not replace labels; `python -m serving.keys create --corrects` makes one"
            " that may"
        )
        raise ProblemError(403, "may-not-correct", "The key may not correct labels", detail, field="corrects")
    if given.corrects and any(label.known_at is None for label in given.labels):
        number = next(number for number, label in enumerate(given.labels) if label.known_at is None)
        detail = "a label that replaces another one must say when it became known"
        raise invalid("invalid-request", "The request is not as it should be", detail, f"labels[{number}].known_at")
    # This raises 404 for a model that this service does not serve.
    context.registry.model(given.model)
    files = log_files(
        context.settings.log_root,
        folder=FOLDER,
        endpoint=context.settings.s3_endpoint,
        region=context.settings.s3_region,
    )
    name = _file_name(given, ids, request.caller)
    try:
        repeated = await asyncio.to_thread(_write, files, given, ids, request.caller, name)
    except OSError as error:
        log.warning("feedback of %s: %s: %s", request.caller.name, type(error).__name__, error)
        raise unavailable(
            "landing-zone-away",
            "The landing zone cannot be written",
            "nothing of this request was taken; send it again",
        ) from error
    if not repeated:
        metrics.feedback.labels(given.model).inc(len(given.labels))
    return RawResponse(dumps({"labels": len(given.labels), "file": name, "repeated": repeated}))


def _document(body: bytes) -> Any:
    """Return the request's document, whose parts are few enough to be checked.

    Raises:
        ProblemError: 400, 413 or 422, with the field.
    """
    try:
        document = loads(body)
    except ValueError as error:
        raise ProblemError(400, "not-json", "The body is not JSON", str(error)[:200], field="body") from None
    _check_sizes(document)
    return document


def _count(document: Any) -> int:
    labels = document.get("labels") if isinstance(document, dict) else None
    return len(labels) if isinstance(labels, list) else 0


def _checked(document: Any) -> tuple[Feedback, list[str]]:
    """Return the request and the ids of its labels.

    Raises:
        ProblemError: 422, with the field.
    """
    try:
        given = Feedback.model_validate(document)
    except ValidationError as error:
        raise _wrong(error) from None
    ids: list[str] = []
    seen: set[str] = set()
    for number, label in enumerate(given.labels):
        label_id = _label_id(given.model, label)
        if label_id in seen:
            raise invalid(
                "repeated-label", "A label occurs twice", "send each outcome once in a request", f"labels[{number}]"
            )
        seen.add(label_id)
        ids.append(label_id)
    return given, ids


def _check_sizes(document: Any) -> None:
    """Check the number of parts of a request.

    pydantic reports every wrong part, even those of a list or an object that is itself too long.

    Raises:
        ProblemError: 422 if there are too many.
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


def _too_many(detail: str, where: str) -> ProblemError:
    return invalid("invalid-request", "The request is not as it should be", detail, where)


def _file_name(given: Feedback, ids: list[str], caller: Caller) -> str:
    """Return the file name of a request.

    The same labels of the same caller give the same name, in any order. If a ``known_at`` differs,
    the name differs too, because the new file may correct the first one.
    """
    label_times = sorted(
        [label_id, _iso(label.known_at) if label.known_at else None]
        for label_id, label in zip(ids, given.labels, strict=True)
    )
    return f"feedback-{hashlib.sha256(dumps([caller.name, given.corrects, sorted(caller.labels_of or ()), label_times])).hexdigest()[:32]}.parquet"  # noqa: E501


def _write(files: Any, given: Feedback, ids: list[str], caller: Caller, name: str) -> bool:
    """Write the file. Return True if it already existed.

    A file contains one request of one caller. Its metadata contain the caller's rights, which
    ``ingest`` enforces.
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
    rights = {
        "corrects": dumps(given.corrects),
        "labels_of": dumps(sorted(caller.labels_of) if caller.labels_of is not None else None),
    }
    schema = SCHEMA.with_metadata({**(SCHEMA.metadata or {}), **rights})
    files.write(
        given.model,
        name,
        [pa.Table.from_arrays([array_of(columns[field.name], field.type) for field in SCHEMA], schema=schema)],
    )
    return False


def _label_id(model: str, label: Label) -> str:
    """Return the id of an outcome.

    The same outcome sent again has the same id. A different label of the same prediction has a
    different id.
    """
    at = _iso(label.event_timestamp) if label.event_timestamp else None
    entity = sorted(label.entity.items()) if label.entity else None
    return hashlib.sha256(dumps([model, label.prediction_id, entity, at, float(label.label)])).hexdigest()[:32]


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _wrong(error: ValidationError) -> ProblemError:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".") or "body"
    return invalid("invalid-request", "The request is not as it should be", first["msg"], where)
