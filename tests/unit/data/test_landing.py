"""A bad file never stops its source.

Good files in the landing zone are ingested in the same run, and later ones in the next run.
"""

import io
import json
import os

import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from include import ledger
from include.data import landing, layout, reading, rules, tables
from include.data.ingest import ingest_source
from include.data.quarantine import QUARANTINE
from include.projects.base import Source
from include.projects.flights import expectations
from include.projects.flights import project as flights
from include.settings import get_settings

pytestmark = pytest.mark.slow

CUTOFF = "2024-05-02T00:00:00Z"
SOURCE = Source(
    name="orders",
    columns={"id": "int64", "name": "string", "amount": "float64", "known_at": "timestamp"},
    key=("id",),
    known_at="known_at",
    nullable=("name",),
    tolerance=0.9,
)
PROJECT = flights.model_copy(update={"sources": (SOURCE,)})
HEADER = "id,name,amount,known_at\n"


def rows(*ids: int, name: str = "a") -> bytes:
    return (HEADER + "".join(f"{one},{name},1.5,2024-05-01T06:00:00Z\n" for one in ids)).encode()


def parquet(**columns) -> bytes:
    out = io.BytesIO()
    good = {"id": [50], "name": ["a"], "amount": [1.5], "known_at": [pd.Timestamp("2024-05-01T06:00Z")]}
    pq.write_table(pa.table({**good, **columns}), out)
    return out.getvalue()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.setitem(
        expectations._SOURCES, "orders", lambda: [gxe.ExpectColumnValuesToBeBetween(column="amount", min_value=0)]
    )
    get_settings.cache_clear()
    folder = layout.landing(PROJECT, SOURCE)
    folder.mkdir(parents=True)
    yield folder
    get_settings.cache_clear()


def ids() -> list[int]:
    return sorted(tables.open_table(layout.table(PROJECT, "orders")).to_pyarrow_table()["id"].to_pylist())


def records() -> dict[str, dict]:
    return {record["file"]: record for record in ledger.file_records(PROJECT.name)}


def ingest(source: Source = SOURCE) -> dict:
    done = ingest_source(PROJECT, source, CUTOFF)
    assert done["rows"] == done["table"] + done["quarantine"] + done["refused"]
    return done


