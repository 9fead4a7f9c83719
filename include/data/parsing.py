"""The rows of a file as they were written: text of CSV, values of JSON, Arrow's arrays of Parquet. What they mean is decided in ``conversion``."""

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

from include.data.contents import Unreadable, decode, too_large
from include.data.printable import printable, said, shown
from include.projects.base import Source

LONG = 300  # digits of an integer in JSON: a longer one is kept as text
BATCH = 65_536  # rows of a Parquet file that are decoded at once


class Number(str):
    """A number in JSON, as it is written: a float would change it."""

    __slots__ = ()


@dataclass
class Parsed:
    """Rows as they were written.

    Attributes:
        names: the file's columns, with repetitions.
        columns: by name; Arrow's array, or a list of Python's values (JSON; numbers are ``int`` or ``Number``).
        rows: their number.
    """

    names: list[str]
    columns: dict[str, pa.Array | list[Any]]
    rows: int

    def record(self, row: int) -> str:
        """A row as JSON, for the quarantine. Numbers that a float does not hold exactly, and all that JSON has no type for, are text."""
        return json.dumps({name: _plain(self.value(name, row)) for name in self.columns}, default=str)

    def value(self, name: str, row: int) -> Any:
        """A value as it was written; one of Arrow that Python cannot hold is text."""
        return _value(self.columns[name], row)


def parse(source: Source, kind: str, content: bytes) -> Parsed:
    """Parse a content that is not empty.

    Raises:
        Unreadable, or any error of the libraries: it is not of that kind.
    """
    return {"csv": parse_csv, "json": parse_json, "parquet": parse_parquet}[kind](source, content)


def parse_csv(source: Source, content: bytes) -> Parsed:
    """Every value as text; nothing between two delimiters, and ``""``, is no value.

    Arrow's reader, because pandas' fills up lines that are too short and shifts those that are too long. Arrow takes quotes that are not closed, or not
    followed by a delimiter, for part of the value. So a file with quotes is checked by Python's strict reader first.
    """
    text = decode(source, content)
    if not text.strip():
        raise Unreadable("there is nothing in it", rule="empty_file")
    if '"' in text:
        csv.field_size_limit(2**31 - 1)
        try:
            deque(csv.reader(io.StringIO(text, newline=""), delimiter=source.delimiter, strict=True), maxlen=0)
        except csv.Error as error:
            wrong = "a quoted value does not end" if "unexpected end" in str(error) else f"a quote within a value is not doubled ({said(error)})"
            raise Unreadable(wrong, 'write a quote within a quoted value twice (""), or was it cut off? Have it sent again') from error
    encoded = text.encode()
    del text
    read = pacsv.ReadOptions(block_size=max(len(encoded), 1))  # else a value that does not fit into a block is an error
    parsing = pacsv.ParseOptions(newlines_in_values=True, delimiter=source.delimiter)
    header = pacsv.read_csv(io.BytesIO(_header(encoded)), parse_options=parsing).column_names
    as_text = pacsv.ConvertOptions(strings_can_be_null=True, null_values=[""], column_types=dict.fromkeys(header, pa.string()))
    table = pacsv.read_csv(io.BytesIO(encoded), read_options=read, parse_options=parsing, convert_options=as_text)
    return _of_table(source, table)


def parse_json(source: Source, content: bytes) -> Parsed:
    """A list of objects, or objects one a line (JSON Lines)."""
    text = decode(source, content).strip()
    if not text:
        raise Unreadable("there is nothing in it", rule="empty_file")
    records = _records(text)
    names = list(records[0]) if records else []
    for number, record in enumerate(records, 1):
        if record.keys() != records[0].keys():
            differing = ", ".join(shown(name) for name in sorted(record.keys() ^ records[0].keys()))
            raise Unreadable(f"object {number} and the first one differ in their names ({differing})", "write null for what is missing")
    columns = {_renamed(source, name): [record[name] for record in records] for name in names}
    return Parsed([_renamed(source, name) for name in names], columns, len(records))


