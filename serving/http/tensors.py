"""Convert tensors of the Open Inference Protocol from and to JSON or raw bytes.

Raw bytes follow the JSON (the binary tensor data extension). Checks that bound the work come first:
the shape, then the number of elements, then the elements.
"""

import struct
from typing import Any, Literal, NamedTuple

import numpy as np

from serving.problems import ProblemError, invalid

# FP64, which the service uses to compute and log, represents every integer up to this one exactly.
EXACT = 2**53
FLOAT32_MAX = float(np.finfo(np.float32).max)
LENGTH = struct.Struct("<I")
MISSING = "or null where a value is missing"


class Datatype(NamedTuple):
    """A numeric datatype.

    Attributes:
        stored: The numpy type of an element of the raw tensor.
        least, most: The range of its finite values.
    """

    stored: np.dtype[Any]
    least: float
    most: float
    kind: Literal["number", "integer", "boolean"] = "number"


def _integer(bits: int, *, signed: bool) -> Datatype:
    least = -(2 ** (bits - 1)) if signed else 0
    most = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return Datatype(np.dtype(f"<{'i' if signed else 'u'}{bits // 8}"), least, most, "integer")


NUMBERS: dict[str, Datatype] = {
    "BOOL": Datatype(np.dtype("u1"), 0, 1, "boolean"),
    **{f"UINT{bits}": _integer(bits, signed=False) for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": _integer(bits, signed=True) for bits in (8, 16, 32, 64)},
    "FP16": Datatype(np.dtype("<f2"), -65504.0, 65504.0),
    # BF16 is the upper half of an FP32. numpy does not have such a type.
    "BF16": Datatype(np.dtype("<u2"), -FLOAT32_MAX, FLOAT32_MAX),
    "FP32": Datatype(np.dtype("<f4"), -FLOAT32_MAX, FLOAT32_MAX),
    "FP64": Datatype(np.dtype("<f8"), -FLOAT32_MAX, FLOAT32_MAX),
}


def check_shape(shape: Any, columns: int, most_rows: int, field: str) -> int:
    """Return the number of rows of a shape, which must be [n, columns].

    Raises:
        ProblemError: 422 if the shape is different.
    """
    if (
        type(shape) is not list
        or len(shape) != 2
        or any(type(size) is not int for size in shape)
        or shape[1] != columns
    ):
        raise wrong(f"it must be [n, {columns}]", f"{field}.shape")
    if not 1 <= shape[0] <= most_rows:
        raise wrong(f"the number of rows must be from 1 to {most_rows}", f"{field}.shape")
    rows: int = shape[0]
    return rows


def from_json(data: Any, datatype: str, rows: int, columns: int, field: str) -> np.ndarray:
    """Return the tensor [rows, columns] of flat or nested data.

    Numbers are returned as float64 (null: NaN), and BYTES as str objects (null: empty string).

    Raises:
        ProblemError: 422 if the size is wrong, or if a value does not have the datatype.
    """
    flat = _flat(data, rows, columns, field)
    if datatype == "BYTES":
        for number, value in enumerate(flat):
            if value is not None and type(value) is not str:
                raise wrong(f"it must be a string, {MISSING}", f"{field}[{number}]")
        texts = np.array(["" if value is None else value for value in flat], dtype=object)
        return texts.reshape(rows, columns)
    numbers = _plain_numbers(flat, datatype)
    if numbers is None:
        checked = [
            np.nan if value is None else _number(value, datatype, f"{field}[{number}]")
            for number, value in enumerate(flat)
        ]
        numbers = np.array(checked, dtype="float64")
    return numbers.reshape(rows, columns)


def from_bytes(raw: bytes, datatype: str, rows: int, columns: int, field: str) -> np.ndarray:
    """Return the tensor of raw bytes, in the form that ``from_json`` returns.

    In a raw tensor, numbers are little-endian, and each string follows its length in four bytes.

    Raises:
        ProblemError: 422 if the size is wrong, or if a value is not usable.
    """
    count = rows * columns
    if datatype == "BYTES":
        return np.array(_texts(raw, count, field), dtype=object).reshape(rows, columns)
    stored = NUMBERS[datatype].stored
    if len(raw) != count * stored.itemsize:
        raise wrong(f"{count} elements of {datatype} take {count * stored.itemsize} bytes, not {len(raw)}", field)
    array = np.frombuffer(raw, dtype=stored)
    if datatype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    # The negation also accepts NaN, which means a missing value.
    ok = (np.isnan(array) if array.dtype.kind == "f" else False) | ~_outside(array, datatype)
    if not ok.all():
        number = int(ok.argmin())
        raise _out_of_range(str(array[number]), datatype, f"{field}[{number}]")
    return array.astype("float64").reshape(rows, columns)


def to_bytes(values: list[float] | list[str], datatype: str) -> bytes:
    """Return the raw tensor of an output."""
    if datatype == "BYTES":
        return b"".join(LENGTH.pack(len(text)) + text for text in (str(value).encode() for value in values))
    return np.array(values, dtype=NUMBERS[datatype].stored).tobytes()


def wrong(detail: str, field: str) -> ProblemError:
    return invalid("invalid-tensor", "A tensor is not valid", detail, field)


def _flat(data: Any, rows: int, columns: int, field: str) -> list[Any]:
    """Return the elements in row-major order, after a check of their number."""
    if type(data) is not list:
        raise wrong("it must be a list", field)
    nested = [type(entry) is list for entry in data[: max(rows, rows * columns)]]
    if any(nested):
        # Nested lists of other lengths could have the right total number of elements, but in the
        # wrong columns.
        if len(data) != rows or not all(nested) or any(len(entry) != columns for entry in data):
            raise wrong(f"nested data must be {rows} lists of {columns} elements each, as the shape says", field)
        return [value for entry in data for value in entry]
    if len(data) != rows * columns:
        raise wrong(f"the shape says {rows * columns} elements, the data have {len(data)}", field)
    return data


def _plain_numbers(flat: list[Any], datatype: str) -> np.ndarray | None:
    """Return the numbers if all are clearly valid, or None if they must be checked one by one.

    This takes a tenth of the time of the single checks.
    """
    known = NUMBERS[datatype]
    plain = {int, type(None)} if known.kind == "integer" else {int, float, type(None)}
    if known.kind == "boolean" or not plain.issuperset(map(type, flat)):
        return None
    try:
        numbers = np.array([np.nan if value is None else value for value in flat], dtype="float64")
    except OverflowError:
        return None
    least, most = _limits(datatype)
    # An integer beyond a limit can be rounded to the limit itself, so values equal to a limit are
    # left to the other check.
    fine = np.isnan(numbers) | ((numbers > least) & (numbers < most))
    return numbers if fine.all() else None


def _number(value: Any, datatype: str, field: str) -> float:
    """Return a JSON value as a number of a datatype."""
    known = NUMBERS[datatype]
    if known.kind == "boolean":
        if type(value) is bool or (type(value) in (int, float) and value in (0, 1)):
            return float(value)
        raise wrong(f"it must be true or false, {MISSING}", field)
    if type(value) not in (int, float):
        raise wrong(f"it must be a number, {MISSING}", field)
    if value != value and known.kind == "number":
        return np.nan
    if known.kind == "integer" and type(value) is float and not value.is_integer():
        raise wrong(f"it must be an integer, {MISSING}", field)
    least, most = _limits(datatype)
    if not least <= value <= most:
        raise _out_of_range("", datatype, field)
    return float(value)


def _limits(datatype: str) -> tuple[float, float]:
    """Return the least and the greatest number that the service accepts for a datatype."""
    known = NUMBERS[datatype]
    return (max(known.least, -EXACT), min(known.most, EXACT)) if known.kind == "integer" else (known.least, known.most)


def _outside(array: np.ndarray, datatype: str) -> np.ndarray:
    if datatype == "BF16":
        infinite: np.ndarray = ~np.isfinite(array)
        return infinite
    least, most = _limits(datatype)
    # numpy compares in the type of the array, which must be able to represent the limit.
    outside: np.ndarray = (array < array.dtype.type(least)) | (array > array.dtype.type(most))
    return outside


def _out_of_range(value: str, datatype: str, field: str) -> ProblemError:
    least, most = _limits(datatype)
    if datatype in ("INT64", "UINT64"):
        reason = "other integers would be rounded; if that is intended, send FP64"
    else:
        reason = "the model computes with FP32" if datatype == "FP64" else f"the range of {datatype}"
    detail = f"it must be from {least:.17g} to {most:.17g} ({reason}){f', not {value}' if value else ''}"
    return invalid("not-finite", "A number is out of range", detail, field)


def _texts(raw: bytes, count: int, field: str) -> list[str]:
    texts: list[str] = []
    start = 0
    while start < len(raw):
        if len(texts) == count:
            raise wrong(f"the shape says {count} elements, the data have more", field)
        end = start + LENGTH.size
        length = LENGTH.unpack_from(raw, start)[0] if end <= len(raw) else len(raw)
        if end + length > len(raw):
            raise wrong("the element is longer than the tensor", f"{field}[{len(texts)}]")
        try:
            texts.append(raw[end : end + length].decode())
        except UnicodeDecodeError:
            raise wrong("the element is no UTF-8", f"{field}[{len(texts)}]") from None
        start = end + length
    if len(texts) != count:
        raise wrong(f"the shape says {count} elements, the data have {len(texts)}", field)
    return texts
