"""Rows of a database are copied as text between SQLite and Postgres, in both directions.

The copy is of one moment, and contains all rows or none.
"""

import io
from datetime import datetime

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    insert,
    select,
    text,
)

from include.operations import rows

METADATA = MetaData()
PARENTS = Table(
    "z_parents", METADATA, Column("id", Integer, primary_key=True, autoincrement=True), Column("name", String(20))
)
CHILDREN = Table(
    "a_children",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("parent", ForeignKey("z_parents.id"), nullable=False),
    Column("number", Float(53)),
    Column("big", BigInteger),
    Column("yes", Boolean),
    Column("blob", LargeBinary),
    Column("json", JSON(none_as_null=True)),
    Column("time", DateTime),
)
EMPTY = Table("empty", METADATA, Column("id", Integer, primary_key=True))
ODD = [
    {
        "key": "ä_B",
        "parent": 7,
        "number": 0.1 + 0.2,
        "big": 2**62,
        "yes": True,
        "blob": bytes(range(256)),
        "json": {"b": [1, None], "a": "é"},
        "time": None,
    },
    {
        "key": "A b",
        "parent": 3,
        "number": 1e300,
        "big": -1,
        "yes": False,
        "blob": b"",
        "json": [],
        "time": datetime(2013, 1, 1, 2, 3, 4, 5),
    },
    {
        "key": "a\n\"'\\",
        "parent": 7,
        "number": None,
        "big": None,
        "yes": None,
        "blob": None,
        "json": None,
        "time": None,
    },
]
ALL = METADATA.tables.__contains__


@pytest.fixture
def databases(tmp_path, postgres_url):
    """Return the URL of a database of each kind with empty tables."""
    made = {"sqlite": f"sqlite:///{tmp_path / 'a.db'}", "postgres": postgres_url}
    for url in made.values():
        engine = create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))
        METADATA.create_all(engine)
        engine.dispose()
    return made


def fill(url: str) -> None:
    with rows.closing_engine(url) as engine, engine.begin() as connection:
        connection.execute(insert(PARENTS), [{"id": 3, "name": "three"}, {"id": 7, "name": "seven"}])
        connection.execute(insert(CHILDREN), ODD)


def saved(url: str) -> tuple[bytes, dict]:
    into = io.BytesIO()
    with rows.one_moment(url) as connection:
        held = rows.save(connection, rows.tables(connection, ALL), into)
    return into.getvalue(), held


def loaded(url: str, content: bytes, expected: dict) -> None:
    with rows.closing_engine(url) as engine, engine.begin() as connection:
        rows.load(connection, rows.tables(connection, ALL), content.splitlines(), expected)


@pytest.mark.parametrize("source, target", [("sqlite", "postgres"), ("postgres", "sqlite")])
def test_rows_come_over_as_they_are(databases, source, target):
    fill(databases[source])
    content, held = saved(databases[source])
    assert {name: one.rows for name, one in held.items()} == {"a_children": 3, "z_parents": 2}
    loaded(databases[target], content, held)
    with rows.one_moment(databases[target]) as connection:
        copies = [dict(row) for row in connection.execute(select(CHILDREN)).mappings()]
        assert sorted(copies, key=lambda row: row["key"]) == sorted(ODD, key=lambda row: row["key"])
        assert rows.contents(connection, rows.tables(connection, ALL)) == held
    assert saved(databases[target])[1] == held


def test_postgres_goes_on_counting_where_the_rows_end(databases):
    fill(databases["sqlite"])
    loaded(databases["postgres"], *saved(databases["sqlite"]))
    with rows.closing_engine(databases["postgres"]) as engine, engine.begin() as connection:
        assert connection.execute(text("INSERT INTO z_parents (name) VALUES ('next') RETURNING id")).scalar() == 8


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_what_is_written_meanwhile_is_not_seen(databases, kind):
    fill(databases[kind])
    if kind == "sqlite":  # as in Airloop's databases
        with rows.closing_engine(databases[kind]) as engine, engine.connect() as connection:
            connection.connection.driver_connection.execute("PRAGMA journal_mode = WAL")
    with rows.one_moment(databases[kind]) as reading:
        tables = rows.tables(reading, ALL)
        before = rows.contents(reading, tables)
        with rows.closing_engine(databases[kind]) as engine, engine.begin() as connection:
            connection.execute(insert(PARENTS).values(id=99, name="late"))
        assert rows.contents(reading, tables) == before
    with rows.one_moment(databases[kind]) as reading:
        assert rows.contents(reading, tables) != before


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda content: content.replace(b'"seven"', b'"eleven"'),
            "after loading, z_parents did not hold what the archive says: nothing was kept",
        ),
        (lambda content: content.replace(b'"name"', b'"title"'), "table z_parents of the archive does not fit"),
        (
            lambda content: content.replace(b'"z_parents"', b'"others"'),
            "table others of the archive does not fit: here it is not known",
        ),
    ],
)
def test_rows_that_are_not_those_of_the_archive_are_not_kept(databases, change, message):
    fill(databases["sqlite"])
    content, held = saved(databases["sqlite"])
    with pytest.raises(rows.RowsError, match=message):
        loaded(databases["postgres"], change(content), held)
    with rows.one_moment(databases["postgres"]) as connection:
        assert rows.contents(connection, rows.tables(connection, ALL)) == {}


def test_a_database_that_is_not_there_is_not_an_empty_one(tmp_path):
    with (
        pytest.raises(rows.RowsError, match="there is no database"),
        rows.one_moment(f"sqlite:///{tmp_path / 'none.db'}"),
    ):
        pass
    assert not (tmp_path / "none.db").exists()
