"""Convert times from text and from Arrow's types to UTC and microseconds.

Times without a zone are rejected, unless the source declares one.
"""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from include.data.tables import ARROW
from include.projects.base import Source

STORED = ARROW["timestamp"]
NAIVE = pa.timestamp("us")
DATE, CLOCK, ZONE = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    r"[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,18})?)?",
    r" ?(Z|[+-][0-9]{2}(:?[0-9]{2})?)",
)
ZONED, LOCAL = f"^{DATE}{CLOCK}{ZONE}$", f"^{DATE}({CLOCK})?$"
FINER = r"\.[0-9]{6}[0-9]*[1-9]"
# Python's datetime supports these years, so all readers of the tables do too.
FIRST, LAST = (
    int((moment - datetime(1970, 1, 1)).total_seconds()) * 10**6
    for moment in (datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59))
)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Formats to try on values that are not ISO 8601, to suggest one. Day and month can be distinguished
# only if a day is above 12.
DATES = (
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y",
    "%Y/%m/%d",
    "%m-%d-%Y",
    "%d-%m-%Y",
    "%m/%d/%y",
    "%d/%m/%y",
    "%d.%m.%y",
    "%Y%m%d",
    "%d %b %Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%b %d, %Y",
    "%Y-%m-%d",
)
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", "T%H:%M:%S", "T%H%M%S", "%H%M%S")
FORMATS = tuple(
    f"{date}{clock}{zone}" for date in DATES for clock in CLOCKS for zone in ("", "%z", " %z") if clock or not zone
)


def of_text(source: Source, column: str, text: pa.Array) -> pa.Array:
    """Convert times in text, by the source's date_format or as ISO 8601.

    The result is timestamp[us, UTC] [rows], null where a text is not a time.
    """
    date_format = source.date_format_of(column)
    if date_format:
        return _by_format(source, date_format, text)
    text = pc.utf8_upper(text)
    if not source.truncate_times:
        text = _only(text, pc.invert(pc.match_substring_regex(text, FINER)))
    zoned = replaced(_only(text, pc.match_substring_regex(text, ZONED)), r" ([Z+-])", r"\1")
    zoned = replaced(zoned, r"(\.[0-9]{6})[0-9]+", r"\1")
    moments = within_years(_cast(zoned, STORED))
    if source.time_zone is None:
        return moments
    local = replaced(_only(text, pc.match_substring_regex(text, LOCAL)), r"(\.[0-9]{6})[0-9]+", r"\1")
    return pc.coalesce(moments, _localized(source, _cast(local, NAIVE)))


def of_arrow(source: Source, raw: pa.Array) -> pa.Array:
    """Convert Arrow's types timestamp and date to timestamp[us, UTC] [rows].

    The result is null where a value is missing, does not have a zone, or is finer than a
    microsecond.
    """
    kind = raw.type
    if pa.types.is_date(kind):
        days = pc.cast(raw, pa.date32(), safe=False) if pa.types.is_date64(kind) else raw
        return _localized(source, _micros(pc.cast(pc.cast(days, pa.int32()), pa.int64()), 86_400 * 10**6))
    if not pa.types.is_timestamp(kind):
        return pa.nulls(len(raw), STORED)
    numbers = pc.cast(raw, pa.int64())
    if kind.unit == "ns":
        whole = _floor_thousands(numbers)
        if not source.truncate_times:
            numbers = _only(numbers, pc.equal(pc.multiply(whole, 1000), numbers))
        micros = _micros(_only(whole, pc.is_valid(numbers)), 1)
    else:
        micros = _micros(numbers, 10**6 // PER_SECOND[kind.unit])
    return _localized(source, micros) if kind.tz is None else within_years(pc.cast(pc.cast(micros, pa.int64()), STORED))


def hint(source: Source, column: str, texts: list[str]) -> str:
    """Describe texts that are not times, with a fix. The result is empty if nothing fits."""
    stripped = [text.strip() for text in texts]
    declared = source.date_format_of(column)
    array = pa.array([text.upper() for text in stripped])
    if not declared and source.time_zone is None and _all(array, LOCAL):
        return _no_zone(source)
    if (
        not declared
        and not source.truncate_times
        and pc.any(pc.match_substring_regex(array, FINER)).as_py()
        and _all(array, f"{ZONED}|{LOCAL}")
    ):
        return (
            "they are finer than a microsecond, which is what is stored: declare truncate_times=True for source"
            f" '{source.name}'"
        )
    if not declared and source.time_zone is not None and _all(array, LOCAL):
        return f"the clock in {source.time_zone} shows such a time twice, or never: have it sent with its offset"
    fitting = [one for one in FORMATS if one != declared and all(_fits(text, one) for text in stripped)]
    if not fitting:
        return ""
    zone = "" if "%z" in fitting[0] or source.time_zone else " and time_zone"
    either = " or ".join(f"'{one}'" for one in fitting[:2])
    return (
        f"they look like {either}: declare date_format{zone} for source '{source.name}', or have ISO 8601 sent, such as"
        " 2024-05-01T06:00:00Z"
    )


def zone_hint(source: Source, kind: pa.DataType) -> str:
    """Return why Arrow times are rejected, with a fix. It is empty if the type does not tell."""
    naive = pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None)
    if naive and source.time_zone is None:
        return _no_zone(source)
    if pa.types.is_timestamp(kind):
        return (
            f"years are 1 to 9999, finer than a microsecond needs truncate_times=True of source '{source.name}', and a"
            " local time must be there once"
        )
    return ""


