"""Make files with known content: CSV dialects, encodings, Arrow's types, Parquet, JSON, times.

This module does not use the reader under test. Each case gives the expected value of each row, or
that the row or the file must be rejected and why. The values come from the code that writes the
file: Python's csv, json, decimal and datetime modules, and Arrow's own arrays.
"""

import csv
import io
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.reading_binary import binary_cases
from bench.reading_case import AT, MOMENT, REJECTED, TEXTS, Case, written


def cases(seed: int = 0) -> Iterator[Case]:
    """Yield all cases. The same seed gives the same files."""
    made = random.Random(seed)
    yield from _dialects(made)
    yield from _encodings()
    yield from _numbers(made)
    yield from _times()
    yield from _json(made)
    yield from binary_cases(made)


# --- CSV ------------------------------------------------------------------------------------------

DIALECTS: dict[str, dict[str, Any]] = {
    "excel": {},
    "unix": {"lineterminator": "\n", "quoting": csv.QUOTE_ALL},
    "quoted where needed": {"lineterminator": "\n", "quoting": csv.QUOTE_MINIMAL},
    "quoted unless a number": {"quoting": csv.QUOTE_NONNUMERIC},
    "line ends of old Macs": {"lineterminator": "\r", "quoting": csv.QUOTE_ALL},
    "semicolon": {"delimiter": ";"},
    "tab": {"delimiter": "\t"},
    "pipe": {"delimiter": "|"},
    "colon": {"delimiter": ":"},
    "caret": {"delimiter": "^"},
    "unit separator": {"delimiter": "\x1f"},
}


def _dialects(made: random.Random) -> Iterator[Case]:
    for title, dialect in DIALECTS.items():
        texts = made.sample(TEXTS, len(TEXTS))
        rows = [[f"r{n}", text, AT] for n, text in enumerate(texts)]
        content = written(rows, **dialect).encode()
        delimiter = dialect.get("delimiter", ",")
        yield Case(f"csv dialect: {title}", "x.csv", content, values=list(texts), declared={"delimiter": delimiter})
        # Each file has one value, so that the fault of one value does not hide another.
        for text in TEXTS:
            yield Case(
                f"csv dialect: {title}",
                "x.csv",
                written([["r0", text, AT]], **dialect).encode(),
                values=[text],
                declared={"delimiter": delimiter},
            )
        if delimiter != ",":
            yield Case(f"csv dialect, not declared: {title}", "x.csv", content, rules=("unreadable", "missing_column"))
    simple = [["r0", "a", AT], ["r1", "b", AT]]
    for delimiter in ";\t|":
        says = {"\t": "tab"}.get(delimiter, f"'{delimiter}'")
        yield Case(
            "csv dialect, not declared",
            "x.csv",
            written(simple, delimiter=delimiter).encode(),
            rules=("unreadable", "missing_column"),
            says=says,
        )
    yield Case(
        "csv dialect: escapes",
        "x.csv",
        written([["r0", 'a"b', AT]], doublequote=False, escapechar="\\", quoting=csv.QUOTE_ALL).encode(),
        rules=("unreadable",),
    )
    yield Case(
        "csv dialect: single quotes",
        "x.csv",
        written([["r0", "a,b", AT]], quotechar="'").encode(),
        rules=("unreadable",),
    )
    whole = written([["r0", "a", AT], ["r1", 'b "c" d', AT], ["r2", "e,f", AT]])
    # The file is cut off at each byte.
    for end in range(len(whole) - 1, whole.index("r0"), -1):
        cut = whole[:end]
        # Only the last line end is cut off, or not even the whole "Z".
        if end >= len(whole) - 3:
            continue
        yield Case(
            "csv cut off",
            "x.csv",
            cut.encode(),
            rules=("unreadable", "empty_file"),
            says="",
            values=_whole_rows(cut),
            either=True,
        )
    for title, rows in {
        "a field more": [["r0", "a", AT, "x"]],
        "a field less": [["r0", "a"]],
        "mixed": [["r0", "a", AT], ["r1", "b"]],
    }.items():
        yield Case(f"csv: {title}", "x.csv", written(rows).encode(), rules=("unreadable",))
    for title, header, rule in (
        ("twice", ("name", "value", "value"), "missing_column"),
        ("another", ("name", "other", "at"), "missing_column"),
    ):
        yield Case(f"csv header: {title}", "x.csv", written(simple, header=header).encode(), rules=(rule,))
    yield Case(
        "csv header: extra",
        "x.csv",
        written([["r0", "a", AT, "x"]], header=("name", "value", "at", "more")).encode(),
        rules=("extra_column",),
    )
    for title, content in {
        "nothing": b"",
        "a header": written([]).encode(),
        "blank lines": b"\n\n\n",
        "a mark": b"\xef\xbb\xbf",
    }.items():
        yield Case(f"csv: {title}", "x.csv", content, rules=("empty_file",))


