"""Files are read strictly: undeclared content is refused, or its rows are reported."""

import io

import pandas as pd
import pytest

from include.data.reading import FileRefusedError, read, to_table
from include.data.tables import arrow_schema
from include.projects.base import Source

SOURCE = Source(
    name="meters",
    columns={"meter": "string", "at": "timestamp", "count": "int64", "value": "float64", "valid": "bool"},
    key=("meter", "at"),
    known_at="at",
    nullable=("value",),
)
GOOD = "meter,at,count,value,valid\na,2013-01-01T00:00:00Z,1,1.5,true\nb,2013-01-01T01:00:00+01:00,2,,false\n"
JSON = '[{"meter": "a", "at": "2013-01-01T00:00:00Z", "count": 1, "value": 1.5, "valid": true}]'


def parquet(**changes) -> bytes:
    rows = {
        "meter": ["a"],
        "at": [pd.Timestamp("2013-01-01", tz="UTC")],
        "count": [1],
        "value": [1.5],
        "valid": [True],
        **changes,
    }
    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer)
    return buffer.getvalue()


def test_a_good_file_comes_with_the_declared_types_and_times_in_utc():
    rows = read(SOURCE, "x.csv", GOOD.encode())
    assert not rows.faults
    assert to_table(SOURCE, rows.typed).schema == arrow_schema(SOURCE.columns)
    assert rows.typed["at"].tolist() == [pd.Timestamp("2013-01-01", tz="UTC")] * 2
    assert rows.typed["value"].isna().tolist() == [False, True]
    assert rows.typed["valid"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", GOOD.splitlines()[0].encode() + b"\n" + GOOD.splitlines()[1].encode()),
        ("x.json", JSON.encode()),
        ("x.parquet", parquet()),
    ],
)
def test_the_three_formats_give_the_same_rows(name, content):
    expected = read(SOURCE, "x.csv", GOOD.encode()).typed.head(1)
    actual = read(SOURCE, name, content)
    assert not actual.faults
    assert to_table(SOURCE, actual.typed).equals(to_table(SOURCE, expected))


@pytest.mark.parametrize(
    ("name", "content", "rule", "count"),
    [
        pytest.param("x.csv", b"", "empty_file", 0, id="nothing in it"),
        pytest.param("x.csv", b"\n \n", "empty_file", 0, id="white space in it"),
        pytest.param("x.csv", GOOD.splitlines()[0].encode() + b"\n", "empty_file", 0, id="a header and no rows"),
        pytest.param("x.json", b"[]", "empty_file", 0, id="an empty list"),
        pytest.param(
            "x.csv",
            GOOD.replace("count,", "", 1).replace(",1,", ",").replace(",2,", ",").encode(),
            "missing_column",
            2,
            id="a column less",
        ),
        pytest.param("x.csv", GOOD.replace("\n", ",x\n").encode(), "extra_column", 2, id="a column more"),
        pytest.param(
            "x.csv",
            GOOD.replace("\n", ",1.0\n").replace(",1.0", ",value", 1).encode(),
            "extra_column",
            2,
            id="a column twice",
        ),
        pytest.param("x.csv", GOOD[:-8].encode(), "unreadable", 2, id="a last line that is too short"),
        pytest.param("x.csv", GOOD.replace("false", "false,7").encode(), "unreadable", 2, id="a line that is too long"),
        pytest.param(
            "x.csv", GOOD.replace("a,2013", "\xff,2013").encode("latin-1"), "unreadable", 2, id="text that is not UTF-8"
        ),
        pytest.param("x.json", JSON[:-20].encode(), "unreadable", 0, id="JSON cut off"),
        pytest.param("x.json", b'"a"', "unreadable", 0, id="JSON that is no list"),
        pytest.param("x.json", b'{"meter": "a"}', "missing_column", 1, id="a line of JSON that lacks columns"),
        pytest.param(
            "x.json", (JSON[:-1] + ', {"meter": "b"}]').encode(), "unreadable", 0, id="JSON whose objects differ"
        ),
        pytest.param("x.parquet", parquet()[:-30], "unreadable", 0, id="parquet cut off"),
        pytest.param("x.xlsx", GOOD.encode(), "unreadable", 0, id="an ending that nobody knows"),
    ],
)
def test_a_file_is_refused_for(name, content, rule, count):
    with pytest.raises(FileRefusedError) as refused:
        read(SOURCE, name, content)
    reason = refused.value.reason
    assert (reason.rule, reason.count) == (rule, count)
    assert reason.message.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        pytest.param("count", "1.5", id="a fraction is no integer"),
        pytest.param("count", "one", id="a word is no integer"),
        pytest.param("count", "", id="nothing is no integer"),
        pytest.param("value", "much", id="a word is no number"),
        pytest.param("value", "nan", id="nan is no number"),
        pytest.param("value", "inf", id="infinity is no number"),
        pytest.param("at", "yesterday", id="a word is no time"),
        pytest.param("at", "2013-02-30T00:00:00Z", id="the thirtieth of February is no time"),
        pytest.param("at", "20130101000000", id="digits are no time"),
        pytest.param("valid", "maybe", id="maybe is neither true nor false"),
    ],
)
def test_a_row_is_named_for(column, value):
    header, good, _ = GOOD.splitlines()
    fields = dict(zip(header.split(","), good.split(","), strict=True))
    content = "\n".join([header, good, ",".join((fields | {column: value}).values())])
    faults = read(SOURCE, "x.csv", content.encode()).faults
    assert [(rule, mask.tolist()) for rule, _, mask in faults] == [
        ("wrong_type" if value else "missing_value", [False, True])
    ]
    assert column in faults[0][1]
    assert value in faults[0][1]


@pytest.mark.parametrize(
    ("old", "new", "column"),
    [
        pytest.param('"a"', "7", "meter", id="a number is no text"),
        pytest.param("1.5", '"x"', "value", id="text is no number"),
        pytest.param("1.5", "true", "value", id="true is no number"),
        pytest.param('"2013-01-01T00:00:00Z"', "1356998400", "at", id="seconds since 1970 are no time"),
        pytest.param('"count": 1,', '"count": 1.5,', "count", id="a fraction is no integer"),
    ],
)
def test_json_values_must_be_of_their_type(old, new, column):
    faults = read(SOURCE, "x.json", JSON.replace(old, new).encode()).faults
    assert [rule for rule, _, _ in faults] == ["wrong_type"]
    assert f"'{column}'" in faults[0][1]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        pytest.param("at", [1356998400], id="an integer is no time"),
        pytest.param("value", [pd.Timestamp("2013-01-01", tz="UTC")], id="a time is no number"),
        pytest.param("meter", [7], id="a number is no text"),
    ],
)
def test_parquet_values_must_be_of_their_type(column, values):
    faults = read(SOURCE, "x.parquet", parquet(**{column: values})).faults
    assert [rule for rule, _, _ in faults] == ["wrong_type"]


def test_large_integers_keep_their_digits():
    content = GOOD.replace(",1,", ",9007199254740993,")
    assert read(SOURCE, "x.csv", content.encode()).typed["count"].iloc[0] == 9007199254740993
