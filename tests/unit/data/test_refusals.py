"""A refusal describes the file and the fix, and declared formats are accepted.

No file takes more memory than its source allows.
"""

import gzip
import io
import json
import tracemalloc

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from include.data.reading import FileRefusedError, read
from include.data.refused import grouped
from include.projects.base import Source

COLUMNS = {"id": "int64", "name": "string", "amount": "float64", "known_at": "timestamp"}
SOURCE = Source(name="orders", columns=COLUMNS, key=("id",), known_at="known_at")
GOOD = "id,name,amount,known_at\n1,aé,1.5,2024-05-01T06:00:00Z\n2,b,2.5,2024-05-01T06:00:00Z\n"
SEMICOLON = "id;name;amount;known_at\n1;aé;1,5;2024-05-01T06:00:00Z\n2;b;2,5;2024-05-01T06:00:00Z\n"
EXCEL, GERMAN = (
    GOOD.replace("2024-05-01T06:00:00Z", written).encode() for written in ("5/1/2024 6:00", "01.05.2024 08:00+0200")
)
LINES = "\n".join(
    json.dumps({"id": n, "name": name, "amount": n + 0.5, "known_at": "2024-05-01T06:00:00Z"})
    for n, name in ((1, "aé"), (2, "b"))
)
ROWS = [(1, "aé", 1.5, pd.Timestamp("2024-05-01T06:00Z")), (2, "b", 2.5, pd.Timestamp("2024-05-01T06:00Z"))]


def declaring(**more) -> Source:
    return Source(**{**SOURCE.model_dump(), **more})


def parquet(table: pa.Table, **options) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


RENAMED = parquet(pa.Table.from_pandas(pd.DataFrame(ROWS, columns=["Order No", "name", "amount", "known_at"])))
CATEGORY = parquet(pa.Table.from_pandas(pd.DataFrame(ROWS, columns=list(COLUMNS)).astype({"name": "category"})))
UMLAUTS = (GOOD + "3,für Größe und Übermaß,1,2024-05-01T06:00:00Z\n" * 20).encode("cp1252")


def refusal(source: Source, name: str, content: bytes):
    with pytest.raises(FileRefusedError) as refused:
        read(source, name, content)
    return refused.value.reason


