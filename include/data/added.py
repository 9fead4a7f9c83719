"""Columns that ingest adds: ``row_id`` without a key, and ``known_at`` from an expression."""

import hashlib

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from include.data.printable import error_text
from include.data.times import NAIVE, STORED, within_years
from include.projects.base import Source
from include.projects.source import KNOWN_AT, ROW_ID

RESULTS = ("DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS")


class ExpressionError(ValueError):
    """Raised when a source's known_at is not an expression of its columns that returns a time.

    This is a fault of the project, not of a file.
    """


def row_ids(content: bytes, rows: int) -> pa.Array:
    """Return an id of each row that is the same whenever the content is read.

    It is 32 hexadecimal digits of the content's hash, and the number of the row from 1.
    """
    digest = hashlib.sha256(content).hexdigest()[:32]
    return pa.array([f"{digest}-{number}" for number in range(1, rows + 1)], pa.string())


def known_at(source: Source, columns: dict[str, pa.Array]) -> pa.Array:
    """Evaluate ``known_at_expression`` over the typed columns: timestamp[us, UTC] [rows].

    A value is null if the expression returns null or fails for that row.

    Raises:
        ExpressionError: it cannot be evaluated over any rows.
    """
    expression = source.known_at_expression
    plain = {name: pc.cast(values, NAIVE) if values.type == STORED else values for name, values in columns.items()}
    rows = pa.table(plain)
    config: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "threads": "1",
    }
    with duckdb.connect(config=config) as connection:
        connection.register("rows", rows)
        lead = f"source '{source.name}': known_at '{expression}'"
        try:
            if len(connection.extract_statements(f"SELECT ({expression}) AS moment FROM rows")) != 1:
                raise ExpressionError(f"{lead} is not one expression; correct it in the project")
            kind = str(connection.sql(f"SELECT ({expression}) AS moment FROM rows").types[0])
            query = connection.sql(f"SELECT TRY(CAST(({expression}) AS TIMESTAMP)) AS moment FROM rows")
        except duckdb.Error as error:
            raise ExpressionError(
                f"{lead} cannot be evaluated ({error_text(error)}); mend it in the project"
            ) from error
        if kind not in RESULTS:
            raise ExpressionError(f"{lead} gives {kind}, and must give a TIMESTAMP; mend it in the project")
        moments = query.to_arrow_table()["moment"].combine_chunks()
    if len(moments) != len(rows):
        raise ExpressionError(f"{lead} gives {len(moments)} values for {len(rows)} rows, and must give one for each")
    return within_years(pc.cast(pc.cast(moments, NAIVE), pa.int64()).cast(STORED))


def add(source: Source, content: bytes, columns: dict[str, pa.Array], rows: int) -> dict[str, pa.Array]:
    """Return the columns including the added ones, in the source's order."""
    made = dict(columns)
    if source.known_at_expression:
        made[KNOWN_AT] = known_at(source, columns)
    if source.row_ids:
        made[ROW_ID] = row_ids(content, rows)
    return {column: made[column] for column in source.columns}
