"""Convert values to the declared types: exactly, or not at all.

An integer or a time is stored as written, or it is wrong. A float is stored as the nearest value.
It is wrong if, rounded to the written number of digits, it differs from the written number: 0.1 is
correct, 9007199254740993 and 0.12345678901234567891 are not. An integer is never converted by way
of a float.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from include.data import times
from include.data.parsing import Number
from include.data.tables import ARROW
from include.projects.base import DType, Source

LARGEST, SMALLEST = 2**63 - 1, -(2**63)
SAFE = 2**53 - 1  # a larger float may represent several integers
INTEGER = r"^[+-]?[0-9]+(\.0*)?$"
FLOAT = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,6})?$"
COMMA = r"^[+-]?([0-9]+(,[0-9]*)?|,[0-9]+)([eE][+-]?[0-9]{1,6})?$"


class Typed(NamedTuple):
    """A converted column.

    ``values`` are of the declared type, null if missing. ``present`` and ``wrong`` are [rows].
    ``hint`` suggests a declaration, or is empty.
    """

    values: pa.Array
    present: np.ndarray
    wrong: np.ndarray
    hint: str = ""


def convert(source: Source, column: str, dtype: DType, raw: pa.Array | list[Any], kind: str) -> Typed:
    """Convert a column of a file to the declared type.

    Args:
        raw: the result of ``parsing``.
        kind: csv, json or parquet. A decimal comma applies to text in CSV. A date format applies to
            text in CSV and JSON.
    """
    if isinstance(raw, list):
        present = np.array([value is not None for value in raw], dtype=bool)
        text, accepted = _as_text(dtype, raw)
    else:
        present = _has_value(raw)
        if not _is_text(raw.type):
            values = _of_arrow(source, dtype, raw)
            return Typed(
                values,
                present,
                present & _missing(values),
                times.zone_hint(source, raw.type) if dtype == "timestamp" else "",
            )
        text = _valid(raw)
        accepted = np.ones(len(raw), dtype=bool)
    if dtype == "timestamp":
        values = times.of_text(source, column, pc.utf8_trim_whitespace(text))
    else:
        values = _TEXT[dtype](source if kind == "csv" else source.model_copy(update={"decimal": "."}), text)
    values = pc.if_else(pa.array(accepted), values, pa.scalar(None, values.type))
    wrong = present & _missing(values)
    return Typed(values, present, wrong, _hint(source, column, dtype, text, wrong, kind))


def _hint(source: Source, column: str, dtype: DType, text: pa.Array, wrong: np.ndarray, kind: str) -> str:
    if not wrong.any():
        return ""
    some = [value for value in text.take(pa.array(np.flatnonzero(wrong)[:1000])).to_pylist() if value]
    if dtype == "timestamp" and some:
        return times.hint(source, column, some)
    if (
        dtype in ("int64", "float64")
        and kind == "csv"
        and source.decimal == "."
        and some
        and all(_matches_comma(value) for value in some)
    ):
        return (
            f"they look like numbers with a decimal comma: declare decimal=',' for source '{source.name}', or have them"
            " sent with a point"
        )
    return ""


def _matches_comma(value: str) -> bool:
    return "," in value and bool(pc.match_substring_regex(pa.scalar(value.strip()), COMMA).as_py())


# --- JSON's values as text --------------------------------------------------------------------


def _as_text(dtype: DType, values: list[Any]) -> tuple[pa.Array, np.ndarray]:
    """Return the values as text, and which of them may be of the type.

    For example, true is not accepted as a number, and a number is not accepted as text.
    """
    text: list[str | None] = []
    for value in values:
        kind = type(value)
        if kind is str:
            text.append(value if _storable(value) else None)
        elif kind is bool:
            text.append(str(value).lower() if dtype == "bool" else None)
        elif kind is int or kind is Number:
            text.append(str(value) if dtype in ("int64", "float64", "bool") else None)
        else:
            text.append(None)
    return pa.array(text, pa.string()), np.array([one is not None for one in text], dtype=bool)


def _storable(value: str) -> bool:
    """Return whether text can be written as UTF-8, that is, contains no lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- text -------------------------------------------------------------------------------------