@pytest.mark.parametrize(
    ("name", "content", "declared"),
    [
        pytest.param("x.csv", GOOD.encode(), {}, id="as it should be"),
        pytest.param("x.csv", b"\xef\xbb\xbf" + GOOD.encode(), {}, id="a mark of UTF-8"),
        pytest.param("x.csv", GOOD.replace("\n", "\r\n").encode(), {}, id="line ends of Windows"),
        pytest.param("x.csv", gzip.compress(GOOD.encode()), {}, id="gzip under another name"),
        pytest.param("x.CSV.GZ", gzip.compress(GOOD.encode()), {}, id="gzip, named so"),
        pytest.param(
            "x.csv", gzip.compress(GOOD[:50].encode()) + gzip.compress(GOOD[50:].encode()), {}, id="gzip in two parts"
        ),
        pytest.param("x.csv.zst", zstd(GOOD.encode()), {}, id="zstd"),
        pytest.param("x.json", LINES.encode(), {}, id="objects, one a line"),
        pytest.param("x.jsonl", LINES.encode(), {}, id="JSON Lines"),
        pytest.param("x.ndjson.gz", gzip.compress((LINES + "\n\n").encode()), {}, id="JSON Lines in gzip"),
        pytest.param("x.json", f"[{LINES.replace(chr(10), ',')}]".encode(), {}, id="a list"),
        pytest.param("x.csv", SEMICOLON.encode(), {"delimiter": ";", "decimal": ","}, id="semicolon and decimal comma"),
        pytest.param("x.csv", GOOD.replace(",", "\t").encode(), {"delimiter": "\t"}, id="tabs"),
        pytest.param("x.csv", GOOD.encode("utf-16"), {"encoding": "utf-16"}, id="UTF-16"),
        pytest.param("x.csv", GOOD.encode("cp1252"), {"encoding": "cp1252"}, id="cp1252"),
        pytest.param("x.json", LINES.encode("latin-1"), {"encoding": "latin-1"}, id="JSON in Latin-1"),
        pytest.param(
            "x.csv", GOOD.replace("T06:00:00Z", "T08:00:00").encode(), {"time_zone": "Europe/Berlin"}, id="a local time"
        ),
        pytest.param("x.csv", EXCEL, {"date_format": "%m/%d/%Y %H:%M", "time_zone": "UTC"}, id="Excel"),
        pytest.param("x.csv", GERMAN, {"date_format": {"known_at": "%d.%m.%Y %H:%M%z"}}, id="a zone in the format"),
        pytest.param(
            "x.csv", GOOD.replace("00Z", "00.0000009Z").encode(), {"truncate_times": True}, id="tenths of a microsecond"
        ),
        pytest.param(
            "x.csv",
            GOOD.replace("id,name", "Order No,Name").encode(),
            {"rename": {"Order No": "id", "Name": "name"}},
            id="other names",
        ),
        pytest.param(
            "x.json",
            LINES.replace('"id"', '"Order No"').encode(),
            {"rename": {"Order No": "id"}},
            id="other names in JSON",
        ),
        pytest.param("x.parquet", RENAMED, {"rename": {"Order No": "id"}}, id="other names in Parquet"),
        pytest.param("x.parquet", CATEGORY, {}, id="a category of pandas"),
    ],
)
def test_what_a_source_declares_is_accepted(name, content, declared):
    rows = read(declaring(**declared), name, content)
    assert not rows.faults
    assert list(rows.typed.itertuples(index=False, name=None)) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "rule", "says"),
    [
        pytest.param(
            "x.csv",
            SEMICOLON.encode(),
            "unreadable",
            ["delimiter ';'", "declare delimiter=';' for source 'orders'"],
            id="semicolons",
        ),
        pytest.param(
            "x.csv",
            SEMICOLON.replace(",5", "").encode(),
            "missing_column",
            ["delimiter ';'", "declare delimiter=';'"],
            id="semicolons, no commas",
        ),
        pytest.param(
            "x.csv", GOOD.replace(",", "\t").encode(), "missing_column", ["(tab)", "declare delimiter='\\t'"], id="tabs"
        ),
        pytest.param(
            "x.csv", GOOD.encode("utf-16"), "unreadable", ["looks like UTF-16", "encoding='utf-16'"], id="UTF-16"
        ),
        pytest.param(
            "x.csv", GOOD.encode("utf-16-le"), "unreadable", ["looks like UTF-16-LE"], id="UTF-16 without a mark"
        ),
        pytest.param("x.csv", UMLAUTS, "unreadable", ["looks like text in cp125", "declare encoding="], id="cp1252"),
        pytest.param("x.json", LINES.encode("utf-16"), "unreadable", ["looks like UTF-16"], id="JSON in UTF-16"),
        pytest.param(
            "x.csv",
            b"<!DOCTYPE html>\n<html><body>502 Bad Gateway</body></html>",
            "missing_column",
            ["HTML page"],
            id="a page in CSV",
        ),
        pytest.param("x.json", b"<html>", "unreadable", ["HTML page"], id="a page in JSON"),
        pytest.param("x.parquet", b"<html>", "unreadable", ["HTML page"], id="a page in Parquet"),
        pytest.param("x.csv", b"<?xml version='1.0'?><a/>", None, ["looks like XML"], id="XML"),
        pytest.param("x.csv", LINES.encode(), None, ["looks like JSON", "name it .json"], id="JSON in CSV"),
        pytest.param("x.json", GOOD.encode(), "unreadable", ["looks like CSV", "name it .csv"], id="CSV in JSON"),
        pytest.param(
            "x.csv",
            parquet(pa.table({"a": [1]})),
            "unreadable",
            ["looks like Parquet", "name it .parquet"],
            id="Parquet in CSV",
        ),
        pytest.param(
            "x.csv",
            b"PK\x03\x04" + b"\x00" * 30 + b"xl/workbook.xml",
            "unreadable",
            ["Excel workbook (xlsx)"],
            id="Excel",
        ),
        pytest.param("x.csv", b"BZh91AY&SY", None, ["looks like bzip2"], id="bzip2"),
        pytest.param("x.csv", gzip.compress(GOOD.encode())[:-9], "unreadable", ["gzip", "cut off"], id="gzip cut off"),
        pytest.param("x.csv", zstd(GOOD.encode())[:-2], "unreadable", ["zstd", "cut off"], id="zstd cut off"),
        pytest.param(
            "x.csv", gzip.compress(gzip.compress(GOOD.encode())), "unreadable", ["gzip within gzip"], id="gzip twice"
        ),
        pytest.param("x.csv", gzip.compress(b""), "empty_file", ["empty"], id="nothing in gzip"),
        pytest.param("x.json", LINES[:-20].encode(), "unreadable", ["line 2", "cut off"], id="JSON Lines cut off"),
        pytest.param(
            "x.json", f"[{LINES.replace(chr(10), ',')}".encode(), "unreadable", ["cut off"], id="a list cut off"
        ),
        pytest.param(
            "x.json", b'{\n "id": 1\n}', "unreadable", ["one object over several lines"], id="a pretty object"
        ),
        pytest.param(
            "x.json",
            LINES.replace('"id": 2', '"id": 2, "id": 3').encode(),
            "unreadable",
            ["'id' twice"],
            id="a name twice",
        ),
        pytest.param("x.json", b"[" * 100_000, "unreadable", ["RecursionError"], id="a hundred thousand lists"),
        pytest.param("x.json", b"[1]", "unreadable", ["not a list of objects"], id="a list of numbers"),
        pytest.param(
            "x.csv",
            (GOOD + '3,"b,2.5,2024-05-01T06:00:00Z\n').encode(),
            "unreadable",
            ["does not end"],
            id="a quote that is not closed",
        ),
        pytest.param(
            "x.csv",
            (GOOD + '3,"b"c,2.5,2024-05-01T06:00:00Z\n').encode(),
            "unreadable",
            ["not doubled"],
            id="something after a quote",
        ),
        pytest.param(
            "x.csv",
            (GOOD + '3,"a\\"b",2.5,2024-05-01T06:00:00Z\n').encode(),
            "unreadable",
            ["not doubled"],
            id="quotes as MySQL writes them",
        ),
        pytest.param("x.parquet", parquet(pa.table({"a": [1]}))[:-8], "unreadable", ["cut off"], id="Parquet cut off"),
        pytest.param(
            "x.parquet",
            parquet(pa.table({**dict.fromkeys(COLUMNS, [1]), "id": [[1]]})),
            "wrong_type",
            ["'id'", "list<"],
            id="lists",
        ),
        pytest.param("x.txt", GOOD.encode(), "unreadable", [".csv", "name it by what is in it"], id="another ending"),
    ],
)
def test_a_refusal_says_what_it_looks_like_and_what_to_do(name, content, rule, says):
    reason = refusal(SOURCE, name, content)
    assert reason.rule == rule or rule is None
    assert reason.message.startswith(f"{name}: ")
    for text in says:
        assert text in reason.message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        pytest.param("06:00:00Z", "06:00:00", ["no time zone", "declare time_zone", "source 'orders'"], id="no zone"),
        pytest.param("2024-05-01T06:00:00Z", "2024-05-01", ["no time zone"], id="a day"),
        pytest.param(
            "2024-05-01T06:00:00Z",
            "12/1/2009 7:45",
            ["'%m/%d/%Y %H:%M' or '%d/%m/%Y %H:%M'", "declare date_format and time_zone"],
            id="Excel",
        ),
        pytest.param("2024-05-01T06:00:00Z", "31.12.2009", ["'%d.%m.%Y'"], id="a German day"),
        pytest.param(
            "06:00:00Z",
            "06:00:00.1234567Z",
            ["finer than a microsecond", "truncate_times"],
            id="tenths of a microsecond",
        ),
        pytest.param("1.5", '"1,5"', ["decimal comma", "declare decimal=','"], id="a decimal comma"),
    ],
)
def test_rows_of_a_wrong_type_say_what_to_declare(old, new, says):
    rows = read(SOURCE, "x.csv", GOOD.replace(old, new).encode())
    assert {rule for rule, _, _ in rows.faults} == {"wrong_type"}
    for text in says:
        assert text in rows.faults[0][1]


