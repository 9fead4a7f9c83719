"""An ingest task that is killed after any of its writes ends after the retry as if undisturbed."""

import os
import re
import signal
from importlib import import_module

import pytest

from include import ledger
from include.data import layout, storage, tables
from include.data.feed import drop, drop_bad
from include.data.ingest import ingest_source
from include.ledger import moment
from include.projects import get_project
from include.settings import get_settings
from tests.integration.children import child

FLIGHTS = get_project("flights")
SCHEDULE = FLIGHTS.source("schedule")
CUTOFF = "2013-01-02T10:00:00Z"


def work(kill: tuple[str, str, int] | None) -> None:
    """Ingest the schedule, and die after the n-th call of a function."""
    if kill:
        module, name, calls = kill
        owner = import_module(module)
        real, left = getattr(owner, name), [calls]

        def deadly(*args, **kwargs):
            result = real(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, deadly)
    ingest_source(FLIGHTS, SCHEDULE, CUTOFF, report())


def report():
    return layout.report(FLIGHTS, "flights__ingest", "run", "ingest_schedule")


def run(home, kill=None) -> int:
    process = child(work, kill, AIRLOOP_HOME=str(home))
    process.start()
    process.join(500)
    return process.exitcode


def end() -> dict:
    """Return everything that the task leaves behind."""
    rows = {
        name: tables.open_table(layout.table(FLIGHTS, name))
        .to_pyarrow_table()
        .to_pandas()
        .astype(str)
        .sort_values(by)
        .values.tolist()
        for name, by in (("schedule", list(SCHEDULE.key)), ("quarantine", ["file", "row"]))
    }
    records = [{k: v for k, v in record.items() if k != "recorded_at"} for record in ledger.file_records("flights")]
    refused = {
        path.name: content for path, content in storage.read_all(storage.files(layout.refused(FLIGHTS, SCHEDULE)))
    }
    # The Data Docs page within the report contains its creation time.
    page = re.sub(r' srcdoc="[^"]*"', "", (report() / "index.html").read_text())
    return {**rows, "records": records, "refused": refused, "page": page}


@pytest.fixture
def dropped(fresh_store):
    feed = FLIGHTS.module("feed")
    window = {"since": feed.first_moment(), "until": moment(CUTOFF)}
    drop(FLIGHTS.model_copy(update={"sources": (SCHEDULE,)}), **window)
    for kind in ("missing_column", "negative_distance"):
        drop_bad(FLIGHTS, kind, **window)
    return fresh_store


@pytest.mark.parametrize(
    "kill",
    [
        pytest.param(("include.data.ingest", "judge", 1), id="when it has decided"),
        pytest.param(("include.data.storage", "write_parquet", 1), id="in the middle of writing the plan"),
        pytest.param(("include.data.ingest", "_write_plan", 1), id="when the plan is written"),
        pytest.param(("include.data.tables", "append", 1), id="when the good rows are appended"),
        pytest.param(("include.data.tables", "append", 2), id="when the bad rows are in quarantine"),
        pytest.param(("include.data.landing", "keep_refused", 1), id="when the refused file is kept"),
        pytest.param(("include.ledger", "record_file", 1), id="when the first file is on record"),
        pytest.param(("include.ledger", "record_file", 4), id="when the last file is on record"),
        pytest.param(("include.data.report", "add_outcomes", 1), id="when the outcome is written down"),
        pytest.param(("include.data.ingest", "_finish", 2), id="when the plan is carried out"),
        pytest.param(("include.data.report", "write_page", 1), id="when the report is written"),
    ],
)
def test_a_retry_ends_as_if_it_had_not_been_killed(dropped, tmp_path, monkeypatch, kill, undisturbed):
    assert run(dropped, kill) == -signal.SIGKILL
    assert run(dropped) == 0
    assert end() == undisturbed
    version = tables.table_version(layout.table(FLIGHTS, "schedule"))
    assert run(dropped) == 0
    assert (tables.table_version(layout.table(FLIGHTS, "schedule")), end()) == (version, undisturbed)


@pytest.fixture
def undisturbed(dropped, tmp_path_factory, monkeypatch):
    """Return the result in another home without a kill."""
    if "end" not in _UNDISTURBED:
        other = tmp_path_factory.mktemp("undisturbed")
        with monkeypatch.context() as patch:
            patch.setenv("AIRLOOP_HOME", str(other))
            get_settings.cache_clear()
            source = dropped / "store" / "flights" / "landing" / "schedule"
            target = layout.landing(FLIGHTS, SCHEDULE)
            target.mkdir(parents=True)
            for file in source.iterdir():
                (target / file.name).write_bytes(file.read_bytes())
            assert run(other) == 0
            _UNDISTURBED["end"] = end()
        get_settings.cache_clear()
    return _UNDISTURBED["end"]


_UNDISTURBED: dict[str, dict] = {}
