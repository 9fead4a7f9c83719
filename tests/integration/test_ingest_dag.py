"""The real ingest DAG on good files: everything arrives, once; a second run changes nothing."""

import pytest

from include import ledger
from include.data import layout, tables
from include.ledger import moment
from include.projects import get_project

FLIGHTS = get_project("flights")
CUTOFF = "2013-01-03T10:00:00Z"
SOURCES = [source.name for source in FLIGHTS.sources]


def test_the_first_two_days_arrive_in_the_tables_and_a_second_run_changes_nothing(run_dag):
    feed = FLIGHTS.module("feed")
    feed.drop(FLIGHTS, since=feed.first_moment(), until=moment(CUTOFF))

    run = run_dag("flights__ingest", {"cutoff": CUTOFF})

    assert run.state == "success", run
    assert set(run.tasks) == {"decide_cutoff", "announce_tables", "fail_on_refused_files", *(f"ingest_{name}" for name in SOURCES)}