NOT_UTF8 = pa.array([b"\xff\xfe"]).view(pa.string())
HOSTILE = {
    "a category": ("h.parquet", parquet(name=pa.array(["x"]).dictionary_encode())),
    "text that is not UTF-8": ("h.parquet", parquet(name=NOT_UTF8)),
    "twenty digits": ("h.csv", HEADER.encode() + b"99999999999999999999,b,2.5,2024-05-01T06:00:00Z\n"),
    "five thousand digits": (
        "h.json",
        b'[{"id": ' + b"9" * 5000 + b', "name": "a", "amount": 1e999, "known_at": "x"}]',
    ),
    "a lone surrogate": (
        "h.json",
        b'[{"id": 51, "name": "\\ud800", "amount": 1.5, "known_at": "2024-05-01T06:00:00Z"}]',
    ),
    "a lone surrogate in a name": (
        "h.json",
        b'[{"id": 51, "\\ud800": "x", "amount": 1.5, "known_at": "2024-05-01T06:00:00Z"}]',
    ),
    "a NUL": ("h.csv", rows(51, name="a\x00b")),
    "a NUL in a name": ("h.csv", HEADER.replace("name", "na\x00me").encode() + b"1,a,1,2024-05-01T06:00:00Z\n"),
    "deep lists": ("h.json", b"[" * 100_000),
    "a deep value": (
        "h.json",
        b'[{"id": 51, "name": ' + b"[" * 900 + b"]" * 900 + b', "amount": 1.5, "known_at": "2024-05-01T06:00:00Z"}]',
    ),
    "the year 294247": ("h.parquet", parquet(known_at=pa.array([2**63 - 1], pa.timestamp("us", "UTC")))),
    "the year -290308": ("h.parquet", parquet(known_at=pa.array([-(2**63) + 1], pa.timestamp("us", "UTC")))),
    "lists": ("h.parquet", parquet(name=[["a"]])),
    "an extension": (
        "h.parquet",
        parquet(name=pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16], pa.binary(16)))),
    ),
    "a decimal of 76 digits": ("h.parquet", parquet(id=pa.array(["9" * 76]).cast(pa.decimal256(76, 0)))),
    "no columns": ("h.parquet", (lambda out: (pq.write_table(pa.table({}), out), out.getvalue())[1])(io.BytesIO())),
    "a long value": ("h.csv", rows(51, name="x" * 3_000_000)),
    "a long wrong value": ("h.csv", HEADER.encode() + b"x" * 3_000_000 + b",a,1.5,2024-05-01T06:00:00Z\n"),
    "garbage": ("h.parquet", b"PAR1" + bytes(range(256)) * 9 + b"PAR1"),
    "a name that is not Unicode": (os.fsdecode(b"h\xff.csv"), b"not,a,good,header\n"),
    "a name of two lines": ("h\n<b>.csv", b"not,a,good,header\n"),
    "a name as long as can be": ("h" * 251 + ".csv", b"not,a,good,header\n"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_no_content_stops_a_source(folder, what):
    name, content = HOSTILE[what]
    (folder / "a.csv").write_bytes(rows(1))
    (folder / name).write_bytes(content)
    (folder / "z.csv").write_bytes(rows(2))

    assert ingest()["files"] == 3
    assert {1, 2} <= set(ids()) <= {1, 2, 50, 51}
    assert ingest()["files"] == 0  # each file was read once

    (folder / "zz.csv").write_bytes(rows(3))
    assert ingest()["files"] == 1
    assert {1, 2, 3} <= set(ids())


@pytest.mark.parametrize("make", ["link", "link to nothing", "link to a folder", "folder", "pipe"])
def test_what_is_no_file_is_refused_by_name(folder, tmp_path, make):
    outside = tmp_path / "outside.csv"
    outside.write_bytes(rows(7))
    target = folder / "x.csv"
    if make == "pipe":
        os.mkfifo(str(target))
    elif make == "folder":
        target.mkdir()
        (target / "y.csv").write_bytes(rows(8))
    else:
        target.symlink_to({"link": outside, "link to nothing": tmp_path / "gone", "link to a folder": tmp_path}[make])
    (folder / "good.csv").write_bytes(rows(1))

    done = ingest()

    assert done["refused_files"] == ["x.csv"]
    assert ids() == [1]
    (reason,) = records()["x.csv"]["reasons"]
    assert reason["rule"] == "not_a_file"
    assert ("link" if "link" in make else make) in reason["message"]
    kept = [path.name for path in layout.refused(PROJECT, SOURCE).iterdir()]
    # The target of a link is not copied.
    assert kept == ["x.csv.reason.json"]
    assert ingest()["files"] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused_until_it_can_be_read(folder):
    (folder / "x.csv").write_bytes(rows(1))
    (folder / "x.csv").chmod(0)
    assert ingest()["refused_files"] == ["x.csv"]
    (folder / "x.csv").chmod(0o600)
    ingest()
    assert ids() == [1]


def test_a_file_beyond_the_limit_is_not_read(folder, monkeypatch):
    (folder / "big.csv").write_bytes(rows(*range(1000)))
    (folder / "good.csv").write_bytes(rows(1))
    read = []
    monkeypatch.setattr(
        landing.storage,
        "read_each",
        lambda paths, real=landing.storage.read_each: real(read.append(p.name) or p for p in paths),
    )
    ingest(SOURCE.model_copy(update={"max_bytes": 1000}))
    assert read == ["good.csv"]
    assert records()["big.csv"]["reasons"][0]["rule"] == "too_large"
    assert ids() == [1]


def test_a_file_that_is_taken_away_meanwhile_is_no_error(folder, monkeypatch):
    (folder / "a.csv").write_bytes(rows(1))
    (folder / "b.csv").write_bytes(rows(2))
    real = landing.storage.entries

    def listed(of):
        entries = real(of)
        (folder / "a.csv").unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(landing.storage, "entries", listed)
    assert ingest()["files"] == 1
    assert ids() == [2]


def test_a_file_that_becomes_a_link_meanwhile_is_not_followed(folder, tmp_path, monkeypatch):
    (folder / "a.csv").write_bytes(rows(1))
    (folder / "b.csv").write_bytes(rows(2))
    (tmp_path / "outside.csv").write_bytes(rows(7))
    real = landing.storage.entries

    def listed(of):
        entries = real(of)
        (folder / "a.csv").unlink()
        (folder / "a.csv").symlink_to(tmp_path / "outside.csv")
        return entries

    monkeypatch.setattr(landing.storage, "entries", listed)
    # As if it were a file again by then.
    monkeypatch.setattr(landing, "_landed", lambda *_: folder / "a.csv")
    assert ingest()["refused_files"] == ["a.csv"]
    assert ids() == [2]
    assert [path.name for path in layout.refused(PROJECT, SOURCE).iterdir()] == ["a.csv.reason.json"]


class OddError(Exception):
    """Error of an unknown library."""


@pytest.mark.parametrize("where", ["reading", "suite", "rule", "quarantine"])
def test_an_exception_about_one_file_refuses_that_file_alone(folder, monkeypatch, where):
    """An exception about one file refuses only that file.

    It may have any type, and may occur at any access to the content.
    """
    for number in range(9):
        (folder / f"{number}.csv").write_bytes(
            rows(number, name="odd" if number in (0, 4, 5) else "a") + b"x,a,1.5,2024-05-01T06:00:00Z\n"
        )

    def spoil(module, name: str, names) -> None:
        real = getattr(module, name)

        def spoiled(*args, **options):
            if "odd" in str(names(*args)):
                raise OddError("cannot be")
            return real(*args, **options)

        monkeypatch.setattr(module, name, spoiled)

    from include.data import judging

    if where == "reading":
        spoil(reading, "convert", lambda source, column, dtype, raw, kind: raw.to_pylist())
    elif where == "suite":
        spoil(judging, "validate", lambda name, typed, suite: typed["name"].tolist())
    elif where == "rule":
        spoil(rules, "repeated_keys", lambda source, typed, owner: typed["name"].tolist())
    else:
        spoil(judging, "quarantined", lambda source, file, content, *more: content.typed["name"].tolist())
    done = ingest()
    assert ids() == [1, 2, 3, 6, 7, 8]
    assert done["refused_files"] == ["0.csv", "4.csv", "5.csv"]
    for name in done["refused_files"]:
        (reason,) = records()[name]["reasons"]
        assert (reason["rule"], "OddError: cannot be" in reason["message"], name in reason["message"]) == (
            "failed",
            True,
            True,
        )
    assert ingest()["files"] == 0


def test_a_fault_of_the_project_is_no_files_fault(folder, monkeypatch):
    """A fault of the project does not refuse files.

    All files stay unchanged for the run after the project is fixed.
    """
    (folder / "a.csv").write_bytes(rows(1))
    (folder / "b.csv").write_bytes(rows(2))
    monkeypatch.setitem(
        expectations._SOURCES, "orders", lambda: [gxe.ExpectColumnValuesToBeBetween(column="nope", min_value=0)]
    )
    with pytest.raises(RuntimeError, match="could not be evaluated"):
        ingest()
    assert records() == {}
    monkeypatch.setitem(expectations._SOURCES, "orders", list)
    ingest()
    assert ids() == [1, 2]


def test_a_store_that_is_away_is_no_files_fault(folder, monkeypatch):
    (folder / "a.csv").write_bytes(rows(1))
    monkeypatch.setattr(rules, "known_already", lambda *_: (_ for _ in ()).throw(ConnectionError("away")))
    with pytest.raises(ConnectionError):
        ingest()
    assert records() == {}


def test_the_quarantine_keeps_rows_as_they_came(folder):
    content = (
        b'[{"id": 9007199254740993, "name": "\\ud800\\u0000", "amount": 0.1000000000000000000001, "known_at":'
        b' "2024-05-01T06:00:00Z"}]'
    )
    (
        ingest_source(PROJECT, SOURCE.model_copy(update={"tolerance": 1.0}), CUTOFF)
        if (folder / "x.json").write_bytes(content)
        else None
    )
    (row,) = tables.open_table(layout.table(PROJECT, "quarantine")).to_pyarrow_table().to_pylist()
    assert set(row) == set(QUARANTINE)
    written = {
        "id": 9007199254740993,
        "name": "\ud800\x00",
        "amount": "0.1000000000000000000001",
        "known_at": "2024-05-01T06:00:00Z",
    }
    assert json.loads(row["row_json"]) == written
    assert "\x00" not in row["message"]
