"""A refused file makes its run fail, but only after all valid data was processed.

This also holds where no valid data is announced.
"""

from dags.ingest import create_ingest_dag
from include.projects.flights import project as flights


def test_a_refused_file_is_reported_also_when_nothing_is_announced():
    tasks = {task.task_id: task for task in create_ingest_dag(flights).tasks}
    report = tasks["fail_on_refused_files"]
    # With all_success the task would be skipped together with announce_tables. With all_done it
    # would hide why a source failed.
    assert report.trigger_rule == "none_failed"
    assert report.retries == 0
    assert report.upstream_task_ids == {"announce_tables", *(f"ingest_{source.name}" for source in flights.sources)}
