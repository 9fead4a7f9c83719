"""Make the binary corpora of ``bench.reading_corpora``.

They cover Arrow's types, Parquet, compression and decompression bombs.
"""

import gzip
import io
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.reading_case import AT, MOMENT, REJECTED, TEXTS, Case, written


def binary_cases(made: random.Random) -> Iterator[Case]:
    yield from _arrow(made)
    yield from _parquet(made)
    yield from _packed(made)


# --- Arrow's types in Parquet ---------------------------------------------------------------------


def parquet(values: pa.Array, **options: Any) -> bytes:
    out = io.BytesIO()
    table = pa.table(
        {
            "name": [f"r{n}" for n in range(len(values))],
            "value": values,
            "at": pa.array([MOMENT] * len(values), pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, out, **options)
    return out.getvalue()


def _arrow(made: random.Random) -> Iterator[Case]:
    for bits in (8, 16, 32, 64):
        for signed in (True, False):
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
            kind = getattr(pa, f"{'' if signed else 'u'}int{bits}")()
            values = [low, high, None, *(made.randint(low, high) for _ in range(100))]
            array = pa.array(values, kind)
            fits = [v if v is None or v < 2**63 else REJECTED for v in values]
            yield Case(f"arrow {kind}", "x.parquet", parquet(array), "int64", fits)
            yield Case(f"arrow {kind}", "x.parquet", parquet(array.dictionary_encode()), "int64", fits)
            yield Case(
                f"arrow {kind}",
                "x.parquet",
                parquet(array),
                "float64",
                [None if v is None else float(v) if int(float(v)) == v else REJECTED for v in values],
            )
            yield Case(
                f"arrow {kind}",
                "x.parquet",
                parquet(array),
                "string",
                [None if v is None else REJECTED for v in values],
            )
            yield Case(
                f"arrow {kind}",
                "x.parquet",
                parquet(array),
                "timestamp",
                [None if v is None else REJECTED for v in values],
            )
    for kind, size in ((pa.float16(), 10), (pa.float32(), 30), (pa.float64(), 300)):
        floats = [
            0.0,
            1.5,
            None,
            float("nan"),
            float("inf"),
            *(made.uniform(-1, 1) * 2.0 ** made.randrange(-size // 4, size // 4) for _ in range(100)),
            1024.0,
        ]
        array = pa.array(floats).cast(kind, safe=False)
        held = [
            None if v is None or v != v else REJECTED if v in (float("inf"), float("-inf")) else float(v)
            for v in array.to_pylist()
        ]
        yield Case(f"arrow {kind}", "x.parquet", parquet(array), "float64", held)
        yield Case(
            f"arrow {kind}",
            "x.parquet",
            parquet(array),
            "int64",
            [v if v is None or v == REJECTED else int(v) if v == int(v) and abs(v) < 2**53 else REJECTED for v in held],
        )
    for make, precision, scale in (
        (pa.decimal32, 9, 2),
        (pa.decimal64, 18, 0),
        (pa.decimal128, 38, 0),
        (pa.decimal128, 38, 10),
        (pa.decimal128, 10, 2),
        (pa.decimal256, 76, 0),
        (pa.decimal256, 50, 20),
    ):
        digits = [made.randrange(-(10**p) + 1, 10**p) for p in range(1, precision + 1)]
        decimals = [Decimal(f"{d}e-{scale}") for d in digits]
        array = pa.array(decimals, make(precision, scale))
        whole = [int(v) if v == int(v) and -(2**63) <= v < 2**63 else REJECTED for v in decimals]
        yield Case(f"arrow {array.type}", "x.parquet", parquet(array), "int64", whole)
        # The expected value is the nearest float if it has all digits. 15 digits always fit. Beyond
        # 17 digits only the exact expansion of a float fits. In between both results are allowed.
        nearest = [
            (
                float(v)
                if _digits(v) <= 15 or Decimal(float(v)) == v
                else REJECTED
                if _digits(v) > 17
                else (float(v), REJECTED)
            )
            for v in decimals
        ]
        yield Case(f"arrow {array.type}", "x.parquet", parquet(array), "float64", nearest)
    texts = [*TEXTS, None, ""]
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ):
        yield Case(
            f"arrow {kind}", "x.parquet", parquet(pa.array(texts, pa.string()).cast(kind)), "string", list(texts)
        )
    for kind in (pa.binary(), pa.large_binary(), pa.binary(3)):
        yield Case(
            f"arrow {kind}",
            "x.parquet",
            parquet(pa.array([b"abc", b"\xff\xfe\xfd"], kind)),
            "string",
            [REJECTED, REJECTED],
        )
    truths = [True, False, None]
    yield Case("arrow bool", "x.parquet", parquet(pa.array(truths)), "bool", list(truths))
    for dtype in ("int64", "float64", "string", "timestamp"):
        yield Case("arrow bool", "x.parquet", parquet(pa.array(truths)), dtype, [REJECTED, REJECTED, None])
        yield Case("arrow null", "x.parquet", parquet(pa.nulls(3)), dtype, [None] * 3)
    yield from _arrow_times()


def _digits(value: Decimal) -> int:
    return len("".join(map(str, value.as_tuple().digits)).strip("0"))


def _arrow_times() -> Iterator[Case]:
    for unit, per in (("ms", 1_000), ("us", 1), ("ns", 1)):
        moments = [
            datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=n * per)
            for n in (0, 1, -1, 1_714_543_200_000, -5_000_000_001)
        ]
        for zone in ("UTC", "Europe/Berlin", "+05:30"):
            array = pa.array(moments, pa.timestamp(unit, zone))
            yield Case(f"arrow {array.type}", "x.parquet", parquet(array), "timestamp", list(moments))
            yield Case(f"arrow {array.type}", "x.parquet", parquet(array), "int64", [REJECTED] * len(moments))
        naive = pa.array([m.replace(tzinfo=None) for m in moments], pa.timestamp(unit))
        yield Case(
            f"arrow {naive.type}", "x.parquet", parquet(naive), "timestamp", [REJECTED] * len(moments), says="time zone"
        )
        yield Case(
            f"arrow {naive.type}",
            "x.parquet",
            parquet(naive),
            "timestamp",
            list(moments),
            declared={"time_zone": "UTC"},
        )
    nanos = pa.array([1, 999, 1000, -1, -1000], pa.timestamp("ns", "UTC"))
    epoch, micro = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
    yield Case(
        "arrow nanoseconds",
        "x.parquet",
        parquet(nanos),
        "timestamp",
        [REJECTED, REJECTED, epoch + micro, REJECTED, epoch - micro],
    )
    yield Case(
        "arrow nanoseconds, cut off",
        "x.parquet",
        parquet(nanos),
        "timestamp",
        [epoch, epoch, epoch + micro, epoch - micro, epoch - micro],
        declared={"truncate_times": True},
    )
    far = pa.array([2**63 - 1, -(2**63) + 1, 253_402_300_800_000_000], pa.timestamp("us", "UTC"))
    yield Case("arrow times beyond the years", "x.parquet", parquet(far), "timestamp", [REJECTED] * 3)
    days = pa.array([date(2024, 5, 1), date(1, 1, 2), None])
    for kind in (pa.date32(), pa.date64()):
        yield Case(
            f"arrow {kind}",
            "x.parquet",
            parquet(days.cast(kind)),
            "timestamp",
            [REJECTED, REJECTED, None],
            says="time zone",
        )
        stored = [datetime(2024, 5, 1, tzinfo=UTC), (datetime(1, 1, 2, tzinfo=UTC), REJECTED), None]
        yield Case(
            f"arrow {kind}", "x.parquet", parquet(days.cast(kind)), "timestamp", stored, declared={"time_zone": "UTC"}
        )
    for array in (pa.array([1], pa.time32("s")), pa.array([1], pa.time64("us")), pa.array([1], pa.duration("us"))):
        yield Case(f"arrow {array.type}", "x.parquet", parquet(array), "timestamp", [REJECTED])
        yield Case(f"arrow {array.type}", "x.parquet", parquet(array), "int64", [REJECTED])


# --- Parquet --------------------------------------------------------------------------------------


def _parquet(made: random.Random) -> Iterator[Case]:
    values = pa.array([1582218195625938945, None, 7] * 50)
    stored = values.to_pylist()
    options: list[dict[str, Any]] = [
        *({"compression": codec} for codec in ("none", "snappy", "gzip", "zstd", "lz4", "brotli")),
        {"version": "1.0"},
        {"data_page_version": "2.0"},
        {"row_group_size": 1},
        {"use_dictionary": False},
        {"use_dictionary": False, "column_encoding": {"value": "DELTA_BINARY_PACKED"}},
        {"write_page_checksum": True},
        {"store_schema": False},
        {"data_page_size": 8},
    ]
    for one in options:
        yield Case(f"parquet {one}", "x.parquet", parquet(values, **one), "int64", stored)
    nested: list[pa.Array] = [
        pa.array([[1]]),
        pa.array([{"a": 1}]),
        pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([[1, 2]], pa.list_(pa.int64(), 2)),
        pa.array([[[1]]]),
        pa.array([[1]], pa.large_list(pa.int64())),
    ]
    for array in nested:
        yield Case(f"parquet {array.type}", "x.parquet", parquet(array), "int64", rules=("wrong_type",))
    invalid = pa.array([b"\xff\xfe", b"ok", b"\xed\xa0\x80"]).view(pa.string())
    for dictionary in (True, False):
        yield Case(
            "parquet text that is not UTF-8",
            "x.parquet",
            parquet(invalid, use_dictionary=dictionary),
            "string",
            [REJECTED, "ok", REJECTED],
        )
    whole = parquet(values, write_page_checksum=True)
    for _ in range(150):
        yield Case(
            "parquet cut off", "x.parquet", whole[: made.randrange(1, len(whole))], "int64", rules=("unreadable",)
        )
    # The pages have checksums, so a changed value is detected. A changed footer may declare other
    # types or names, and then no row may be accepted.
    for _ in range(300):
        spoiled = bytearray(whole)
        spoiled[made.randrange(4, len(whole) - 4)] ^= 1 << made.randrange(8)
        yield Case(
            "parquet with a flipped bit",
            "x.parquet",
            bytes(spoiled),
            "int64",
            [(value, REJECTED) for value in stored],
            rules=FLIPPED,
            either=True,
        )


FLIPPED = ("unreadable", "missing_column", "extra_column", "wrong_type", "failed", "too_large", "empty_file")


# --- compression ----------------------------------------------------------------------------------


def _packed(made: random.Random) -> Iterator[Case]:
    rows = [[f"r{n}", made.choice(TEXTS), AT] for n in range(200)]
    plain, values = written(rows).encode(), [row[1] for row in rows]
    packs = {
        "gzip": gzip.compress(plain),
        "zstd": pa.compress(plain, "zstd", asbytes=True),
        "gzip in parts": b"".join(gzip.compress(plain[i : i + 500]) for i in range(0, len(plain), 500)),
    }
    for title, packed in packs.items():
        # The content determines the compression, not the name.
        for name in ("x.csv", "x.csv.gz", "x.csv.zst"):
            yield Case(f"compressed: {title}", name, packed, values=list(values))
    for title in ("gzip", "zstd"):
        for _ in range(50):
            yield Case(
                f"compressed and cut off: {title}",
                "x.csv",
                packs[title][: made.randrange(4, len(packs[title]) - 9)],
                rules=("unreadable",),
            )
    bomb = b"\n" * (200 * 2**20)
    limit = {"max_bytes": 10 * 2**20}
    yield Case("bomb: gzip", "x.csv", gzip.compress(bomb), rules=("too_large",), says="max_bytes", declared=limit)
    yield Case(
        "bomb: zstd",
        "x.json",
        pa.compress(bomb, "zstd", asbytes=True),
        rules=("too_large",),
        says="max_bytes",
        declared=limit,
    )
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["x" * 10_000])
    yield Case("bomb: parquet", "x.parquet", parquet(shared), rules=("too_large",), says="max_bytes", declared=limit)
    yield Case(
        "bomb: parquet of nothing",
        "x.parquet",
        parquet(pa.nulls(5_000_000, pa.int64())),
        "int64",
        rules=("too_large",),
        says="max_bytes",
        declared=limit,
    )
