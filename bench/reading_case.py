"""Define a test file with known content, and the helpers to make such files."""

import csv
import io
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

AT = "2024-05-01T06:00:00Z"
MOMENT = datetime(2024, 5, 1, 6, tzinfo=UTC)
# The row must be rejected: its value cannot be stored exactly, or is not a value of the type.
REJECTED = "rejected"


@dataclass
class Case:
    """A file and the expected result of reading it.

    The source has the columns ``name`` (string, key), ``value`` (of ``dtype``) and ``at``
    (timestamp).

    Attributes:
        values: For each row the value that must be stored, None for a missing value, or
            ``REJECTED``. Without a list the whole file must be refused.
        rules: The rules that may refuse the file.
        says: A word that the message of a refusal must contain.
        either: The file may also be refused, with one of ``rules``. An undeclared dialect cannot
            always be recognized.
    """

    corpus: str
    name: str
    content: bytes
    dtype: str = "string"
    values: list[Any] | None = None
    rules: tuple[str, ...] = ()
    says: str = ""
    either: bool = False
    declared: dict[str, Any] = field(default_factory=dict)


TEXTS = [
    "plain",
    "with space",
    "comma, semi; tab\t pipe| colon:",
    'quote " and ""',
    "line\nbreak",
    "windows\r\nbreak",
    "'single'",
    "back\\slash",
    "ümläut 漢字 🙂",
    "  pad  ",
    "0",
    "NULL",
    "None",
    "nan",
    "NA",
    "-",
    "#N/A",
    "true",
    "1e5",
    "007",
    "\u2028",
    "=1+1",
    "%s",
    "a" * 5000,
]


def written(rows: list[list[Any]], header: tuple[str, ...] = ("name", "value", "at"), **dialect: Any) -> str:
    out = io.StringIO()
    writer = csv.writer(out, **dialect)
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
