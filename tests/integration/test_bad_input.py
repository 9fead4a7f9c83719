"""Bad input through the real ingest DAG: no wrong row in a table, no lost row, a clear message.

The message names file, rule and count. Each bad file of the feed arrives after a day of real
flights, and all bad files arrive together with it. The tables must end exactly as without them.
"""

import json
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest

from include import ledger
from include.data import feed, layout, tables
from include.data.quarantine import QUARANTINE
from include.ledger import moment
from include.projects import get_project

FLIGHTS = get_project("flights")
FEED = FLIGHTS.module("feed")
SINCE, CUTOFF = FEED.first_moment(), "2013-01-02T10:00:00Z"


@pytest.fixture
def drop(fresh_store):
    """Put the files of some sources until the cutoff into the landing zone."""

    def drop(*names: str, until: str = CUTOFF) -> None:
        sources = [FLIGHTS.source(name) for name in names]
        feed.drop(FLIGHTS.model_copy(update={"sources": tuple(sources)}), since=SINCE, until=moment(until))

    return drop


@pytest.fixture
def ingest(run_dag):
    """Run the DAG, and assert that no row is lost or duplicated."""

    def ingest(cutoff: str = CUTOFF):
        run = run_dag("flights__ingest", {"cutoff": cutoff})
        has_tables = any(
            tables.table_version(layout.table(FLIGHTS, source.name)) is not None for source in FLIGHTS.sources
        )
        assert run.tasks.pop("announce_tables") == ("success" if has_tables else "skipped"), run
        assert [name for name, _ in run.events] == (["flights.tables"] if has_tables else [])
        assert {state for task, state in run.tasks.items() if task != "fail_on_refused_files"} == {"success"}, run
        assert_nothing_is_lost()
        return run

    return ingest


@pytest.fixture
def good_day(drop, ingest, fresh_store, tmp_path_factory):
    """Return a store with the good files of the first day.

    One DAG run creates it, and each test gets a copy.
    """
    if not _GOOD_DAY:
        drop("schedule", "actuals", "weather")
        assert ingest().state == "success"
        assert_the_good_day_is_whole()
        _GOOD_DAY.append(tmp_path_factory.mktemp("good_day") / "home")
        shutil.copytree(fresh_store, _GOOD_DAY[0])
    else:
        shutil.copytree(_GOOD_DAY[0], fresh_store)


_GOOD_DAY: list = []


def assert_the_good_day_is_whole() -> None:
    for name in ("schedule", "actuals", "weather"):
        assert_table_is_the_upstream(name)


def table(name: str) -> pd.DataFrame:
    delta_table = tables.open_table(layout.table(FLIGHTS, name))
    return (
        delta_table.to_pyarrow_table().to_pandas()
        if delta_table
        else tables.arrow_schema(QUARANTINE).empty_table().to_pandas()
    )


def record(file: str) -> dict:
    (match,) = [r for r in ledger.file_records("flights") if r["file"] == file]
    return match


def landed(source: str, name: str):
    return layout.landing(FLIGHTS, FLIGHTS.source(source)) / name


def assert_nothing_is_lost() -> None:
    quarantine = table("quarantine")
    for record in ledger.file_records("flights"):
        counts, name = record["counts"], record["file"]
        assert counts["rows"] == counts["table"] + counts["quarantine"] + counts["refused"], record
        assert (
            counts["quarantine"]
            == len(quarantine[(quarantine["source"] == record["source"]) & (quarantine["file"] == name)])
            or record["status"] == "refused"
        )
        if record["status"] == "refused":
            kept = layout.refused(FLIGHTS, FLIGHTS.source(record["source"])) / name
            assert kept.read_bytes() == landed(record["source"], name).read_bytes()
            assert json.loads(kept.with_name(f"{name}.reason.json").read_text()) == record["reasons"]
    for source in FLIGHTS.sources:
        counted = [r["counts"]["table"] for r in ledger.file_records("flights") if r["source"] == source.name]
        rows = table(source.name)
        assert len(rows) == sum(counted)
        assert not len(rows) or not rows.duplicated(list(source.key)).any()


def assert_table_is_the_upstream(
    name: str, leaving_out=lambda rows: rows["published_at" if "published_at" in rows else "known_at"].isna()
) -> None:
    """Assert that the table holds exactly the rows that the upstream published until the cutoff."""
    source = FLIGHTS.source(name)
    rows = FEED.upstream()[name]
    rows = rows[rows[source.known_at] <= pd.Timestamp(CUTOFF)]
    rows = rows[~leaving_out(rows)][list(source.columns)].sort_values(list(source.key), ignore_index=True)
    pd.testing.assert_frame_equal(table(name).sort_values(list(source.key), ignore_index=True), rows, check_dtype=False)


