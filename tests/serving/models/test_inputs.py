"""The quick checks of an instance give the same result as the slow ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.models.contract import Contract
from serving.models.inputs import FLOAT32_MAX, Inputs
from serving.problems import ProblemError
from tests.serving.harness import CONTRACT

NUMBERS = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from(
        [FLOAT32_MAX, -FLOAT32_MAX, FLOAT32_MAX * 1.01, 1e39, 10**400, -(10**400), 2**128, True, None, "1", [1]]
    ),
)
TEXTS = st.one_of(st.text(max_size=3), st.sampled_from([None, True, 1, 1.5, "\ud800", ["x"]]))


@pytest.fixture(scope="module")
def plain() -> Inputs:
    """Return inputs that are only numbers from the caller."""
    return Inputs(
        Contract(
            **{**CONTRACT, "categorical": [], "numeric": ["a", "b"], "request_features": ["a", "b"], "join_keys": []}
        )
    )


@pytest.fixture(scope="module")
def mixed() -> Inputs:
    """Return a number and two categories. One category is a join key."""
    return Inputs(
        Contract(
            **{
                **CONTRACT,
                "categorical": ["shop", "kind"],
                "numeric": ["a"],
                "request_features": ["a", "kind"],
                "join_keys": ["shop"],
            }
        )
    )


@settings(deadline=None, max_examples=500)
@given(st.fixed_dictionaries({}, optional={"a": NUMBERS, "b": NUMBERS, "c": NUMBERS}))
def test_what_is_quickly_right_is_right(plain, instance):
    row = plain.quick(instance)
    if row is not None:
        plain.check(instance, 0)
        assert row == (plain.packed.pack(*plain.numbers(instance)), ())


@settings(deadline=None, max_examples=500)
@given(st.fixed_dictionaries({"a": NUMBERS}, optional={"shop": TEXTS, "kind": TEXTS, "c": TEXTS}))
def test_what_is_quickly_right_with_categories_is_right(mixed, instance):
    row = mixed.quick(instance)
    if row is not None:
        mixed.check(instance, 0)
        assert (row[0], list(row[1])) == (mixed.packed.pack(*mixed.numbers(instance)), mixed.texts(instance))


@settings(deadline=None, max_examples=500)
@given(st.fixed_dictionaries({"a": NUMBERS, "b": NUMBERS}))
def test_numbers_looked_at_together_are_judged_as_one_by_one(plain, instance):
    def message_for(given: dict) -> str:
        try:
            plain.check(given, 0)
        except ProblemError as problem:
            return problem.detail
        return "right"

    one_by_one = [message_for({"a": 0.0, "b": 0.0} | {name: value}) for name, value in instance.items()]
    assert message_for(instance) == next((problem for problem in one_by_one if problem != "right"), "right")


def test_plain_categories_take_the_quick_way(mixed):
    assert mixed.quick({"a": 1, "shop": "x", "kind": ""}) == (mixed.packed.pack(1), ("x", ""))
    others = (
        {"a": 1, "shop": "x"},
        {"a": 1, "shop": "x", "kind": None},
        {"a": 1, "shop": 3, "kind": "y"},
        {"a": 1, "shop": "é", "kind": "y"},
    )
    assert [mixed.quick(other) for other in others] == [None] * len(others)


def test_plain_numbers_take_the_quick_way(plain):
    assert plain.packed.unpack(plain.quick({"a": 1, "b": -2.5})[0]) == (1, -2.5)
    others = (
        {"a": 1},
        {"a": 1, "c": 2},
        {"a": 1, "b": None},
        {"a": 1, "b": "2"},
        {"a": 1, "b": float("nan")},
        {"a": 1, "b": 1e39},
        {"a": 1, "b": 10**400},
    )
    assert [plain.quick(other) for other in others] == [None] * len(others)
