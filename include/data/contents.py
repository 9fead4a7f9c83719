"""The bytes of a file: decompressed within a limit, decoded, and, where they are not what they should be, what they look like."""

import csv
import re
from contextlib import suppress

import pyarrow as pa

from include.data.printable import said, shown
from include.projects.base import Source

CHUNK = 2**20
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
UNPACKED_NAMES = (".gz", ".gzip", ".zst", ".zstd")
BOMS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # the longer ones first
MAGIC = {
    b"PAR1": "Parquet",
    b"PARE": "encrypted Parquet",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Excel workbook (xls)",
    b"ARROW1": "an Arrow (Feather) file",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"SQLite format 3\x00": "a SQLite database",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
}
DELIMITERS = {";": "';'", "\t": "'\\t' (tab)", "|": "'|'", ",": "','", ":": "':'", "^": "'^'"}


class Unreadable(ValueError):
    """The content cannot be read; the message says why, and ``todo`` what to do about it.

    Attributes:
        rule: of the refusal.
    """

    def __init__(self, message: str, todo: str = "have it sent again", rule: str = "unreadable"):
        super().__init__(message)
        self.todo, self.rule = todo, rule


def unpack(content: bytes, limit: int) -> bytes:
    """The content of a gzip or zstd file, which is known by its first bytes; any other content as it is.

    Raises:
        Unreadable: it is damaged, or holds more than ``limit`` bytes; no more than that is ever decompressed.
    """
    codec = _packed(content)
    if codec is None:
        return content
    parts, size = [], 0
    try:
        with pa.CompressedInputStream(pa.BufferReader(content), codec) as stream:
            while part := stream.read(CHUNK):
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise too_large(f"its {len(content):,} bytes of {codec} hold more than {limit:,} bytes", limit)
    except OSError as error:
        raise Unreadable(f"it looks like {codec}, and cannot be decompressed ({said(error)})", "it was cut off or damaged: have it sent again") from error
    unpacked = b"".join(parts)
    inner = _packed(unpacked)
    if inner is not None:
        raise Unreadable(f"it is {inner} within {codec}", "have it compressed once only")
    return unpacked


def too_large(what: str, limit: int) -> Unreadable:
    return Unreadable(f"{what}; the source's max_bytes is {limit:,}", "have it split, or raise max_bytes of the source", rule="too_large")


def decode(source: Source, content: bytes) -> str:
    """The text of a CSV or JSON file in the encoding that the source declares; a mark of the byte order is taken away.

    Raises:
        Unreadable: it is in another encoding; the message names a likely one.
    """
    try:
        text = content.decode(source.encoding)
    except (UnicodeError, ValueError) as error:
        raise Unreadable(f"it is not in {source.encoding} ({said(error)})", "") from error
    return text.removeprefix("\ufeff")


def looks_like(source: Source, content: bytes, kind: str) -> tuple[str, str]:
    """What a content that cannot be read as ``kind`` (csv, json or parquet) looks like, and what to do.

    Returns:
        ("it looks like ...", "do ..."); empty texts where nobody can tell.
    """
    if is_packed(content):  # unpack() has said it
        return "", ""
    head = content[:4096]
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            if name == "Parquet" and kind == "parquet":
                return ("it begins as Parquet and does not end as such", "it was cut off: have it sent again") if not content.endswith(b"PAR1") else ("", "")
            if name == "a zip archive" and b"xl/" in content:
                name = "an Excel workbook (xlsx)"
            return f"it looks like {name}", f"have it sent as {kind}" if name != "Parquet" else "name it .parquet"
    encoding = _wide(head)
    if encoding and encoding.lower() != source.encoding.lower():
        return f"it looks like {encoding}", f"declare encoding='{encoding.lower()}' for source '{source.name}', or have it sent in {source.encoding}"
    if not encoding and source.encoding.lower().startswith(("utf-16", "utf-32", "utf16", "utf32")) and head[:64].isascii():
        return "it looks like text in utf-8", f"declare encoding='utf-8' for source '{source.name}', or have it sent in {source.encoding}"
    with suppress(UnicodeError, ValueError):
        return _looks_like_text(source, content.decode(source.encoding).removeprefix("\ufeff"), kind)
    encoding = _guessed(content)
    if encoding:
        return f"it looks like text in {encoding}", f"declare encoding='{encoding}' for source '{source.name}', or have it sent in {source.encoding}"
    return "it looks like binary data", f"have it sent as {kind}"


def _looks_like_text(source: Source, text: str, kind: str) -> tuple[str, str]:
    start = text[:4096].lstrip()
    lower = start[:200].lower()
    if lower.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "it looks like an HTML page", "an error page, or a page of a log-in? Have the data sent instead"
    if lower.startswith(("<?xml", "<")) and re.match(r"<[?!a-z]", lower):
        return "it looks like XML", f"have it sent as {kind}"
    if start.startswith(("{", "[")):
        if kind != "json":
            return "it looks like JSON", "name it .json"
        return ("it ends in the middle of a value", "it was cut off: have it sent again") if not text.rstrip().endswith(("}", "]")) else ("", "")
    if kind != "csv":
        return ("it looks like CSV", "name it .csv") if len(_fields(start, ",")) > 1 or delimiter_of(source, text) else ("", "")
    other = delimiter_of(source, text)
    if other and other != source.delimiter:
        shown_as = DELIMITERS[other]
        todo = f"declare delimiter={other!r} for source '{source.name}', or have it sent with {DELIMITERS.get(source.delimiter, shown(source.delimiter))}"
        return f"it looks like CSV with the delimiter {shown_as}", todo
    return "", ""


def delimiter_of(source: Source, text: str) -> str | None:
    """The delimiter that the first line has: the one that gives most of the source's columns."""
    line = text.partition("\n")[0].rstrip("\r")
    wanted = {*source.file_columns, *source.rename}
    found = {delimiter: len(wanted & {field.strip() for field in _fields(line, delimiter)}) for delimiter in DELIMITERS}
    best = max(found, key=lambda delimiter: found[delimiter])
    if found[best] > max(1, found.get(source.delimiter, 0)):
        return best
    if found.get(source.delimiter):
        return None
    with suppress(csv.Error):  # none of the columns is there: what the values of several lines suggest
        sniffed = csv.Sniffer().sniff(text[:4096], "".join(DELIMITERS)).delimiter
        return sniffed if len(_fields(line, sniffed)) > 1 and sniffed != source.delimiter else None
    return None


def _fields(line: str, delimiter: str) -> list[str]:
    with suppress(csv.Error):
        return next(csv.reader([line.partition("\n")[0]], delimiter=delimiter), [])
    return []


def is_packed(content: bytes) -> bool:
    """Whether the content is compressed with gzip or zstd."""
    return _packed(content) is not None


def _packed(content: bytes) -> str | None:
    return next((codec for magic, codec in PACKED.items() if content.startswith(magic)), None)


def _wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by its mark or by where its zero bytes are."""
    for bom, name in BOMS.items():
        if head.startswith(bom):
            return name
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if len(head) >= 8 and max(even, odd) > 0.3 * len(head) / 2 and min(even, odd) < 0.05 * len(head) / 2:
        return "UTF-16-LE" if odd > even else "UTF-16-BE"
    return None


def _guessed(content: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(content[: 256 * 1024]).best()
    return best.encoding if best is not None else None