@pytest.mark.parametrize(
    ("kind", "source", "rule", "rows", "says"),
    [
        pytest.param(
            "missing_column", "schedule", "missing_column", 10, "'published_at' is missing", id="a missing column"
        ),
        pytest.param("extra_column", "schedule", "extra_column", 10, "'gate' is not declared", id="an extra column"),
        pytest.param("wrong_type", "schedule", "tolerance", 10, "more than the tolerance of 20%", id="a wrong type"),
        pytest.param("empty_file", "schedule", "empty_file", 0, "empty", id="an empty file"),
        pytest.param(
            "truncated_parquet", "schedule", "unreadable", 0, "not readable as parquet", id="a truncated parquet file"
        ),
        pytest.param("truncated_json", "weather", "unreadable", 0, "not readable as json", id="a truncated JSON file"),
        pytest.param(
            "duplicated_file",
            "schedule",
            "duplicated_file",
            842,
            "the same content came as 2012-12-31.csv",
            id="a duplicated file",
        ),
    ],
)
def test_a_file_is_refused_whole_for(good_day, ingest, kind, source, rule, rows, says):
    bad = feed.drop_bad(FLIGHTS, kind, since=SINCE, until=moment(CUTOFF))

    run = ingest()

    refused = record(bad.name)
    first = refused["reasons"][0]
    assert (refused["source"], refused["status"], first["rule"], first["count"]) == (source, "refused", rule, rows)
    assert refused["counts"] == {"rows": rows, "table": 0, "quarantine": 0, "refused": rows}
    assert bad.name in first["message"]
    assert says in first["message"]
    assert_the_good_day_is_whole()
    assert table("quarantine").empty
    # The run fails only because of this file, and reports what is wrong and why.
    assert (run.state, run.tasks["fail_on_refused_files"]) == ("failed", "failed")
    assert f"rule {rule}, {rows} rows: {bad.name}" in run.log
    assert run.results[f"ingest_{source}"]["refused_files"] == [bad.name]


@pytest.mark.parametrize(
    ("kind", "source", "rules", "says"),
    [
        pytest.param(
            "duplicated_keys",
            "schedule",
            {"duplicated_keys": 2, "repeats_earlier": 10},
            "occurs more than once",
            id="duplicated keys",
        ),
        pytest.param(
            "negative_distance",
            "schedule",
            {"column_values_to_be_between(distance)": 1, "repeats_earlier": 9},
            "min_value=1",
            id="a negative distance",
        ),
        pytest.param(
            "from_the_future",
            "actuals",
            {"from_the_future": 1, "repeats_earlier": 9},
            "after the run's cutoff 2013-01-02 10:00",
            id="a time in the future of the cutoff",
        ),
        pytest.param(
            "unknown_flight",
            "actuals",
            {"unknown_reference": 1, "repeats_earlier": 9},
            "nothing in 'schedule'",
            id="a label for an unknown flight",
        ),
        pytest.param(
            "contradicting_label",
            "actuals",
            {"contradicts_earlier": 1, "repeats_earlier": 9},
            "the earlier ones stay",
            id="a label that contradicts an earlier one",
        ),
    ],
)
def test_rows_go_to_quarantine_for(good_day, ingest, kind, source, rules, says):
    bad = feed.drop_bad(FLIGHTS, kind, since=SINCE, until=moment(CUTOFF))

    run = ingest()

    taken = record(bad.name)
    assert (taken["status"], taken["counts"]["table"], taken["counts"]["refused"]) == ("ingested", 0, 0)
    assert {r["rule"]: r["count"] for r in taken["reasons"]} == rules
    quarantine = table("quarantine").sort_values("row")
    assert quarantine.groupby("rule").size().to_dict() == rules
    assert set(quarantine["file"]) == {bad.name}
    assert [json.loads(row)["carrier"] for row in quarantine["row_json"]] == pd.read_csv(landed(source, bad.name))[
        "carrier"
    ].tolist()
    worst = min(rules, key=rules.get)
    (reason,) = [r for r in taken["reasons"] if r["rule"] == worst]
    assert f"{bad.name}: {worst}: {rules[worst]} rows" in reason["message"]
    assert says in reason["message"]
    assert reason["message"] in run.log
    assert_the_good_day_is_whole()
    assert run.state == "success"  # a few bad rows are normal