@pytest.mark.parametrize("local", ["2024-10-27T02:30:00", "2024-03-31T02:30:00"])
@pytest.mark.parametrize("date_format", ["", "%Y-%m-%dT%H:%M:%S"])
def test_a_time_that_the_clock_shows_twice_or_never_is_wrong(local, date_format):
    rows = read(
        declaring(time_zone="Europe/Berlin", date_format=date_format),
        "x.csv",
        GOOD.replace("2024-05-01T06:00:00Z", local).encode(),
    )
    assert [rule for rule, _, _ in rows.faults] == ["wrong_type"]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("s"), pa.date32(), pa.date64()])
def test_parquets_times_without_a_zone_need_a_declared_one(kind, zone):
    columns = {
        "id": [1],
        "name": ["a"],
        "amount": [1.5],
        "known_at": pa.array([pd.Timestamp("2024-05-01")], pa.timestamp("us")).cast(kind),
    }
    rows = read(declaring(time_zone=zone), "x.parquet", parquet(pa.table(columns)))
    if zone:
        assert rows.typed["known_at"].tolist() == [pd.Timestamp("2024-05-01", tz=zone).tz_convert("UTC")]
    else:
        assert [rule for rule, _, _ in rows.faults] == ["wrong_type"]
        assert "declare time_zone" in rows.faults[0][1]


