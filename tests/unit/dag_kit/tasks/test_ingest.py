"""The tasks of ingest: an event only if there is data, and an error if a file was refused."""

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from include import ledger
from include.dag_kit.tasks import ingest
from include.data import layout
from include.data.refused import FilesRefusedError
from include.projects import get_project

CUTOFF = "2013-01-02T10:00:00Z"
FLIGHTS = get_project("flights")
pytestmark = pytest.mark.usefixtures("own_store")


def take_in(content, ti):
    folder = layout.landing(FLIGHTS, FLIGHTS.source("planes"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "planes.csv").write_text(content)
    return ingest.ingest_source.function("flights", "planes", CUTOFF, ti=ti)


def test_a_source_without_files_has_no_version_and_nothing_is_announced(ti, events, emitted_events):
    done = [ingest.ingest_source.function("flights", source.name, CUTOFF, ti=ti) for source in FLIGHTS.sources]
    with pytest.raises(AirflowSkipException, match="nothing was ever ingested"):
        ingest.announce_tables.function("flights", CUTOFF, done, outlet_events=events, run_id="run")
    assert emitted_events() == {}
    # The stage is recorded all the same: the run has looked at everything up to its cutoff.
    assert ledger.stage_record("flights", "ingest", CUTOFF)["dag_run"] == "run"
    ingest.fail_on_refused_files.function("flights", done)


def test_one_source_with_a_version_is_enough_for_an_event(events, emitted_events):
    done = [{"source": "planes", "version": 3}, {"source": "weather", "version": None}]
    ingest.announce_tables.function("flights", CUTOFF, done, outlet_events=events, run_id="run")
    assert emitted_events() == {"flights.tables": {"cutoff": CUTOFF, "versions": {"planes": 3, "weather": None}}}


def test_a_refused_file_fails_the_last_task(ti):
    done = [take_in("not,the,columns\n1,2,3\n", ti)]
    with pytest.raises(FilesRefusedError, match="1 files were refused whole"):
        ingest.fail_on_refused_files.function("flights", done)
