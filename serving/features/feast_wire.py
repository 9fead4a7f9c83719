"""Read Feast 0.67's serialized registry messages, entity keys and values.

The module does not import Feast, because that takes six seconds. Tests compare each function with
Feast's own code. Sources: ``feast/protos/feast/{core,types}/*.proto``,
``feast/infra/key_encoding_utils.py``, and https://protobuf.dev/programming-guides/encoding/
"""

import math
import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

TYPES = {1: "BYTES", 2: "STRING", 3: "INT32", 4: "INT64", 5: "DOUBLE", 6: "FLOAT", 7: "BOOL", 8: "UNIX_TIMESTAMP"}
_NUMBER = {name: number for number, name in TYPES.items()}
_U32, _I32, _I64, _F32, _F64 = (struct.Struct(form) for form in ("<I", "<i", "<q", "<f", "<d"))


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and content of each field of a protobuf message.

    The content is an integer for a varint and bytes for all other types.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a protobuf field of wire type {kind}")
        if at + size > end:
            raise ValueError("a protobuf message is cut off")
        yield tag >> 3, message[at : at + size]
        at += size


def collect(message: bytes) -> dict[int, list[Any]]:
    """Return the fields of a message by number, in their order."""
    contents: dict[int, list[Any]] = {}
    for number, content in fields(message):
        contents.setdefault(number, []).append(content)
    return contents


def value(raw: bytes | None) -> Any:
    """Return the scalar in a ``feast.types.Value``, or None if it is null, NaN or unset.

    Raises:
        ValueError: The value is a list, a set or a map.
    """
    if not raw:
        return None
    kind = raw[0]
    if kind == 0x29:  # double_val
        number = _F64.unpack_from(raw, 1)[0]
        return None if number != number else number
    if kind == 0x20:  # int64_val
        return _signed(_varint(raw, 1)[0])
    if kind == 0x12:  # string_val
        return raw[_varint(raw, 1)[1] :].decode()
    if kind == 0x35:  # float_val
        number = _F32.unpack_from(raw, 1)[0]
        return None if math.isnan(number) else number
    if kind in (0x18, 0x40):  # int32_val, unix_timestamp_val
        return _signed(_varint(raw, 1)[0])
    if kind == 0x38:  # bool_val
        return bool(_varint(raw, 1)[0])
    if kind == 0x0A:  # bytes_val
        return raw[_varint(raw, 1)[1] :]
    if raw[:2] == b"\x98\x01":  # null_val
        return None
    raise ValueError(f"a feature's value is not a scalar (field {_varint(raw, 0)[0] >> 3} of feast.types.Value)")


def values(raws: Sequence[bytes | None]) -> list[Any]:
    """Return ``value`` of each item.

    Most rows consist of doubles, which are decoded together. Each is a type byte and eight data
    bytes.
    """
    if None not in raws:
        joined = b"".join(raws)  # type: ignore[arg-type]
        if len(joined) == 9 * len(raws) and joined[::9] == b"\x29" * len(raws):
            return [None if number != number else number for number in _doubles(len(raws)).unpack(joined)]
    return [value(raw) for raw in raws]


@lru_cache
def _doubles(count: int) -> struct.Struct:
    return struct.Struct("<" + "xd" * count)


# One materialization gives many rows the same timestamp.
@lru_cache(65536)
def moment(raw: bytes | None) -> datetime | None:
    """Return the time of a ``google.protobuf.Timestamp``, or None if it is not set."""
    content = dict(fields(raw)) if raw else {}
    seconds, nanos = content.get(1, 0), content.get(2, 0)
    if not (seconds or nanos) or isinstance(seconds, bytes) or isinstance(nanos, bytes):
        return None
    return datetime.fromtimestamp(_signed(seconds) + nanos / 1e9, tz=UTC)


def seconds(raw: bytes | None) -> float:
    """Return the seconds of a ``google.protobuf.Duration``, or 0 if it is not set."""
    content = dict(fields(raw)) if raw else {}
    whole, nanos = content.get(1, 0), content.get(2, 0)
    return 0.0 if isinstance(whole, bytes) or isinstance(nanos, bytes) else _signed(whole) + _signed(nanos) / 1e9


def entity_key(columns: tuple[tuple[str, str], ...], values: tuple[Any, ...]) -> bytes:
    """Return an entity's key in an online store (version 3 of Feast's serialization).

    Args:
        columns: Name and Feast type of each join key, sorted by name.
        values: The keys' values, in the same order.
    """
    parts = [_names(columns)]
    for (_, kind), given in zip(columns, values, strict=True):
        if kind == "STRING":
            encoded = given.encode()
        elif kind == "INT32":
            encoded = _I32.pack(given)
        elif kind in ("INT64", "UNIX_TIMESTAMP"):
            encoded = _I64.pack(given)
        elif kind == "BYTES":
            encoded = given
        else:
            raise ValueError(f"Feast has no entity keys of type {kind}")
        parts += (_U32.pack(_NUMBER[kind]), _U32.pack(len(encoded)), encoded)
    return b"".join(parts)


@lru_cache
def _names(columns: tuple[tuple[str, str], ...]) -> bytes:
    """Return the common prefix of the keys of all entities with these columns."""
    parts = [_U32.pack(len(columns))]
    for name, _ in columns:
        encoded = name.encode()
        parts += (_U32.pack(2), _U32.pack(len(encoded)), encoded)  # 2 is STRING.
    return b"".join(parts)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = raw[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