def _whole_rows(cut: str) -> list[Any]:
    """Return the values that may be stored of a file that was cut off.

    Complete rows may be stored. A row with a truncated time must be rejected.
    """
    rows = list(csv.reader(io.StringIO(cut, newline="")))[1:]
    return [row[1] if len(row) == 3 and row[2] == AT else REJECTED for row in rows]


ENCODINGS = {
    "utf-8": "漢字 ü",
    "utf-8-sig": "漢字 ü",
    "utf-16": "漢字 ü",
    "utf-16-le": "漢字 ü",
    "utf-16-be": "漢字 ü",
    "utf-32": "漢字 ü",
    "cp1252": "€ Größe naïve",
    "latin-1": "Größe naïve",
    "iso8859-15": "€ Größe",
    "cp1250": "Łódź žluťoučký",
    "cp1251": "Привет, мир",
    "koi8-r": "Привет, мир",
    "cp437": "Größe",
    "mac-roman": "Größe",
    "shift_jis": "日本語テスト",
    "euc-jp": "日本語テスト",
    "gb18030": "中文测试",
    "big5": "中文測試",
    "euc-kr": "한국어",
    "cp1253": "Ελληνικά",
    "cp1255": "עברית",
    "cp1256": "العربية",
}


def _encodings() -> Iterator[Case]:
    for encoding, text in ENCODINGS.items():
        rows = [[f"r{n}", f"{text} {n}", AT] for n in range(20)]
        values = [row[1] for row in rows]
        content = written(rows).encode(encoding)
        yield Case(f"encoding: {encoding}", "x.csv", content, values=values, declared={"encoding": encoding})
        lines = "\n".join(
            json.dumps(dict(zip(("name", "value", "at"), row, strict=True)), ensure_ascii=False) for row in rows
        )
        yield Case(
            f"encoding: {encoding}", "x.jsonl", lines.encode(encoding), values=values, declared={"encoding": encoding}
        )
        if not encoding.startswith("utf-8"):
            says = "UTF-" if encoding.startswith("utf") else "looks like"
            yield Case(
                f"encoding, not declared: {encoding}",
                "x.csv",
                content,
                rules=("unreadable", "missing_column"),
                says=says,
            )
            yield Case(
                f"encoding, not declared: {encoding}",
                "x.json",
                lines.encode(encoding),
                rules=("unreadable",),
                says=says,
            )


# --- numbers in text ------------------------------------------------------------------------------

EDGES = [
    0,
    1,
    -1,
    2**31,
    2**53 - 1,
    2**53,
    2**53 + 1,
    -(2**53) - 1,
    10**18 + 1,
    2**63 - 1,
    -(2**63),
    2**63,
    -(2**63) - 1,
    2**64,
    10**19,
    10**30,
    10**400,
]
NO_INTEGERS = [
    "1.5",
    "abc",
    "1e3",
    "0x10",
    "1_000",
    "1,000",
    "--1",
    "+",
    "NaN",
    "inf",
    "١",
    "1 2",
    "1.0.0",
    "2^53",
    "true",
    "None",
    "n/a",
    "1582218195.625938945",
    "9" * 5000 + ".5",
]
NO_FLOATS = [
    "abc",
    "1,5",
    "1.5.5",
    "0x1p3",
    "1_0.5",
    "nan",
    "NaN",
    "inf",
    "-Infinity",
    "1e",
    "e5",
    "1e400",
    "-1e999",
    "true",
    "1.5f",
    "$1.5",
    "1.5 %",
    "1 000.5",
]
FINE_FLOATS = [
    "0.1",
    "1e-5",
    "1E5",
    "-0.0",
    ".5",
    "5.",
    "+1.5",
    " 1.5 ",
    "1e308",
    "5e-324",
    "2.2250738585072014e-308",
    "179769313486231570e291",
    "0.30000000000000004",
    "100",
    "1e22",
    "1e23",
]
NOT_EXACT = [
    "9007199254740993",
    "0.1234567890123456789",
    "1582218195625938945",
    "123456789.123456789123456789",
    "1e-400",
    "3.14159265358979323846",
]


