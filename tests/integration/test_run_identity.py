"""A DAG run that is cleared later stays the same run.

In the real DAG it keeps its cutoff, although the project's clock has advanced.
"""

from datetime import UTC, datetime, timedelta

import pytest

from include import ledger

AT = datetime(2026, 3, 1, 4, tzinfo=UTC)


@pytest.mark.parametrize("clock", ["wall clock", "replay"])
def test_a_cleared_run_keeps_its_cutoff_when_the_clock_has_moved(run_dag, clock):
    present = datetime(2013, 1, 3, 10, tzinfo=UTC)
    if clock == "replay":
        ledger.set_clock("flights", present)
    first = run_dag("flights__ingest", at=AT)
    assert first.results["decide_cutoff"] == ledger.iso(present if clock == "replay" else AT), (
        first.results,
        first.log[:3000],
    )
    if clock == "replay":
        ledger.set_clock("flights", present + timedelta(days=9))
    again = run_dag("flights__ingest", at=AT)
    assert again.run_id == first.run_id and again.results["decide_cutoff"] == first.results["decide_cutoff"]
    assert ledger.stage_record("flights", "ingest", first.results["decide_cutoff"]) and len(again.results) == len(
        first.results
    )
