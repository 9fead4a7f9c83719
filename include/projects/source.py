"""The definition of a source: columns, key, when a row became known, and its file format."""

import codecs
import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self, cast
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, model_validator

from include.projects.feedback import COLUMNS as LABEL_COLUMNS
from include.projects.feedback import KEY as PREDICTION
from include.projects.feedback import PROVENANCE, ServedPredictions

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")]
DType = Literal["string", "int64", "float64", "bool", "timestamp"]
# Columns that ingest adds: ``row_id`` for a source without a key, ``known_at`` if that is an
# expression.
ROW_ID, KNOWN_AT = "row_id", "known_at"
GIB = 2**30


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reference(FrozenModel):
    """A reference: each row must refer to a row of another source (a label to a known flight)."""

    source: Name
    columns: tuple[str, ...]


class Source(FrozenModel):
    """One upstream feed: the files of ``landing/<name>/`` become the table ``<name>``.

    ``format`` is the format of the sample feed. The reader accepts CSV, JSON, JSON Lines and
    Parquet, plain or compressed with gzip or zstd.

    ``key`` identifies a row. Without a key, ingest adds the column ``row_id`` (hash of the file's
    content and row number), which becomes the key. Then no two rows are the same, and rows that are
    sent again are duplicated.

    ``known_at`` is the column with the time when a row became known. A row known after a run's
    cutoff is in the future. It may also be an expression of DuckDB's SQL on the columns, such as
    ``greatest(shipped_at, paid_at) + interval 2 days``. Its times are UTC. Then ingest adds the
    column ``known_at``.

    ``tolerance`` is the share of bad rows above which a file is refused. Below it, only the bad
    rows are quarantined.

    ``provenance`` names columns with the origin of a row. Rows of one key that differ only in these
    columns do not contradict each other.

    ``predictions``: the rows are labels of served predictions, and each prediction must exist; see
    ``Source.feedback``.
    """

    name: Name
    format: Literal["csv", "json", "parquet"] = "csv"
    columns: dict[str, DType]
    key: tuple[str, ...]
    known_at: str
    known_at_expression: str | None = Field(
        None, description="Set from known_at if that is an expression instead of a column."
    )
    row_ids: bool = Field(False, description="Set to true by an empty key.")
    nullable: tuple[str, ...] = ()
    references: Reference | None = None
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.2
    provenance: tuple[str, ...] = ()
    predictions: ServedPredictions | None = None
    rename: dict[str, str] = Field({}, description="Column of the files -> column of the source.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="Separator between the values of a CSV file.")
    decimal: Literal[".", ","] = Field(".", description="Decimal sign of numbers in CSV files.")
    encoding: str = Field("utf-8", description="Encoding of CSV and JSON files, a codec of Python.")
    date_format: str | dict[str, str] = Field(
        "", description="Format (of strptime) of times in text, for all columns or by column. Default: ISO 8601."
    )
    time_zone: str | None = Field(
        None, description="IANA time zone of times without a zone. If None, such times are refused."
    )
    truncate_times: bool = Field(
        False, description="Truncate times that are finer than a microsecond. Otherwise such times are refused."
    )
    max_bytes: int = Field(
        GIB,
        ge=1,
        description=(
            "Maximum size of a file in bytes, after decompression and as Arrow holds it. A larger file is refused."
        ),
    )

    @classmethod
    def feedback(cls, name: str = "feedback", **policy: timedelta) -> Self:
        """Return the source of labels that clients send to POST /feedback.

        It has one label for each prediction, in the column ``label``. A file is one request of an
        external client, so no file is refused because of its rows. Bad rows are quarantined, and
        the run succeeds.

        Args:
            policy: ``match_tolerance`` and ``lookback`` of
                ``include.projects.feedback.ServedPredictions``.
        """
        return cls(
            name=name,
            format="parquet",
            columns=cast(dict[str, DType], LABEL_COLUMNS),
            key=PREDICTION,
            known_at="known_at",
            tolerance=1.0,
            provenance=PROVENANCE,
            predictions=ServedPredictions(**policy),
        )

    @model_validator(mode="before")
    @classmethod
    def _with_added_columns(cls, given: Any) -> Any:
        """Add ``row_id`` if there is no key, and ``known_at`` if that is an expression."""
        if not isinstance(given, dict) or not isinstance(given.get("columns"), dict):
            return given
        made, columns = dict(given), dict(given["columns"])
        known_at = given.get("known_at")
        if (
            isinstance(known_at, str)
            and known_at not in columns
            and not known_at.isidentifier()
            and not given.get("known_at_expression")
        ):
            if KNOWN_AT in columns:
                raise ValueError(
                    f"source '{given.get('name')}': known_at is an expression, so no column may be called '{KNOWN_AT}':"
                    " rename it"
                )
            made |= {"known_at": KNOWN_AT, "known_at_expression": known_at}
            columns[KNOWN_AT] = "timestamp"
        if "key" in given and len(given["key"]) == 0:
            if ROW_ID in columns:
                raise ValueError(
                    f"source '{given.get('name')}' has no key, so no column may be called '{ROW_ID}': rename it, or"
                    " make it the key"
                )
            made |= {"key": (ROW_ID,), "row_ids": True}
            columns[ROW_ID] = "string"
        return made | {"columns": columns}

    @model_validator(mode="after")
    def _columns_exist(self) -> Self:
        named = (
            *self.key,
            self.known_at,
            *self.nullable,
            *self.provenance,
            *(self.references.columns if self.references else ()),
        )
        formats = self.date_format if isinstance(self.date_format, dict) else {}
        for column in (*named, *(LABEL_COLUMNS if self.predictions else ()), *self.rename.values(), *formats):
            if column not in self.columns:
                raise ValueError(f"source '{self.name}' names column '{column}', which is not one of its columns")
        if self.columns[self.known_at] != "timestamp":
            raise ValueError(f"source '{self.name}': known_at column '{self.known_at}' must be a timestamp")
        if self.predictions and self.key != PREDICTION:
            raise ValueError(
                f"source '{self.name}' has labels of predictions, one for each: its key must be prediction_id"
            )
        return self

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        lead = f"source '{self.name}': "
        if len(set(self.rename.values())) < len(self.rename):
            raise ValueError(f"{lead}rename gives two columns of a file the same name")
        if self.delimiter in '"\r\n' or self.delimiter == self.decimal:
            raise ValueError(
                f"{lead}delimiter {self.delimiter!r} cannot be told from quotes, line ends or the decimal sign"
                f" {self.decimal!r}"
            )
        try:
            if not isinstance(codecs.lookup(self.encoding).name and "".encode(self.encoding), bytes):
                raise LookupError
        except (LookupError, TypeError) as error:
            raise ValueError(
                f"{lead}encoding '{self.encoding}' is not a text encoding of Python, such as utf-8, utf-16 or cp1252"
            ) from error
        if self.time_zone is not None:
            try:
                ZoneInfo(self.time_zone)
            except (KeyError, ValueError, OSError) as error:
                raise ValueError(
                    f"{lead}time_zone '{self.time_zone}' is no IANA time zone, such as Europe/Berlin or UTC"
                ) from error
        for date_format in [self.date_format] if isinstance(self.date_format, str) else self.date_format.values():
            try:
                datetime.strptime(datetime(2024, 5, 1, 6, 30).astimezone().strftime(date_format), date_format)
            except (ValueError, re.error) as error:
                raise ValueError(
                    f"{lead}date_format '{date_format}' is not a format of strptime, such as %d.%m.%Y %H:%M"
                ) from error
            if date_format and "%z" not in date_format and self.time_zone is None:
                raise ValueError(
                    f"{lead}date_format '{date_format}' has no zone (%z), so declare time_zone, such as Europe/Berlin"
                    " or UTC"
                )
        return self

    @property
    def file_columns(self) -> dict[str, DType]:
        """Return the columns that a file must have, by the source's own names.

        These are all columns but those that ingest adds.
        """
        added = {*([ROW_ID] if self.row_ids else []), *([KNOWN_AT] if self.known_at_expression else [])}
        return {column: dtype for column, dtype in self.columns.items() if column not in added}

    def date_format_of(self, column: str) -> str:
        """Return the strptime format of a column's times in text. It is empty for ISO 8601."""
        return self.date_format if isinstance(self.date_format, str) else self.date_format.get(column, "")