def _numbers(made: random.Random) -> Iterator[Case]:
    values: list[Any] = [
        *EDGES,
        *(made.randrange(-(2**64), 2**64) for _ in range(200)),
        *(made.randrange(2**53, 2**63) for _ in range(200)),
    ]
    # The integers are alone, or in a column with a missing value or an invalid one.
    for others in ([None], ["n/a"], []):
        texts = ["" if v is None else str(v) for v in (*values, *others)]
        stored = [
            *(v if -(2**63) <= v < 2**63 else REJECTED for v in values),
            *(None if v is None else REJECTED for v in others),
        ]
        yield Case(
            "integers in text",
            "x.csv",
            written([[f"r{n}", t, AT] for n, t in enumerate(texts)]).encode(),
            "int64",
            stored,
        )
        numbers = [json.dumps(o) for o in others]
        rows = ", ".join(f'{{"name": "r{n}", "value": {v}, "at": "{AT}"}}' for n, v in enumerate([*values, *numbers]))
        yield Case("integers in text", "x.json", f"[{rows}]".encode(), "int64", stored)
    for dtype, texts, stored in (
        ("int64", NO_INTEGERS, [REJECTED] * len(NO_INTEGERS)),
        ("float64", NO_FLOATS, [REJECTED] * len(NO_FLOATS)),
        ("float64", NOT_EXACT, [REJECTED] * len(NOT_EXACT)),
        ("float64", FINE_FLOATS, [float(t) for t in FINE_FLOATS]),
    ):
        yield Case(
            f"{dtype} in text",
            "x.csv",
            written([[f"r{n}", t, AT] for n, t in enumerate(texts)]).encode(),
            dtype,
            stored,
        )
    floats = [made.uniform(-1, 1) * 10.0 ** made.randrange(-300, 300) for _ in range(500)]
    for title, how in (("repr", repr), (".17g", "{:.17g}".format), (".18e", "{:.18e}".format)):
        yield Case(
            f"float64 in text: {title}",
            "x.csv",
            written([[f"r{n}", how(v), AT] for n, v in enumerate(floats)]).encode(),
            "float64",
            list(floats),
        )
    comma = [repr(v).replace(".", ",") for v in floats]
    yield Case(
        "decimal comma",
        "x.csv",
        written([[f"r{n}", t, AT] for n, t in enumerate(comma)], delimiter=";").encode(),
        "float64",
        list(floats),
        declared={"delimiter": ";", "decimal": ","},
    )
    yield Case(
        "decimal comma, not declared",
        "x.csv",
        written([["r0", "1,5", AT]]).encode(),
        "float64",
        [REJECTED],
        says="decimal comma",
    )
    yield Case(
        "decimal point where a comma is declared",
        "x.csv",
        written([["r0", "1.500", AT]]).encode(),
        "float64",
        [REJECTED],
        declared={"delimiter": ",", "decimal": "."} | {"delimiter": ";", "decimal": ","},
        rules=("missing_column", "unreadable"),
        either=True,
    )
    words = {
        "true": True,
        "TRUE": True,
        "1": True,
        "False": False,
        "0": False,
        "yes": REJECTED,
        "t": REJECTED,
        "2": REJECTED,
        "1.0": REJECTED,
        "": None,
    }
    yield Case(
        "bool in text",
        "x.csv",
        written([[f"r{n}", t, AT] for n, t in enumerate(words)]).encode(),
        "bool",
        list(words.values()),
    )


# --- times ----------------------------------------------------------------------------------------

