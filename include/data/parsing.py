"""The rows of a file as written: text of CSV, values of JSON, Arrow's arrays of Parquet.

``conversion`` converts them to types.
"""

import csv
import io
import json
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from include.data.contents import UnreadableError, decode, too_large
from include.data.printable import error_text, printable, shown
from include.projects.base import Source

# Digits of an integer in JSON. A longer one is kept as text.
LONG = 300
BATCH = 65_536  # rows of a Parquet file that are decoded together


class Number(str):
    """A number in JSON, as written, because a float would change it."""

    __slots__ = ()


@dataclass
class Parsed:
    """Rows as written.

    Attributes:
        names: the file's columns, with repetitions.
        columns: by name, as an Arrow array, or a list of Python's values (JSON). Numbers of JSON
            are ``int`` or ``Number``.
        rows: their number.
    """

    names: list[str]
    columns: dict[str, pa.Array | list[Any]]
    rows: int

    def record(self, row: int) -> str:
        """Return a row as JSON, for the quarantine.

        Numbers that a float cannot represent exactly are text. So are values of types that JSON
        does not have.
        """
        return json.dumps({name: _plain(self.value(name, row)) for name in self.columns}, default=str)

    def value(self, name: str, row: int) -> Any:
        """Return a value as written. Arrow values that Python cannot represent become text."""
        return _value(self.columns[name], row)


def parse(source: Source, kind: str, content: bytes) -> Parsed:
    """Parse content that is not empty.

    Raises:
        Unreadable, or any error of the libraries: it is not of that kind.
    """
    return {"csv": parse_csv, "json": parse_json, "parquet": parse_parquet}[kind](source, content)


def parse_csv(source: Source, content: bytes) -> Parsed:
    """Parse every value as text. An empty field and ``""`` are missing values.

    It uses Arrow's reader, because that of pandas pads short lines and shifts long ones. Arrow
    treats unclosed quotes, and quotes without a following delimiter, as part of the value. So a
    file with quotes is first checked by Python's strict reader.
    """
    text = decode(source, content)
    if not text.strip():
        raise UnreadableError("there is nothing in it", rule="empty_file")
    if '"' in text:
        csv.field_size_limit(2**31 - 1)
        try:
            deque(csv.reader(io.StringIO(text, newline=""), delimiter=source.delimiter, strict=True), maxlen=0)
        except csv.Error as error:
            wrong = (
                "a quoted value does not end"
                if "unexpected end" in str(error)
                else f"a quote within a value is not doubled ({error_text(error)})"
            )
            raise UnreadableError(
                wrong, 'write a quote within a quoted value twice (""), or was it cut off? Have it sent again'
            ) from error
    encoded = text.encode()
    del text
    # Otherwise a value that does not fit into a block is an error.
    read = pacsv.ReadOptions(block_size=max(len(encoded), 1))
    parsing = pacsv.ParseOptions(newlines_in_values=True, delimiter=source.delimiter)
    header = pacsv.read_csv(io.BytesIO(_header(encoded)), parse_options=parsing).column_names
    as_text = pacsv.ConvertOptions(
        strings_can_be_null=True, null_values=[""], column_types=dict.fromkeys(header, pa.string())
    )
    table = pacsv.read_csv(io.BytesIO(encoded), read_options=read, parse_options=parsing, convert_options=as_text)
    return _of_table(source, table)


def parse_json(source: Source, content: bytes) -> Parsed:
    """Parse a list of objects, or one object per line (JSON Lines)."""
    text = decode(source, content).strip()
    if not text:
        raise UnreadableError("there is nothing in it", rule="empty_file")
    records = _records(text)
    names = list(records[0]) if records else []
    for number, record in enumerate(records, 1):
        if record.keys() != records[0].keys():
            differing = ", ".join(shown(name) for name in sorted(record.keys() ^ records[0].keys()))
            raise UnreadableError(
                f"object {number} and the first one differ in their names ({differing})",
                "write null for a missing value",
            )
    columns = {_renamed(source, name): [record[name] for record in records] for name in names}
    return Parsed([_renamed(source, name) for name in names], columns, len(records))


def parse_parquet(source: Source, content: bytes) -> Parsed:
    """Parse columns of single values, in batches.

    Texts are decoded from their dictionaries only up to the source's limit. A column of lists or
    structs is refused before it is decoded, because it does not fit any declared type.
    """
    schema = pq.ParquetFile(pa.BufferReader(content)).schema_arrow
    # Such a file cannot be read by name. The check of the columns reports which column is repeated.
    if len(set(schema.names)) < len(schema.names):
        return Parsed(
            [_renamed(source, name) for name in schema.names], {}, pq.read_metadata(pa.BufferReader(content)).num_rows
        )
    file = pq.ParquetFile(
        pa.BufferReader(content),
        read_dictionary=[f.name for f in schema if _is_text(f.type)],
        page_checksum_verification=True,
    )
    nested = {f.name: f.type for f in schema if pa.types.is_nested(f.type)}
    rows = file.metadata.num_rows
    if nested:
        name, what = next(iter(nested.items()))
        raise UnreadableError(
            f"column {shown(name)} is of {printable(str(what))}",
            "write single values, a column each",
            rule="wrong_type",
        )
    if rows * len(schema) > source.max_bytes:
        raise too_large(f"it says that it has {rows:,} rows of {len(schema)} columns", source.max_bytes)
    batches, size = [], 0
    for batch in file.iter_batches(batch_size=BATCH, use_threads=False):
        size += sum(_decoded_bytes(column) for column in batch.columns)
        if size > source.max_bytes:
            raise too_large(f"its {len(content):,} bytes hold more than {source.max_bytes:,} bytes", source.max_bytes)
        batches.append(pa.record_batch([_flat(column) for column in batch.columns], names=batch.schema.names))
    if not batches:
        return Parsed([_renamed(source, name) for name in schema.names], {}, 0)
    return _of_table(source, pa.Table.from_batches(batches))


