"""Columns that ingest adds: row ids of a source without a key, and known_at from an expression."""

from datetime import timedelta

import pandas as pd
import pytest

from include.data import layout, tables
from include.data.added import ExpressionError
from include.data.ingest import ingest_source
from include.data.reading import read, to_table
from include.data.tables import arrow_schema
from include.ledger import moment
from include.projects.base import Source
from include.projects.flights import expectations
from include.projects.flights import project as flights
from include.settings import get_settings

COLUMNS = {"id": "int64", "shipped": "timestamp", "paid": "timestamp", "days": "int64"}
HEADER = "id,shipped,paid,days\n"
FIRST = "1,2024-05-01T06:00:00Z,2024-05-02T06:00:00Z,3\n"
NOON = pd.Timestamp("2024-05-02T06:00Z")


def source(known_at: str = "paid", **more) -> Source:
    return Source(
        **{
            "name": "orders",
            "columns": COLUMNS,
            "key": ("id",),
            "known_at": known_at,
            "nullable": ("paid", "days"),
            **more,
        }
    )


@pytest.mark.parametrize(
    ("known_at", "expected"),
    [
        ("greatest(shipped, paid)", NOON),
        ("shipped + interval 2 hours", NOON - timedelta(hours=22)),
        ("coalesce(paid, shipped) + to_days(CAST(days AS INTEGER))", NOON + timedelta(days=3)),
        ("CAST(date_trunc('day', paid) AS DATE)", NOON.floor("D")),
    ],
)
def test_known_at_is_computed_in_utc_and_stored(known_at, expected):
    orders = source(known_at)
    rows = read(orders, "x.csv", (HEADER + FIRST).encode())
    assert not rows.faults
    assert orders.known_at == "known_at"
    assert rows.typed["known_at"].tolist() == [expected]
    assert to_table(orders, rows.typed).schema == arrow_schema(orders.columns)


def test_a_row_for_which_it_gives_nothing_is_named():
    lines = FIRST + "2,2024-05-01T06:00:00Z,,3\n" + "3,bad,2024-05-02T06:00:00Z,3\n"
    rows = read(source("paid + interval 1 day"), "x.csv", (HEADER + lines).encode())
    assert [(rule, mask.tolist()) for rule, _, mask in rows.faults] == [
        ("wrong_type", [False, False, True]),
        ("missing_value", [False, True, False]),
    ]
    assert "paid + interval 1 day" in rows.faults[1][1]


def test_a_row_in_which_it_fails_is_named():
    rows = read(
        source("paid + to_days(CAST(days AS INTEGER))"),
        "x.csv",
        (HEADER + FIRST + FIRST.replace("1,", "2,", 1).replace(",3", ",9000000000")).encode(),
    )
    assert [(rule, mask.tolist()) for rule, _, mask in rows.faults] == [("missing_value", [False, True])]


@pytest.mark.parametrize(
    "known_at",
    [
        "nope + interval 1 day",
        "paid +",
        "days + 1",
        "now() + interval 1 day",
        "paid) FROM rows; SELECT (1",
        "max(paid)",
        "(SELECT paid FROM '/etc/passwd')",
    ],
)
def test_a_wrong_expression_is_a_fault_of_the_project(known_at):
    with pytest.raises(ExpressionError, match="source 'orders': known_at"):
        read(source(known_at), "x.csv", (HEADER + FIRST + FIRST).encode())


def test_rows_without_a_key_are_all_taken_once(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.setitem(expectations._SOURCES, "orders", list)
    get_settings.cache_clear()
    orders = source(key=())
    project = flights.model_copy(update={"sources": (orders,)})
    folder = layout.landing(project, orders)
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text(HEADER + FIRST + FIRST)
    (folder / "b.csv").write_text(HEADER + FIRST)
    ingest_source(project, orders, "2024-06-01T00:00:00Z")
    (folder / "c.csv").write_text(HEADER + FIRST + FIRST)  # the first file again
    ingest_source(project, orders, "2024-06-01T00:00:00Z")
    rows = tables.read(project, "orders", known_by=moment("2024-06-01T00:00:00Z"))
    assert rows["id"].tolist() == [1, 1, 1]
    assert rows["row_id"].is_unique
    assert set(rows["row_id"].str.rpartition("-")[2]) == {"1", "2"}
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"known_at": "sent"}, "names column 'sent'"),
        ({"known_at": "id"}, "must be a timestamp"),
        (
            {"known_at": "paid + interval 1 day", "columns": {**COLUMNS, "known_at": "timestamp"}},
            "no column may be called 'known_at'",
        ),
        ({"key": (), "columns": {**COLUMNS, "row_id": "string"}}, "no column may be called 'row_id'"),
        ({"rename": {"Order": "order"}}, "names column 'order'"),
        ({"rename": {"a": "id", "b": "id"}}, "the same name"),
        ({"delimiter": '"'}, "delimiter"),
        ({"delimiter": ",", "decimal": ","}, "cannot be told from"),
        ({"encoding": "utf-99"}, "not a text encoding"),
        ({"encoding": "base64"}, "not a text encoding"),
        ({"time_zone": "Berlin"}, "no IANA time zone"),
        ({"date_format": "%d.%m.%Y"}, "declare time_zone"),
        ({"date_format": "%Q", "time_zone": "UTC"}, "not a format of strptime"),
        ({"date_format": {"sent": "%d"}, "time_zone": "UTC"}, "names column 'sent'"),
    ],
)
def test_a_wrong_declaration_says_so(declared, says):
    with pytest.raises(ValueError, match=says):
        source(**declared)