FINE_TIMES = {
    "2024-05-01T06:00:00Z": MOMENT,
    "2024-05-01 06:00:00Z": MOMENT,
    "2024-05-01T06:00Z": MOMENT,
    "2024-05-01T08:00:00+02:00": MOMENT,
    "2024-05-01T08:00:00+0200": MOMENT,
    "2024-05-01T08:00:00+02": MOMENT,
    "2024-04-30T22:30:00-07:30": MOMENT,
    "2024-05-01T06:00:00.5Z": MOMENT + timedelta(microseconds=500_000),
    "2024-05-01T06:00:00.000001Z": MOMENT + timedelta(microseconds=1),
    "2024-05-01T06:00:00.000001000Z": MOMENT + timedelta(microseconds=1),
    "1969-12-31T23:59:59.999999Z": datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
    "9999-12-31T23:59:59Z": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    "0001-01-01T00:00:00Z": datetime(1, 1, 1, tzinfo=UTC),
    "2262-04-12T00:00:00Z": datetime(2262, 4, 12, tzinfo=UTC),
    "2024-02-29T00:00:00Z": datetime(2024, 2, 29, tzinfo=UTC),
}
NO_TIMES = [
    "2024-05-01T06:00:00",
    "2024-05-01",
    "2023-02-29T00:00:00Z",
    "2024-13-01T00:00:00Z",
    "2024-05-01T24:00:00Z",
    "2024-05-01T06:60:00Z",
    "2024-05-01T06:00:61Z",
    "1714543200",
    "yesterday",
    "12/1/2009 7:45",
    "2024-05-01T06:00:00.0000001Z",
    "2024-05-01T06:00:00 CEST",
    "2024-05-01T06:00:00+25:00",
    "0000-01-01T00:00:00Z",
    "10000-01-01T00:00:00Z",
    "20240501",
    "2024-5-1T6:00:00Z",
    "2024-W18-3T06:00:00Z",
    "0001-01-01T00:00:00+05:00",
    "9999-12-31T23:59:59-05:00",
]
FORMATS = [
    "%m/%d/%Y %H:%M",
    "%d.%m.%Y %H:%M:%S",
    "%Y%m%d%H%M%S",
    "%d %b %Y %H:%M",
    "%d-%b-%y %H:%M:%S",
    "%Y-%m-%d %I:%M %p",
    "%d/%m/%Y %H:%M:%S.%f",
]


def _times() -> Iterator[Case]:
    texts, stored = [*FINE_TIMES, *NO_TIMES, ""], [*FINE_TIMES.values(), *([REJECTED] * len(NO_TIMES)), None]
    yield Case(
        "times in text", "x.csv", written([[f"r{n}", t, AT] for n, t in enumerate(texts)]).encode(), "timestamp", stored
    )
    lines = "\n".join(json.dumps({"name": f"r{n}", "value": t or None, "at": AT}) for n, t in enumerate(texts))
    yield Case("times in text", "x.jsonl", lines.encode(), "timestamp", stored)
    moments = [MOMENT + timedelta(days=37 * n, minutes=n) for n in range(50)]
    for how in FORMATS:
        rows = [[f"r{n}", moment.strftime(how), moment.strftime(how)] for n, moment in enumerate(moments)]
        yield Case(
            "times by a declared format",
            "x.csv",
            written(rows).encode(),
            "timestamp",
            list(moments),
            declared={"date_format": how, "time_zone": "UTC"},
        )
        yield Case(
            "times by a format, not declared",
            "x.csv",
            written(rows).encode(),
            "timestamp",
            [REJECTED] * len(rows),
            says="date_format",
        )
    local = ["2024-07-01T12:00:00", "2024-01-01T12:00:00", "2024-10-27T02:30:00", "2024-03-31T02:30:00", "2024-07-01"]
    utc = [
        datetime(2024, 7, 1, 10, tzinfo=UTC),
        datetime(2024, 1, 1, 11, tzinfo=UTC),
        REJECTED,
        REJECTED,
        datetime(2024, 6, 30, 22, tzinfo=UTC),
    ]
    rows = [[f"r{n}", t, AT] for n, t in enumerate(local)]
    yield Case(
        "local times", "x.csv", written(rows).encode(), "timestamp", utc, declared={"time_zone": "Europe/Berlin"}
    )
    yield Case(
        "local times, not declared",
        "x.csv",
        written(rows).encode(),
        "timestamp",
        [REJECTED] * len(rows),
        says="time zone",
    )