def _of_table(source: Source, table: pa.Table) -> Parsed:
    names = [_renamed(source, name) for name in table.column_names]
    arrays = (_joined(column) for column in table.columns)
    return Parsed(names, dict(zip(names, arrays, strict=True)), len(table))


def _renamed(source: Source, name: str) -> str:
    return source.rename.get(name, name)


def _joined(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)


def _header(content: bytes) -> bytes:
    """Return the first line, including line ends in quoted names."""
    end = 0
    lines = content.replace(b"\r", b"\n", 1) if b"\n" not in content[:65_536] else content
    while True:
        end = lines.find(b"\n", end) + 1
        if not end:
            return content
        line = content[:end]
        if line.strip() and line.count(b'"') % 2 == 0:
            return line


def _records(text: str) -> list[dict[str, Any]]:
    if text.startswith("["):
        records: list[dict[str, Any]] = _loads(text, "it")
        if not all(isinstance(record, dict) for record in records):
            raise UnreadableError(
                "it is not a list of objects", "write one object a row: [{...}, {...}], or one a line"
            )
        return records
    if not text.startswith("{"):
        raise UnreadableError(
            "it must be a list of objects, or one object per line",
            "write one object a row: [{...}, {...}], or one a line",
        )
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = _loads(line, f"line {number}")
        except UnreadableError:
            if number == 1 and _is_one_object(text):
                raise UnreadableError(
                    "it is one object over several lines", "write a list of objects, or one object a line"
                ) from None
            raise
        if not isinstance(record, dict):
            raise UnreadableError(f"line {number} is no object", "write one object a line")
        records.append(record)
    return records


def _is_one_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _loads(text: str, what: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        todo = "it was cut off: have it sent again" if cut else "have it written by a library for JSON"
        raise UnreadableError(f"{what} is no JSON ({error_text(error)})", todo) from error


def _integer(text: str) -> int | Number:
    return int(text) if len(text) <= LONG else Number(text)


def _no_number(text: str) -> Number:
    """Return NaN or infinity as text, which no type accepts. They are not valid JSON."""
    return Number(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UnreadableError(f"an object has the name {shown(twice)} twice", "write each name once an object")
    return made


_DECODER = json.JSONDecoder(
    parse_int=_integer, parse_float=Number, parse_constant=_no_number, object_pairs_hook=_object
)


def _is_text(kind: pa.DataType) -> bool:
    is_text: bool = (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )
    return is_text


def _decoded_bytes(column: pa.Array) -> int:
    """Return the size without the dictionary.

    A text of a megabyte that a million rows share is a kilobyte of Parquet.
    """
    if not isinstance(column, pa.DictionaryArray):
        plain: int = column.nbytes
        return plain
    values = column.dictionary
    if not (_is_text(values.type) or pa.types.is_string_view(values.type)):
        size: int = len(column) * 8 + values.nbytes
        return size
    lengths = pc.binary_length(values).cast(pa.int64())
    return len(column) * 4 + (pc.sum(lengths.take(column.indices)).as_py() or 0)


def _flat(column: pa.Array) -> pa.Array:
    """Return plain values of a dictionary or of runs."""
    while isinstance(column, pa.DictionaryArray | pa.RunEndEncodedArray):
        column = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else pc.run_end_decode(column)
    return column


def _value(column: pa.Array | list[Any], row: int) -> Any:
    if isinstance(column, list):
        return column[row]
    try:
        return column[row].as_py()
    # Text that is not UTF-8, or a time that Python cannot represent.
    except (ValueError, OverflowError):
        one = column.slice(row, 1)
        if _is_text(one.type):
            return bytes(one.cast(pa.large_binary() if "large" in str(one.type) else pa.binary())[0].as_py()).decode(
                "utf-8", "backslashreplace"
            )
        return str(one.cast(pa.int64())[0].as_py())


def _plain(value: Any) -> Any:
    """Convert a value for JSON."""
    if isinstance(value, Number):
        try:
            number = float(value)
            return number if Decimal(repr(number)) == Decimal(value) else str(value)
        except (ArithmeticError, ValueError):
            return str(value)
    if isinstance(value, float) and value - value != 0:  # NaN and infinity
        return str(value)
    return value