def _strings(_source: Source, text: pa.Array) -> pa.Array:
    """Return the texts, null for those with a NUL.

    A NUL comes from a broken file or from UTF-16, and Postgres cannot store it.
    """
    return _only(text, pc.invert(pc.match_substring(text, "\x00")))


def _integers(source: Source, text: pa.Array) -> pa.Array:
    text = _with_point(source, text)
    text = _only(text, pc.match_substring_regex(text, INTEGER))
    text = times.replaced(text, r"\.0*$", "")
    text = times.replaced(text, r"^\+", "")
    text = times.replaced(text, r"^(-?)0+([0-9])", r"\1\2")
    text = _only(text, pc.less_equal(pc.utf8_length(text), 20))
    return _in_range(pc.cast(text, pa.decimal128(38, 0)))


def _floats(source: Source, text: pa.Array) -> pa.Array:
    text = _with_point(source, text)
    text = _only(text, pc.match_substring_regex(text, FLOAT))
    values = pc.cast(text, pa.float64())
    # 15 digits are always exact, unless the number is too small or too large.
    plain = pc.and_(pc.less_equal(pc.utf8_length(text), 15), pc.invert(pc.match_substring_regex(text, "[eE]")))
    plain = pc.or_(plain, pc.equal(pc.cast(values, pa.string()), text))
    doubtful = np.flatnonzero(pc.fill_null(pc.invert(plain), False).to_numpy(zero_copy_only=False))
    if not len(doubtful):
        return values
    some = pa.array(doubtful)
    right = [
        _same_number(Decimal(one), value)
        for one, value in zip(text.take(some).to_pylist(), values.take(some).to_pylist(), strict=True)
    ]
    good = np.ones(len(text), dtype=bool)
    good[doubtful] = right
    return _only(values, pa.array(good))


def _booleans(_source: Source, text: pa.Array) -> pa.Array:
    text = pc.utf8_lower(pc.utf8_trim_whitespace(text))
    true, false = (pc.is_in(text, value_set=pa.array(words)) for words in (["true", "1"], ["false", "0"]))
    return _only(true, pc.or_(true, false))


_TEXT: dict[DType, Callable[[Source, pa.Array], pa.Array]] = {
    "string": _strings,
    "int64": _integers,
    "float64": _floats,
    "bool": _booleans,
}


def _with_point(source: Source, text: pa.Array) -> pa.Array:
    text = pc.utf8_trim_whitespace(text)
    return (
        text
        if source.decimal == "."
        else pc.replace_substring(_only(text, pc.match_substring_regex(text, COMMA)), ",", ".")
    )


def _same_number(written: Decimal, value: float) -> bool:
    """Return whether the float, rounded to the written number of digits, is the written number.

    A float halfway between two numbers matches both.
    """
    if value - value != 0:
        return False
    _, digits, exponent = written.as_tuple()
    if not written or value == 0:
        return not written and value == 0
    text = "".join(map(str, digits))
    # The position of the last digit that is not 0.
    last = int(exponent) + len(text) - len(text.rstrip("0"))
    return abs(Decimal(value) - written) <= Decimal((0, (5,), last - 1))


# --- Arrow's types ----------------------------------------------------------------------------


def _of_arrow(source: Source, dtype: DType, raw: pa.Array) -> pa.Array:
    """Convert values of Arrow's types other than text. Unconvertible values become null."""
    kind = raw.type
    nothing = pa.nulls(len(raw), ARROW[dtype])
    if dtype == "timestamp":
        return times.of_arrow(source, raw)
    if dtype == "bool":
        if pa.types.is_boolean(kind):
            return raw
        return (
            _only(pc.equal(raw, 1), pc.is_in(raw, value_set=pa.array([0, 1], kind)))
            if pa.types.is_integer(kind)
            else nothing
        )
    if dtype == "int64":
        return _integers_of(raw) if _is_number(kind) else nothing
    if dtype == "float64":
        return _floats_of(raw) if _is_number(kind) else nothing
    return nothing


