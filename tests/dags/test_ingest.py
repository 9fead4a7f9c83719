"""A refused file makes its run red, also where nothing good is announced, and only after everything good went on."""

from dags.ingest import create_ingest_dag
from include.projects.flights import project as flights


def test_a_refused_file_is_reported_also_when_nothing_is_announced():
    tasks = {task.task_id: task for task in create_ingest_dag(flights).tasks}
    report = tasks["fail_on_refused_files"]
    assert report.trigger_rule == "none_failed"  # all_success would be silent where announce_tables is skipped; all_done would hide why a source failed
    assert report.retries == 0
    assert report.upstream_task_ids == {"announce_tables", *(f"ingest_{source.name}" for source in flights.sources)}