def parse_parquet(source: Source, content: bytes) -> Parsed:
    """Columns of single values, in batches. Texts are decoded from their dictionaries within the source's limit only.

    A column of lists or structs is refused before it is decoded: no declared type can hold it.
    """
    schema = pq.ParquetFile(pa.BufferReader(content)).schema_arrow
    if len(set(schema.names)) < len(schema.names):  # it cannot be read by name; the check of the columns says which it is
        return Parsed([_renamed(source, name) for name in schema.names], {}, pq.read_metadata(pa.BufferReader(content)).num_rows)
    file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=[f.name for f in schema if _is_text(f.type)], page_checksum_verification=True)
    nested = {f.name: f.type for f in schema if pa.types.is_nested(f.type)}
    rows = file.metadata.num_rows
    if nested:
        name, what = next(iter(nested.items()))
        raise Unreadable(f"column {shown(name)} is of {printable(str(what))}", "write single values, a column each", rule="wrong_type")
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
    """The first line, with line ends in quoted names."""
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
        records = _loads(text, "it")
        if not all(isinstance(record, dict) for record in records):
            raise Unreadable("it is not a list of objects", "write one object a row: [{...}, {...}], or one a line")
        return records
    if not text.startswith("{"):
        raise Unreadable("it is neither a list of objects nor one object a line", "write one object a row: [{...}, {...}], or one a line")
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = _loads(line, f"line {number}")
        except Unreadable:
            if number == 1 and _is_one_object(text):
                raise Unreadable("it is one object over several lines", "write a list of objects, or one object a line") from None
            raise
        if not isinstance(record, dict):
            raise Unreadable(f"line {number} is no object", "write one object a line")
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
        raise Unreadable(f"{what} is no JSON ({said(error)})", todo) from error


def _integer(text: str) -> int | Number:
    return int(text) if len(text) <= LONG else Number(text)


def _no_number(text: str) -> Number:
    """NaN and infinity are none of JSON; as text they are of no type either."""
    return Number(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Unreadable(f"an object has the name {shown(twice)} twice", "write each name once an object")
    return made


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=Number, parse_constant=_no_number, object_pairs_hook=_object)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _decoded_bytes(column: pa.Array) -> int:
    """What it takes without its dictionary: a text of a megabyte that a million rows share is a kilobyte of Parquet."""
    if not isinstance(column, pa.DictionaryArray):
        return column.nbytes
    values = column.dictionary
    if not (_is_text(values.type) or pa.types.is_string_view(values.type)):
        return len(column) * 8 + values.nbytes
    lengths = pc.binary_length(values).cast(pa.int64())
    return len(column) * 4 + (pc.sum(lengths.take(column.indices)).as_py() or 0)


def _flat(column: pa.Array) -> pa.Array:
    """Plain values: of a dictionary, or of runs."""
    while isinstance(column, pa.DictionaryArray | pa.RunEndEncodedArray):
        column = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else pc.run_end_decode(column)
    return column


def _value(column: pa.Array | list[Any], row: int) -> Any:
    if isinstance(column, list):
        return column[row]
    try:
        return column[row].as_py()
    except (ValueError, OverflowError):  # text that is not UTF-8; a time that Python cannot hold
        one = column.slice(row, 1)
        if _is_text(one.type):
            return bytes(one.cast(pa.large_binary() if "large" in str(one.type) else pa.binary())[0].as_py()).decode("utf-8", "backslashreplace")
        return str(one.cast(pa.int64())[0].as_py())


def _plain(value: Any) -> Any:
    """For JSON."""
    if isinstance(value, Number):
        try:
            number = float(value)
            return number if Decimal(repr(number)) == Decimal(value) else str(value)
        except (ArithmeticError, ValueError):
            return str(value)
    if isinstance(value, float) and value - value != 0:  # NaN and infinity
        return str(value)
    return value
