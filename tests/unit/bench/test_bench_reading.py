"""The reader's benchmark detects wrong outcomes of both kinds, and its corpora are as declared."""

from collections import Counter
from dataclasses import replace

import pytest

from bench.bench_reading import judge
from bench.reading_case import AT, REJECTED, Case, written
from bench.reading_corpora import cases

FILE = written([["r0", "9007199254740993", AT], ["r1", "x", AT]]).encode()
RIGHT = Case("c", "x.csv", FILE, "int64", [9007199254740993, REJECTED])


def test_what_is_right_counts_as_such():
    assert judge(RIGHT) == (Counter(accepted=1, rejected=1), [])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([9007199254740992, REJECTED], id="another value"),
        pytest.param([REJECTED, REJECTED], id="stored though it must not be"),
        pytest.param([9007199254740993, 1], id="rejected though it could be stored"),
        pytest.param([9007199254740993], id="a row too many"),
        pytest.param([9007199254740993.0, REJECTED], id="another type"),
        pytest.param(None, id="accepted though it must be refused"),
    ],
)
def test_what_is_wrong_counts_as_such(values):
    counts, errors = judge(replace(RIGHT, values=values, rules=("unreadable",)))
    assert counts["wrong"] == len(errors) > 0


@pytest.mark.parametrize(
    ("rules", "says", "right"),
    [(("unreadable",), "", True), (("empty_file",), "", False), (("unreadable",), "nonsense", False)],
)
def test_a_refusal_must_be_for_the_right_reason(rules, says, right):
    refused = Case("c", "x.csv", b"PAR1", rules=rules, says=says)
    assert judge(refused)[0] == (Counter(rejected=1) if right else Counter(wrong=1))


def test_a_sample_of_the_corpora_is_read_right():
    """A sample of the corpora is read correctly: every fortieth file (all: make bench-reading)."""
    wrong = {case.corpus: error for number, case in enumerate(cases()) if number % 40 == 0 for error in judge(case)[1]}
    assert wrong == {}
