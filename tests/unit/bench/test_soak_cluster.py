"""Counts of the soak test of training pods, from a report in pytest's format."""

from bench.soak_cluster import tally

REPORT = """<testsuites><testsuite>
<testcase name="test_evicted[0]" time="20.04"/>
<testcase name="test_evicted[1]" time="31.2"><failure message="two pods"/></testcase>
<testcase name="test_killed[scheduler-0]" time="5"/>
<testcase name="test_killed[scheduler-1]" time="6"/>
<testcase name="test_killed[triggerer-0]" time="7"><error message="no stack"/></testcase>
<testcase name="test_hung[0]" time="0"><skipped message="no program"/></testcase>
</testsuite></testsuites>"""


def test_repeats_are_counted_together_and_a_skip_is_not_a_success():
    assert tally(REPORT) == {
        "test_evicted": {"made": 2, "held": 1, "failed": 1, "skipped": 0, "longest_s": 31.2},
        "test_hung": {"made": 0, "held": 0, "failed": 0, "skipped": 1, "longest_s": 0.0},
        "test_killed[scheduler]": {"made": 2, "held": 2, "failed": 0, "skipped": 0, "longest_s": 6.0},
        "test_killed[triggerer]": {"made": 1, "held": 0, "failed": 1, "skipped": 0, "longest_s": 7.0},
    }
