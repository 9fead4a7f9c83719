"""Decompress and decode the bytes of a file, and guess the format of unreadable content."""

import csv
import re
from contextlib import suppress

import pyarrow as pa

from include.data.printable import error_text, shown
from include.projects.base import Source

CHUNK = 2**20
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
UNPACKED_NAMES = (".gz", ".gzip", ".zst", ".zstd")
# The longer ones come first.
BOMS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
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


class UnreadableError(ValueError):
    """Raised when content cannot be read. The message has the reason, and ``todo`` the fix.

    Attributes:
        rule: the rule of the refusal.
    """

    def __init__(self, message: str, todo: str = "have it sent again", rule: str = "unreadable"):
        super().__init__(message)
        self.todo, self.rule = todo, rule


def unpack(content: bytes, limit: int) -> bytes:
    """Return the decompressed content of a gzip or zstd file, and any other content unchanged.

    The format is detected from the first bytes.

    Raises:
        UnreadableError: it is damaged, or contains more than ``limit`` bytes. Decompression stops
            at that limit.
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
        raise UnreadableError(
            f"it looks like {codec}, and cannot be decompressed ({error_text(error)})",
            "it was cut off or damaged: have it sent again",
        ) from error
    unpacked = b"".join(parts)
    inner = _packed(unpacked)
    if inner is not None:
        raise UnreadableError(f"it is {inner} within {codec}", "have it compressed once only")
    return unpacked


def too_large(what: str, limit: int) -> UnreadableError:
    return UnreadableError(
        f"{what}; the source's max_bytes is {limit:,}",
        "have it split, or raise max_bytes of the source",
        rule="too_large",
    )


def decode(source: Source, content: bytes) -> str:
    """Return the text of a CSV or JSON file in the source's encoding, without a byte order mark.

    Raises:
        UnreadableError: it is in another encoding. The message names a likely one.
    """
    try:
        text = content.decode(source.encoding)
    except (UnicodeError, ValueError) as error:
        raise UnreadableError(f"it is not in {source.encoding} ({error_text(error)})", "") from error
    return text.removeprefix("\ufeff")


def looks_like(source: Source, content: bytes, kind: str) -> tuple[str, str]:
    """Guess the format of content that cannot be read as ``kind`` (csv, json or parquet).

    Returns:
        ("it looks like ...", "do ..."), or empty texts if the format is unknown.
    """
    if is_packed(content):  # unpack() has reported it
        return "", ""
    head = content[:4096]
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            if name == "Parquet" and kind == "parquet":
                return (
                    ("it begins as Parquet and does not end as such", "it was cut off: have it sent again")
                    if not content.endswith(b"PAR1")
                    else ("", "")
                )
            if name == "a zip archive" and b"xl/" in content:
                name = "an Excel workbook (xlsx)"
            return f"it looks like {name}", f"have it sent as {kind}" if name != "Parquet" else "name it .parquet"
    encoding = _wide(head)
    if encoding and encoding.lower() != source.encoding.lower():
        return (
            f"it looks like {encoding}",
            f"declare encoding='{encoding.lower()}' for source '{source.name}', or have it sent in {source.encoding}",
        )
    if (
        not encoding
        and source.encoding.lower().startswith(("utf-16", "utf-32", "utf16", "utf32"))
        and head[:64].isascii()
    ):
        return (
            "it looks like text in utf-8",
            f"declare encoding='utf-8' for source '{source.name}', or have it sent in {source.encoding}",
        )
    with suppress(UnicodeError, ValueError):
        return _looks_like_text(source, content.decode(source.encoding).removeprefix("\ufeff"), kind)
    encoding = _guessed(content)
    if encoding:
        return (
            f"it looks like text in {encoding}",
            f"declare encoding='{encoding}' for source '{source.name}', or have it sent in {source.encoding}",
        )
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
        return (
            ("it ends in the middle of a value", "it was cut off: have it sent again")
            if not text.rstrip().endswith(("}", "]"))
            else ("", "")
        )
    if kind != "csv":
        return (
            ("it looks like CSV", "name it .csv")
            if len(_fields(start, ",")) > 1 or delimiter_of(source, text)
            else ("", "")
        )
    other = delimiter_of(source, text)
    if other and other != source.delimiter:
        shown_as = DELIMITERS[other]
        todo = (
            f"declare delimiter={other!r} for source '{source.name}', or have it sent with"
            f" {DELIMITERS.get(source.delimiter, shown(source.delimiter))}"
        )
        return f"it looks like CSV with the delimiter {shown_as}", todo
    return "", ""


def delimiter_of(source: Source, text: str) -> str | None:
    """Return the delimiter of the first line: the one that yields most of the source's columns.

    Return None if that is the source's own delimiter, or if it cannot be determined.
    """
    line = text.partition("\n")[0].rstrip("\r")
    columns = {*source.file_columns, *source.rename}
    matches = {
        delimiter: len(columns & {field.strip() for field in _fields(line, delimiter)}) for delimiter in DELIMITERS
    }
    best = max(matches, key=lambda delimiter: matches[delimiter])
    if matches[best] > max(1, matches.get(source.delimiter, 0)):
        return best
    if matches.get(source.delimiter):
        return None
    # None of the columns is found: use what the values of several lines suggest.
    with suppress(csv.Error):
        sniffed = csv.Sniffer().sniff(text[:4096], "".join(DELIMITERS)).delimiter
        return sniffed if len(_fields(line, sniffed)) > 1 and sniffed != source.delimiter else None
    return None


def _fields(line: str, delimiter: str) -> list[str]:
    with suppress(csv.Error):
        return next(csv.reader([line.partition("\n")[0]], delimiter=delimiter), [])
    return []


def is_packed(content: bytes) -> bool:
    """Return whether the content is compressed with gzip or zstd."""
    return _packed(content) is not None


def _packed(content: bytes) -> str | None:
    return next((codec for magic, codec in PACKED.items() if content.startswith(magic)), None)


def _wide(head: bytes) -> str | None:
    """Return UTF-16, UTF-32 or None, by the byte order mark or the positions of zero bytes."""
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
