"""Every value is stored exactly as written, or its row is rejected.

The tests cover all widths of integers and decimals, floats and times in all formats.
"""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from include.data import layout, tables
from include.data.ingest import ingest_source
from include.data.reading import FileRefusedError, Rows, read, to_table
from include.ledger import moment
from include.projects.base import Source
from include.projects.flights import expectations
from include.projects.flights import project as flights
from include.settings import get_settings

pytestmark = pytest.mark.slow

AT = datetime(2024, 5, 1, 6, tzinfo=UTC)
COUNTS = Source(
    name="counts",
    columns={"name": "string", "value": "int64", "at": "timestamp"},
    key=("name",),
    known_at="at",
    nullable=("value",),
    tolerance=1.0,
)
FLOATS = COUNTS.model_copy(update={"columns": {**COUNTS.columns, "value": "float64"}})
TEXTS = COUNTS.model_copy(update={"columns": {**COUNTS.columns, "value": "string"}})
TIMES = COUNTS.model_copy(update={"columns": {**COUNTS.columns, "value": "timestamp"}})
WIDTHS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
DECIMALS = [pa.decimal32, pa.decimal64, pa.decimal128, pa.decimal256]
NEAR = st.sampled_from([2**53, -(2**53), 2**63, -(2**63), 2**64, 10**18, 0]).flatmap(
    lambda n: st.integers(n - 3, n + 3)
)
INTEGERS = st.one_of(NEAR, st.integers(-(2**63), 2**63 - 1), st.integers(-(10**25), 10**25))
few = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def as_csv(values: list) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COUNTS.columns)
    writer.writerows([f"r{n}", "" if value is None else value, AT.isoformat()] for n, value in enumerate(values))
    return out.getvalue().encode()


def as_json(values: list, lines: bool = False) -> bytes:
    rows = [f'{{"name": "r{n}", "value": {value}, "at": "{AT.isoformat()}"}}' for n, value in enumerate(values)]
    return ("\n".join(rows) if lines else f"[{', '.join(rows)}]").encode()


def as_parquet(values: pa.Array) -> bytes:
    names, at = pa.array([f"r{n}" for n in range(len(values))]), pa.array([AT] * len(values), pa.timestamp("us", "UTC"))
    out = io.BytesIO()
    pq.write_table(pa.table({"name": names, "value": values, "at": at}), out)
    return out.getvalue()


def outcome(rows: Rows) -> list:
    """Return for each row the stored value, None, or "rejected"."""
    wrong = {n for rule, _, mask in rows.faults for n in mask.nonzero()[0]}
    assert {rule for rule, _, _ in rows.faults} <= {"wrong_type"}
    source = (
        TIMES
        if isinstance(rows.typed["value"].dtype, pd.DatetimeTZDtype)
        else FLOATS
        if rows.typed["value"].dtype.kind == "f"
        else COUNTS
    )
    source = TEXTS if rows.typed["value"].dtype == object else source
    stored = to_table(source, rows.typed)["value"].to_pylist()
    return ["rejected" if n in wrong else value for n, value in enumerate(stored)]


def fits(value: int | None) -> int | str | None:
    return value if value is None or -(2**63) <= value < 2**63 else "rejected"


@few
@given(st.lists(st.none() | INTEGERS, min_size=1, max_size=8))
def test_integers_in_text(values):
    expected = [fits(value) for value in values]
    assert outcome(read(COUNTS, "x.csv", as_csv(values))) == expected
    written = ["null" if value is None else value for value in values]
    assert outcome(read(COUNTS, "x.json", as_json(written))) == expected
    assert outcome(read(COUNTS, "x.json", as_json(written, lines=True))) == expected


@few
@given(st.sampled_from(WIDTHS), st.data())
def test_integers_of_every_width(width, data):
    low, high = (
        (0, 2**width.bit_width - 1)
        if pa.types.is_unsigned_integer(width)
        else (-(2 ** (width.bit_width - 1)), 2 ** (width.bit_width - 1) - 1)
    )
    values = data.draw(
        st.lists(st.none() | st.sampled_from([low, high]) | st.integers(low, high), min_size=1, max_size=8)
    )
    assert outcome(read(COUNTS, "x.parquet", as_parquet(pa.array(values, width)))) == [fits(value) for value in values]
    floats = outcome(read(FLOATS, "x.parquet", as_parquet(pa.array(values, width))))
    for value, actual in zip(values, floats, strict=True):
        assert (
            actual is None
            if value is None
            else (int(actual) == value if actual != "rejected" else int(float(value)) != value)
        )


@few
@given(st.sampled_from(DECIMALS), st.data())
def test_decimals_of_every_width(kind, data):
    most = {pa.decimal32: 9, pa.decimal64: 18, pa.decimal128: 38, pa.decimal256: 76}[kind]
    precision = data.draw(st.integers(1, most))
    scale = data.draw(st.integers(0, precision))
    unscaled = data.draw(
        st.lists(st.none() | st.integers(-(10**precision) + 1, 10**precision - 1), min_size=1, max_size=8)
    )
    values = [
        None if one is None else Decimal(one).scaleb(-scale) if abs(one) < 10**28 else Decimal(f"{one}e-{scale}")
        for one in unscaled
    ]
    array = pa.array(values, kind(precision, scale))
    whole = [
        None if one is None else (int(one) if one == int(one) and -(2**63) <= one < 2**63 else "rejected")
        for one in values
    ]
    assert outcome(read(COUNTS, "x.parquet", as_parquet(array))) == whole
    for value, actual in zip(values, outcome(read(FLOATS, "x.parquet", as_parquet(array))), strict=True):
        digits = "" if value is None else "".join(map(str, value.as_tuple().digits)).strip("0")
        if actual == "rejected":
            assert len(digits) > 15  # this many digits always fit
        elif value is not None:
            assert Decimal(f"{actual:.{max(len(digits), 1) - 1}e}") == value