def test_all_of_them_together_do_no_harm_to_the_good_files_that_come_with_them(drop, ingest):
    drop("schedule", "actuals", "weather")
    bad = {
        kind: feed.drop_bad(FLIGHTS, kind, since=SINCE, until=moment(CUTOFF))
        for kind in FEED.BAD_KINDS
        if kind != "weather_gap"
    }

    run = ingest()

    assert_the_good_day_is_whole()
    assert {r["file"] for r in ledger.file_records("flights") if r["reasons"]} == {path.name for path in bad.values()}
    refused = {r["file"] for r in ledger.file_records("flights") if r["status"] == "refused"}
    assert refused == {
        bad[kind].name
        for kind in (
            "missing_column",
            "extra_column",
            "wrong_type",
            "empty_file",
            "truncated_parquet",
            "truncated_json",
            "duplicated_file",
        )
    }
    assert all(name in run.log.partition("files were refused whole")[2] for name in refused)


def test_weather_missing_for_six_hours_is_named_and_keeps_nothing_out(drop, ingest):
    drop("weather")
    bad = feed.drop_bad(FLIGHTS, "weather_gap", since=SINCE, until=moment(CUTOFF))

    run = ingest()

    (reason,) = record(bad.name)["reasons"]
    assert (reason["rule"], reason["severity"], reason["count"]) == ("gap", "warning", 1)
    assert f"{bad.name}: gap: nothing for origin=JFK from 2013-01-01 07:00 to 2013-01-01 14:00" in reason["message"]
    assert reason["message"] in run.log
    report = layout.report(FLIGHTS, "flights__ingest", run.run_id, "ingest_weather") / "index.html"
    assert "nothing for origin=JFK from 2013-01-01 07:00" in report.read_text()
    assert_table_is_the_upstream(
        "weather",
        lambda rows: (rows["origin"] == "JFK") & rows["observed_at"].between("2013-01-01T08:00Z", "2013-01-01T13:00Z"),
    )
    assert run.state == "success"


def test_weather_that_does_not_come_any_more_is_named(drop, ingest):
    drop("weather", until="2013-01-02T02:00:00Z")
    run = ingest("2013-01-02T10:00:00Z")
    assert "nothing for origin=EWR from 2013-01-02 01:00 until the cutoff 2013-01-02 10:00" in run.log


def test_a_contradiction_within_a_file_keeps_both_rows_out(drop, ingest):
    """A contradiction within a file quarantines both rows.

    It is unknown which of the two is right. The other rows of the file are good.
    """
    drop("schedule")
    path = landed("schedule", "2012-12-31.csv")
    rows = pd.read_csv(path)
    twice = pd.concat([rows, rows.head(1).assign(distance=7.0)])
    path.write_text(twice.to_csv(index=False))

    ingest()

    assert {r["rule"]: r["count"] for r in record(path.name)["reasons"]} == {"contradicting_keys": 2}
    assert_table_is_the_upstream(
        "schedule",
        lambda upstream: (
            (upstream["carrier"] == rows["carrier"][0])
            & (upstream["flight"] == rows["flight"][0])
            & (upstream["published_at"] < "2013-01-01")
        ),
    )


def test_what_a_refused_file_says_does_not_speak_against_the_rows_of_a_good_one(drop, ingest):
    """Rows of a refused file do not count as earlier versions of a good file's rows.

    They never entered the table, so the same rows in a later file are not duplicates.
    """
    drop("schedule")
    rows = pd.read_csv(landed("schedule", "2012-12-31.csv")).head(10)
    landed("schedule", "0-bad.csv").write_text(
        rows.assign(distance=rows["distance"].where(rows.index > 3, -1.0)).to_csv(index=False)
    )

    ingest()

    assert [r["rule"] for r in record("0-bad.csv")["reasons"]] == ["tolerance", "column_values_to_be_between(distance)"]
    assert_table_is_the_upstream("schedule")


def test_history_may_come_as_parquet(drop, ingest):
    source = FLIGHTS.source("schedule")
    rows = FEED.upstream()["schedule"]
    rows = rows[rows["published_at"] <= pd.Timestamp(CUTOFF)]
    layout.landing(FLIGHTS, source).mkdir(parents=True)
    pq.write_table(
        tables.pa.Table.from_pandas(rows[list(source.columns)], preserve_index=False),
        str(landed("schedule", "history.parquet")),
    )

    ingest()

    assert_table_is_the_upstream("schedule")


def test_a_refused_file_is_judged_again_when_its_reason_is_taken_away(drop, ingest):
    """A refused file is judged again when the reason of its refusal is gone.

    Labels that arrive before their schedule become valid once the schedule exists.
    """
    drop("actuals")
    first = ingest()
    assert first.tasks["fail_on_refused_files"] == "failed"
    drop("schedule")
    ingest()
    assert table("actuals").empty

    for reason in layout.refused(FLIGHTS, FLIGHTS.source("actuals")).glob("*.reason.json"):
        reason.unlink()
    run = ingest()

    assert run.state == "success"
    assert_table_is_the_upstream("actuals")
