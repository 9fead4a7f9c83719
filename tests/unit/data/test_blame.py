"""The files that make a function fail are found among any number of files.

If no file causes the fault, no file is blamed.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.data.blame import without_guilty


@given(st.lists(st.booleans(), max_size=40))
def test_the_guilty_are_found_and_nobody_else(guilty):
    files = list(enumerate(guilty))

    def attempt(some):
        if any(bad for _, bad in some):
            raise KeyError("bad")
        return [number for number, _ in some]

    result, culprits = without_guilty(attempt, files)
    assert result == [number for number, bad in files if not bad]
    assert sorted(file for file, _ in culprits) == [file for file in files if file[1]]
    assert all(isinstance(error, KeyError) for _, error in culprits)


def test_of_two_that_fail_together_the_later_one_is_left_out():
    def attempt(some):
        assert not {1, 3} <= set(some)
        return some

    result, culprits = without_guilty(attempt, [0, 1, 2, 3, 4])
    assert (result, [file for file, _ in culprits]) == ([0, 1, 2, 4], [3])


def test_few_guilty_among_many_cost_few_attempts():
    attempts = []

    def attempt(some):
        attempts.append(len(some))
        assert 700 not in some
        return some

    without_guilty(attempt, list(range(1000)))
    assert len(attempts) < 20


@pytest.mark.parametrize("error", [ConnectionError("away"), TimeoutError("away")])
def test_nobody_is_blamed_for_a_store_that_is_away(error):
    def attempt(some):
        raise error

    with pytest.raises(type(error)):
        without_guilty(attempt, [1, 2])


def test_nobody_is_blamed_for_what_fails_always():
    def attempt(some):
        raise KeyError("always")

    with pytest.raises(KeyError):
        without_guilty(attempt, [1, 2])


def test_nobody_is_blamed_for_what_fails_once():
    tries = []

    def attempt(some):
        tries.append(some)
        if len(tries) == 1:
            raise KeyError("once")
        return some

    assert without_guilty(attempt, [1, 2]) == ([1, 2], [])


def test_a_file_is_to_blame_where_the_others_succeed_without_it_though_none_at_all_fails():
    def attempt(some):
        if not some or 2 in some:
            raise KeyError("bad")
        return some

    result, culprits = without_guilty(attempt, [1, 2, 3])
    assert (result, [file for file, _ in culprits]) == ([1, 3], [2])
