"""The real ingest DAG on good files: everything arrives once, and a rerun changes nothing."""

from include import ledger
from include.data import layout, tables
from include.data.feed import drop
from include.ledger import moment
from include.projects import get_project

FLIGHTS = get_project("flights")
CUTOFF = "2013-01-02T10:00:00Z"
SOURCES = [source.name for source in FLIGHTS.sources]


def rows(name: str):
    return tables.read(FLIGHTS, name, known_by=moment(CUTOFF))


def versions() -> dict[str, int | None]:
    return {name: tables.table_version(layout.table(FLIGHTS, name)) for name in (*SOURCES, "quarantine")}


def test_good_files_arrive_whole_and_a_second_run_changes_nothing(run_dag):
    feed = FLIGHTS.module("feed")
    files = drop(FLIGHTS, since=feed.first_moment(), until=moment(CUTOFF))

    run = run_dag("flights__ingest", {"cutoff": CUTOFF})

    assert run.state == "success", run
    assert run.tasks == dict.fromkeys(
        ["decide_cutoff", *(f"ingest_{name}" for name in SOURCES), "announce_tables", "fail_on_refused_files"],
        "success",
    )
    for source in FLIGHTS.sources:
        upstream = feed.upstream()[source.name]
        assert len(rows(source.name)) == (upstream[source.known_at] <= moment(CUTOFF)).sum() > 0
    assert ledger.count_files("flights") == files
    assert not [reason for record in ledger.file_records("flights") for reason in record["reasons"]]
    # The asset event only references the new data.
    first = versions()
    assert run.events == [("flights.tables", {"cutoff": CUTOFF, "versions": {name: first[name] for name in SOURCES}})]
    stage = ledger.stage_record("flights", "ingest", CUTOFF)
    assert stage["dag_run"] == run.run_id
    assert all(len(str(result)) < 1000 for result in run.results.values())
    # One click away from the task: the outcome of each file, and the Data Docs.
    report = layout.report(FLIGHTS, "flights__ingest", run.run_id, "ingest_schedule")
    assert "2012-12-31.csv" in (report / "index.html").read_text()
    assert 'title="Data Docs of this run" srcdoc=' in (report / "index.html").read_text()
    assert "expect" in (report / "data_docs.html").read_text().lower()

    again = run_dag("flights__ingest", {"cutoff": CUTOFF})

    assert again.state == "success"
    assert versions() == first
    assert again.events == run.events
    assert {name: again.results[f"ingest_{name}"]["files"] for name in SOURCES} == dict.fromkeys(SOURCES, 0)


def test_files_that_come_again_are_not_ingested_again_and_later_ones_are(run_dag):
    feed = FLIGHTS.module("feed")
    schedule = FLIGHTS.model_copy(update={"sources": (FLIGHTS.source("schedule"),)})
    drop(schedule, since=feed.first_moment(), until=moment(CUTOFF))
    run_dag("flights__ingest", {"cutoff": CUTOFF})
    later = "2013-01-03T10:00:00Z"
    drop(schedule, since=feed.first_moment(), until=moment(later))

    run = run_dag("flights__ingest", {"cutoff": later})

    assert run.state == "success"
    assert run.results["ingest_schedule"]["files"] == 1
    assert (
        len(tables.read(FLIGHTS, "schedule", known_by=moment(later)))
        == (feed.upstream()["schedule"]["published_at"] <= moment(later)).sum()
    )


def test_a_project_without_files_has_nothing_to_say(run_dag):
    run = run_dag("flights__ingest", {"cutoff": CUTOFF})
    assert run.state == "success"
    # No new data for features, so no event.
    assert run.tasks["announce_tables"] == "skipped"
    assert not run.events
    assert set(versions().values()) == {None}
    assert ledger.stage_record("flights", "ingest", CUTOFF)
