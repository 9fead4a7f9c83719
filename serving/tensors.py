"""Tensors of the Open Inference Protocol: in JSON, or raw behind it (the binary tensor data extension)."""

import struct
from typing import Any

import numpy as np

from serving.problems import Problem, invalid

NUMBERS: dict[str, Any] = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
LENGTH = struct.Struct("<I")


def of_json(data: Any, datatype: str, field: str) -> np.ndarray:
    """A flat array (float64, or objects for BYTES) of a tensor's data, flat or nested; null: a missing value.

    Raises:
        Problem: 422, a value is of another type.
    """
    if type(data) is not list:
        raise _wrong("it must be a list", field)
    flat: list[Any] = []
    for entry in data:
        if type(entry) is list:
            flat.extend(entry)
        else:
            flat.append(entry)
    if datatype == "BYTES":
        for number, value in enumerate(flat):
            if value is not None and type(value) is not str:
                raise _wrong("it must hold strings, or null where a value is missing", f"{field}[{number}]")
        return np.array(["" if value is None else value for value in flat], dtype=object)
    for number, value in enumerate(flat):
        if value is not None and type(value) not in (int, float):
            raise _wrong("it must hold numbers, or null where a value is missing", f"{field}[{number}]")
    try:
        return np.array([np.nan if value is None else value for value in flat], dtype="float64")
    except OverflowError:
        raise invalid("not-finite", "A number is too great", "its numbers must fit into 32 bits", field) from None


def of_bytes(raw: bytes, datatype: str, field: str) -> np.ndarray:
    """As ``of_json``, of a raw tensor: numbers little-endian, each string after its length in four bytes."""
    if datatype != "BYTES":
        size = NUMBERS[datatype].itemsize
        if len(raw) % size:
            raise _wrong(f"{len(raw)} bytes are no whole number of {datatype}", field)
        return np.frombuffer(raw, dtype=NUMBERS[datatype]).astype("float64")
    texts: list[str] = []
    start = 0
    while start < len(raw):
        end = start + LENGTH.size
        length = LENGTH.unpack_from(raw, start)[0] if end <= len(raw) else len(raw)
        if end + length > len(raw):
            raise _wrong(f"its element {len(texts)} is longer than the tensor", field)
        try:
            texts.append(raw[end : end + length].decode())
        except UnicodeDecodeError:
            raise _wrong(f"its element {len(texts)} is no UTF-8", field) from None
        start = end + length
    return np.array(texts, dtype=object)


def to_bytes(values: list[float] | list[str], datatype: str) -> bytes:
    """The raw tensor of an output."""
    if datatype == "BYTES":
        return b"".join(LENGTH.pack(len(text)) + text for text in (str(value).encode() for value in values))
    return np.array(values, dtype=NUMBERS[datatype]).tobytes()


def shaped(flat: np.ndarray, shape: Any, columns: int, field: str) -> np.ndarray:
    """The array in its shape [n, columns].

    Raises:
        Problem: 422, it has another shape, or other data than its shape says.
    """
    if type(shape) is not list or len(shape) != 2 or any(type(size) is not int or size < 0 for size in shape) or shape[1] != columns:
        raise _wrong(f"it must be [n, {columns}]", f"{field}.shape")
    if shape[0] * shape[1] != flat.size:
        raise _wrong(f"the shape says {shape[0] * shape[1]} elements, the data have {flat.size}", f"{field}.data")
    return flat.reshape(shape)


def _wrong(detail: str, field: str) -> Problem:
    return invalid("invalid-tensor", "A tensor is not as it should be", detail, field)