def _is_number(kind: pa.DataType) -> bool:
    is_number: bool = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return is_number


def _integers_of(raw: pa.Array) -> pa.Array:
    kind = raw.type
    if pa.types.is_uint64(kind):
        return pc.cast(_only(raw, pc.less_equal(raw, pa.scalar(LARGEST, kind))), pa.int64())
    if pa.types.is_integer(kind):
        return pc.cast(raw, pa.int64())
    if pa.types.is_floating(kind):
        wide = pc.cast(raw, pa.float64())
        return pc.cast(
            _only(wide, pc.and_(pc.equal(wide, pc.trunc(wide)), pc.less_equal(pc.abs(wide), float(SAFE)))), pa.int64()
        )
    return pa.array(
        [
            int(one) if one is not None and one == one.to_integral_value() and SMALLEST <= one <= LARGEST else None
            for one in raw.to_pylist()
        ],
        pa.int64(),
    )


def _floats_of(raw: pa.Array) -> pa.Array:
    kind = raw.type
    if pa.types.is_floating(kind):
        wide = pc.cast(raw, pa.float64())
        return _only(wide, pc.is_finite(wide))
    if pa.types.is_integer(kind):
        wide = pc.cast(raw, pa.float64(), safe=False)
        small = (
            pc.less_equal(wide, float(SAFE))
            if pa.types.is_unsigned_integer(kind)
            else pc.less_equal(pc.abs(wide), float(SAFE))
        )
        doubtful = np.flatnonzero(pc.fill_null(pc.invert(small), False).to_numpy(zero_copy_only=False))
        good = np.ones(len(raw), dtype=bool)
        good[doubtful] = [int(float(one)) == one for one in raw.take(pa.array(doubtful)).to_pylist()]
        return _only(wide, pa.array(good))
    values = []
    for one in raw.to_pylist():
        value = None if one is None else float(one)
        values.append(value if value is not None and _same_number(one, value) else None)
    return pa.array(values, pa.float64())


def _in_range(numbers: pa.Array) -> pa.Array:
    fits = pc.and_(
        pc.less_equal(numbers, pa.scalar(Decimal(LARGEST), numbers.type)),
        pc.greater_equal(numbers, pa.scalar(Decimal(SMALLEST), numbers.type)),
    )
    return pc.cast(_only(numbers, fits), pa.int64())


# --- helpers ----------------------------------------------------------------------------------


def _is_text(kind: pa.DataType) -> bool:
    is_text: bool = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return is_text


def _valid(raw: pa.Array) -> pa.Array:
    """Return the text, null where its bytes are not UTF-8. Parquet's reader does not check that."""
    text = pc.cast(raw, pa.string(), safe=False)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        checked = [
            None if one is None or not _is_utf8(one) else one.decode() for one in text.cast(pa.binary()).to_pylist()
        ]
        return pa.array(checked, pa.string())
    return text


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_value(raw: pa.Array) -> np.ndarray:
    """Return which values are present. NaN counts as missing."""
    present: np.ndarray = pc.invert(pc.is_null(raw, nan_is_null=pa.types.is_floating(raw.type))).to_numpy(
        zero_copy_only=False
    )
    return present


def _missing(values: pa.Array) -> np.ndarray:
    missing: np.ndarray = pc.is_null(values).to_numpy(zero_copy_only=False)
    return missing


def _only(values: pa.Array, good: pa.Array) -> pa.Array:
    return pc.if_else(pc.fill_null(good, False), values, pa.scalar(None, values.type))