def _no_zone(source: Source) -> str:
    return (
        f"they have no time zone: declare time_zone (such as UTC or Europe/Berlin) for source '{source.name}', or have"
        " them sent with an offset or Z"
    )


def _by_format(source: Source, date_format: str, text: pa.Array) -> pa.Array:
    """Parse by Python's strptime. Equal texts are parsed once.

    pandas uses nanoseconds, which end in the year 2262.
    """
    encoded = text.dictionary_encode()
    zone = ZoneInfo(source.time_zone) if source.time_zone else UTC
    moments = [_moment(one, date_format, zone) if one is not None else None for one in encoded.dictionary.to_pylist()]
    return pa.array(moments, STORED).take(encoded.indices)


def _moment(text: str, date_format: str, zone: Any) -> datetime | None:
    try:
        moment = datetime.strptime(text, date_format)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
            there = moment.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == moment.replace(tzinfo=None)
            if not there or moment.utcoffset() != moment.replace(fold=1).utcoffset():
                return None  # the clock shows it never, or twice
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _fits(text: str, date_format: str) -> bool:
    try:
        datetime.strptime(text, date_format)
    except ValueError:
        return False
    return True


def _cast(text: pa.Array, kind: pa.DataType) -> pa.Array:
    """Parse texts. If Arrow's parser refuses one of them, parse each value separately.

    Arrow's parser fails as a whole, for example on a thirtieth of February.
    """
    try:
        return pc.cast(text, kind)
    except pa.ArrowInvalid:
        return pa.array([_iso(one, kind.tz is not None) for one in text.to_pylist()], kind)


def _iso(text: str | None, zoned: bool) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if zoned else moment
    except (ValueError, OverflowError):
        return None


def _localized(source: Source, local: pa.Array) -> pa.Array:
    """Convert local times of the source's zone. Ambiguous and nonexistent times become null."""
    if source.time_zone is None:
        return pa.nulls(len(local), STORED)
    # Zones are not defined beyond these years, and pandas' range would be exceeded.
    inside = pc.and_(
        pc.greater(pc.cast(local, pa.int64()), FIRST + 10**12), pc.less(pc.cast(local, pa.int64()), LAST - 10**12)
    )
    stamps = pd.Series(_only(local, inside).to_numpy(zero_copy_only=False).astype("datetime64[us]"))
    moments = stamps.dt.tz_localize(source.time_zone, ambiguous="NaT", nonexistent="NaT").dt.tz_convert("UTC")
    return pa.array(moments, STORED, from_pandas=True)


def _micros(numbers: pa.Array, factor: int) -> pa.Array:
    """Return microseconds since 1970 within the supported years: timestamp[us] without a zone."""
    inside = pc.and_(
        pc.greater_equal(numbers, FIRST // factor), pc.less_equal(numbers, LAST // factor + (factor == 1) * 999_999)
    )
    return pc.cast(pc.multiply(_only(numbers, inside), factor), NAIVE)


def _floor_thousands(numbers: pa.Array) -> pa.Array:
    """Convert nanoseconds to microseconds, rounding down."""
    values = numbers.fill_null(0).to_numpy()
    return pa.array(np.floor_divide(values, 1000), mask=pc.is_null(numbers).to_numpy(zero_copy_only=False))


def within_years(moments: pa.Array) -> pa.Array:
    """Return times of the years 1 to 9999, null for the others."""
    numbers = pc.cast(moments, pa.int64())
    return _only(moments, pc.and_(pc.greater_equal(numbers, FIRST), pc.less_equal(numbers, LAST + 999_999)))


def replaced(texts: pa.Array, pattern: str, by: str) -> pa.Array:
    """Replace a pattern, if it occurs at all.

    The check costs a fraction of a replacement in texts without the pattern.
    """
    return (
        pc.replace_substring_regex(texts, pattern, by)
        if pc.any(pc.match_substring_regex(texts, pattern)).as_py()
        else texts
    )


def _all(texts: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(texts, pattern)).as_py())


def _only(values: pa.Array, good: pa.Array) -> pa.Array:
    return pc.if_else(pc.fill_null(good, False), values, pa.scalar(None, values.type))