# --- JSON -----------------------------------------------------------------------------------------


def _json(made: random.Random) -> Iterator[Case]:
    def one(value: str) -> bytes:
        return f'[{{"name": "r0", "value": {value}, "at": "{AT}"}}]'.encode()

    for dtype, value, stored in (
        ("string", '"\\u0061"', "a"), ("string", '"\\ud83d\\ude42"', "🙂"), ("string", '"\\ud800"', REJECTED), ("string", '"\\udc00x"', REJECTED),  # noqa: E501
        ("string", '"\\u0000"', REJECTED), ("string", '""', ""),
        ("string", "null", None), ("string", "1", REJECTED), ("string", "true", REJECTED), ("string", "{}", REJECTED), ("string", "[]", REJECTED),  # noqa: E501
        ("string", '"null"', "null"), ("string", '"a\\nb"', "a\nb"),
        ("int64", "1", 1), ("int64", "-0", 0), ("int64", "1.0", 1), ("int64", "1.5", REJECTED), ("int64", "1e2", REJECTED), ("int64", "true", REJECTED),  # noqa: E501
        ("int64", "NaN", REJECTED), ("int64", "1" + "0" * 5000, REJECTED),
        ("int64", "9007199254740993.0", 9007199254740993), ("int64", '"9007199254740993"', 9007199254740993), ("int64", "[1]", REJECTED),  # noqa: E501
        ("float64", "0.1", 0.1), ("float64", "1e400", REJECTED), ("float64", "NaN", REJECTED), ("float64", "Infinity", REJECTED), ("float64", "false",  # noqa: E501
        REJECTED), ("float64", "1", 1.0), ("float64", "9007199254740993", REJECTED),
        ("float64", "1E-2", 0.01), ("bool", "true", True), ("bool", "1", True), ("bool", '"false"', False), ("bool", "2", REJECTED), ("timestamp",  # noqa: E501
        "1714543200", REJECTED), ("timestamp", "true", REJECTED),
    ):  # fmt: skip
        yield Case("json values", "x.json", one(value), dtype, [stored])
        yield Case("json values", "x.jsonl", one(value)[1:-1], dtype, [stored])
    bad = [
        "",
        " ",
        "{",
        "[",
        "[1]",
        "null",
        "1",
        '"a"',
        "[{}",
        '[{"name": "r0"',
        "{'name': 1}",
        '[{"name": "r0",}]',
        "[{} {}]",
        "NaN",
        "[NaN]",
        '[{"value": 01}]',
        '[{"value": +1}]',
        '[{"value": .5}]',
        '[{"value": 1.}]',
        '[{"a": "\t"}]',
        '[{"a": "\\x"}]',
        '[{"a": "\\u12"}]',
        '[{"a": 1 /* c */}]',
        '[{"name": "r0", "name": "r1"}]',
        '[{"name": "r0"}, {"value": 1}]',
        "[[]]",
        "[" * 100_000,
        '{"a":' * 100_000,
        "undefined",
        "<html>",
        "[1, 2",
        '{"data": [{"name": "r0"}]}',
        '{"name": "r0"}{"name": "r1"}',
    ]
    for text in bad:
        yield Case(
            "json that is none, or other names",
            "x.json",
            text.encode(),
            rules=("unreadable", "empty_file", "missing_column"),
        )
    rows = [
        json.dumps({"name": f"r{n}", "value": made.choice(TEXTS), "at": AT}, ensure_ascii=bool(n % 2))
        for n in range(100)
    ]
    stored_texts = [json.loads(row)["value"] for row in rows]
    for title, text in {
        "list": f"[{','.join(rows)}]",
        "pretty list": json.dumps([json.loads(r) for r in rows], indent=2),
        "lines": "\n".join(rows),
        "lines of Windows": "\r\n".join(rows),
        "blank lines": "\n\n".join(rows) + "\n",
    }.items():
        yield Case(f"json: {title}", "x.json", text.encode(), values=list(stored_texts))
    whole = f"[{','.join(rows[:3])}]"
    for end in range(1, len(whole), max(1, len(whole) // 150)):
        yield Case("json cut off", "x.json", whole[:end].encode(), rules=("unreadable",))
