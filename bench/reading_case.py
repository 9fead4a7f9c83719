"""A file of which it is known what is in it, and what its makers share."""

import csv
import io
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

AT = "2024-05-01T06:00:00Z"
MOMENT = datetime(2024, 5, 1, 6, tzinfo=UTC)
REJECTED = "rejected"  # the row must be: stored exactly is not possible, or it is no value of the type


@dataclass
class Case:
    """A file for a source with the columns ``name`` (string, key), ``value`` (of ``dtype``) and ``at`` (timestamp).

    Attributes:
        values: for each row the value that must be stored, None for no value, or ``REJECTED``; None: the file as a whole must be refused.
        rules: where the file must be refused, rules that are right.
        says: a word that a refusal's message must have.
        either: the file may also be refused, with one of ``rules``: a dialect that is not declared cannot always be told apart.
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


TEXTS = ["plain", "with space", "comma, semi; tab\t pipe| colon:", 'quote " and ""', "line\nbreak", "windows\r\nbreak", "'single'", "back\\slash",
"ümläut 漢字 🙂", "  pad  ", "0", "NULL",
         "None", "nan", "NA", "-", "#N/A", "true", "1e5", "007", "\u2028", "=1+1", "%s", "a" * 5000]  # fmt: skip


def written(rows: list[list[Any]], header: tuple[str, ...] = ("name", "value", "at"), **dialect: Any) -> str:
    out = io.StringIO()
    writer = csv.writer(out, **dialect)
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
