"""Killing an ingest task on S3 between its plan and its appends does not change the result.

The retry ends as an undisturbed task on files.
"""

import signal

import pytest

from include.data import layout, storage, tables
from tests.integration.test_ingest_killed import FLIGHTS, SCHEDULE, dropped, end, run, undisturbed  # noqa: F401  (fixtures)


@pytest.fixture
def on_s3(undisturbed, dropped, s3_store):  # noqa: F811
    """Copy the same files to the bucket's landing zone."""
    on_disk = sorted((dropped / "store" / "flights" / "landing" / "schedule").iterdir())
    for file in on_disk:
        storage.write(layout.landing(FLIGHTS, SCHEDULE) / file.name, file.read_bytes())
    assert (
        layout.landing(FLIGHTS, SCHEDULE).path
        and len(storage.files(layout.landing(FLIGHTS, SCHEDULE))) == len(on_disk) > 2
    )
    return dropped


@pytest.mark.parametrize(
    "kill",
    [
        pytest.param(("include.data.storage", "write_parquet", 1), id="in the middle of writing the plan"),
        pytest.param(("include.data.ingest", "_write_plan", 1), id="when the plan is written"),
        pytest.param(("include.data.tables", "append", 1), id="when the good rows are appended"),
        pytest.param(("include.data.landing", "keep_refused", 1), id="when the refused file is kept"),
        pytest.param(("include.data.report", "add_outcomes", 1), id="when the outcome is written down"),
    ],
)
def test_a_retry_on_s3_ends_as_an_undisturbed_run_on_files(on_s3, undisturbed, kill):  # noqa: F811
    assert run(on_s3, kill) == -signal.SIGKILL
    assert run(on_s3) == 0
    assert end() == undisturbed
    version = tables.table_version(layout.table(FLIGHTS, "schedule"))
    assert run(on_s3) == 0
    assert (tables.table_version(layout.table(FLIGHTS, "schedule")), end()) == (version, undisturbed)