@few
# Its shortest text is equally far from it and from the next float.
@example([2**-24])
@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_floats_come_back(values):
    assert outcome(read(FLOATS, "x.csv", as_csv([None if v is None else repr(v) for v in values]))) == values
    assert (
        outcome(read(FLOATS, "x.csv", as_csv([None if v is None else f"{v:.18e}" for v in values]))) == values
    )  # format of numpy.savetxt
    assert outcome(read(FLOATS, "x.json", as_json(["null" if v is None else repr(v) for v in values]))) == values
    assert outcome(read(FLOATS, "x.parquet", as_parquet(pa.array(values, pa.float64())))) == values
    whole = [v if v is None or (v == int(v) and abs(v) < 2**53) else "rejected" for v in values]
    assert outcome(read(COUNTS, "x.parquet", as_parquet(pa.array(values, pa.float64())))) == whole


@few
@given(
    st.lists(
        st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1),
        min_size=1,
        max_size=8,
    )
)
def test_texts_come_back(values):
    assert outcome(read(TEXTS, "x.csv", as_csv(values))) == values
    assert outcome(read(TEXTS, "x.json", as_json([json.dumps(v) for v in values]))) == values
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        assert outcome(read(TEXTS, "x.parquet", as_parquet(pa.array(values, pa.string()).cast(kind)))) == values


MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.sampled_from([UTC]))


@few
@given(
    st.lists(st.none() | MOMENTS, min_size=1, max_size=8),
    st.sampled_from([timedelta(0), timedelta(hours=5, minutes=30), timedelta(hours=-8)]),
)
def test_times_come_back(values, offset):
    zone = pa.timestamp("us", "UTC")
    assert outcome(read(TIMES, "x.csv", as_csv([None if v is None else v.isoformat() for v in values]))) == values
    local = [None if v is None else (v.replace(tzinfo=None) + offset * (2 < v.year < 9998)).isoformat() for v in values]
    sign, minutes = "-" if offset < timedelta(0) else "+", abs(offset) // timedelta(minutes=1)
    zoned = [
        t and f"{t}{sign}{minutes // 60:02}{minutes % 60:02}" if v is None or 2 < v.year < 9998 else f"{t}Z"
        for v, t in zip(values, local, strict=True)
    ]
    assert outcome(read(TIMES, "x.json", as_json([json.dumps(t) for t in zoned]))) == values
    assert outcome(read(TIMES, "x.parquet", as_parquet(pa.array(values, zone)))) == values


@few
@given(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8), st.sampled_from(["ms", "us", "ns"])
)
def test_times_of_every_unit(values, unit):
    per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    actual = outcome(read(TIMES, "x.parquet", as_parquet(pa.array(values, pa.timestamp(unit, "UTC")))))
    first, last = (
        int((at - datetime(1970, 1, 1)).total_seconds())
        for at in (datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59))
    )
    for value, stored in zip(values, actual, strict=True):
        if value is None or (value * 10**6 % per_second == 0 and first <= value // per_second <= last):
            assert stored == (
                None
                if value is None
                else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value * 10**6 // per_second)
            )
        else:
            assert stored == "rejected"


@few
@given(
    st.binary(max_size=300),
    st.sampled_from(["x.csv", "x.json", "x.jsonl", "x.parquet", "x.csv.gz", "x"]),
    st.sampled_from([b"", b"PAR1", b"\x1f\x8b\x08", b"[{"]),
)
def test_any_bytes_are_rows_or_a_refusal(content, name, start):
    try:
        rows = read(TEXTS, name, start + content)
    except FileRefusedError as refusal:
        assert refusal.reason.message.startswith(f"{name}: ")
    else:
        assert len(rows) > 0


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.setitem(expectations._SOURCES, "counts", list)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


IDS = [1582218195625938945, None, 1582218195625938946, 2**63 - 1, -(2**63), 9007199254740993]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", as_csv(IDS)),
        ("x.json", as_json(["null" if v is None else v for v in IDS])),
        ("x.jsonl", as_json(["null" if v is None else v for v in IDS], lines=True)),
        ("x.parquet", as_parquet(pa.array(IDS, pa.int64()))),
    ],
)
def test_integers_are_exact_in_the_table_and_for_whoever_reads_it(home, name, content):
    """Integers next to a missing value are exact for every reader.

    Readers use the Delta table, the frame of features, and the comparison of keys.
    """
    project = flights.model_copy(update={"sources": (COUNTS,)})
    landing = layout.landing(project, COUNTS)
    landing.mkdir(parents=True)
    (landing / name).write_bytes(content)
    ingest_source(project, COUNTS, "2024-05-02T00:00:00Z")
    (landing / "again.csv").write_bytes(as_csv(IDS).replace(b"938945", b"938944"))
    done = ingest_source(project, COUNTS, "2024-05-02T00:00:00Z")
    assert (
        tables.open_table(layout.table(project, "counts")).to_pyarrow_table().sort_by("name")["value"].to_pylist()
        == IDS
    )
    assert tables.read(project, "counts", known_by=moment("2024-05-02T00:00:00Z")).sort_values("name")[
        "value"
    ].tolist() == [v or pd.NA for v in IDS]
    quarantine = tables.open_table(layout.table(project, "quarantine")).to_pyarrow_table().to_pylist()
    assert done["quarantine"] == len(IDS)
    assert {
        row["rule"]: json.loads(row["row_json"])["value"] for row in quarantine if row["rule"] == "contradicts_earlier"
    } == {"contradicts_earlier": "1582218195625938944"}