MEGABYTE = 2**20
MANY = 100_000
LONG_TEXT = pa.DictionaryArray.from_arrays(pa.array([0] * MANY, pa.int32()), ["x" * 10_000])
SHARED = pa.table(
    {"id": pa.array([1] * MANY), "name": LONG_TEXT, "amount": [1.0] * MANY, "known_at": [ROWS[0][3]] * MANY}
)
KINDS = {"id": pa.int64(), "name": pa.string(), "amount": pa.float64(), "known_at": pa.timestamp("us", "UTC")}
NOTHING = pa.table({column: pa.nulls(20_000_000, kind) for column, kind in KINDS.items()})
BOMBS = {
    "gzip": ("x.csv", gzip.compress(GOOD.encode() + b"\n" * 300 * MEGABYTE)),
    "zstd": ("x.json", zstd(b" " * 300 * MEGABYTE)),
    "one text for all rows": ("x.parquet", parquet(SHARED)),
    "runs of nothing": ("x.parquet", parquet(NOTHING)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_by_its_bytes(bomb):
    name, content = BOMBS[bomb]
    assert len(content) < MEGABYTE
    source = declaring(max_bytes=20 * MEGABYTE)
    pool, before = pa.default_memory_pool(), pa.default_memory_pool().bytes_allocated()
    tracemalloc.start()
    reason = refusal(source, name, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason.rule == "too_large"
    assert "max_bytes" in reason.message
    assert peak < 60 * MEGABYTE
    assert pool.bytes_allocated() - before < 60 * MEGABYTE


def test_identical_refusals_are_one_line():
    refusals = [
        ("orders", f"d{n}.csv", refusal(SOURCE, f"d{n}.csv", (SEMICOLON * (n + 1)).encode())._asdict())
        for n in range(30)
    ]
    refusals.append(("orders", "page.csv", refusal(SOURCE, "page.csv", b"<html>")._asdict()))
    lines = grouped(refusals)
    assert len(lines) == 2
    assert lines[0].startswith("orders: rule unreadable, ")
    assert "d0.csv: " in lines[0] and "and 29 more for the same reason: d1.csv, d2.csv" in lines[0]
    assert "HTML" in lines[1]


def test_two_faults_are_two_lines():
    twice = [
        ("orders", name, refusal(SOURCE, name, content)._asdict())
        for name, content in (("a.csv", GOOD.encode("utf-16")), ("b.csv", SEMICOLON.encode()))
    ]
    assert len(grouped(twice)) == 2
