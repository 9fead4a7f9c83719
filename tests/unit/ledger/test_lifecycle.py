"""The table of states: each waiting state has an owner, a next step and a deadline.

It can also reach a final state. The documentation page is generated from the table.
"""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from docs.lifecycle_page import page
from include.ledger import lifecycle
from include.ledger.lifecycle import STATES
from include.rollout.document import State as RolloutState
from include.settings import REPOSITORY

AT = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = ("request", "episode", "rollout")


@pytest.mark.parametrize("state", STATES, ids=lambda s: f"{s.kind} {s.name}")
def test_whatever_waits_has_an_owner_a_next_step_and_a_deadline(state):
    if state.final:
        assert state.owner == "nobody" and not state.expiry
    else:
        assert state.owner != "nobody" and state.next and state.expiry and state.within
    for after in state.next:
        lifecycle.state(state.kind, after)


@pytest.mark.parametrize("state", [s for s in STATES if not s.final], ids=lambda s: f"{s.kind} {s.name}")
def test_from_each_state_an_end_can_be_reached(state):
    reached, todo = set(), [state.name]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += lifecycle.state(state.kind, name).next
    assert any(lifecycle.state(state.kind, name).final for name in reached)


def test_each_state_of_a_request_that_waits_may_fail():
    assert [s.name for s in STATES if s.kind == "request" and not s.final and "failed" not in s.next] == []


def test_the_rollout_document_has_these_states_and_no_others():
    assert set(get_args(RolloutState)) == {s.name for s in STATES if s.kind == "rollout"}


def test_a_change_that_the_table_does_not_have_is_refused_and_to_stay_is_not():
    lifecycle.refuse_jump("request", "open", "claimed")
    lifecycle.refuse_jump("request", "open", "open")
    with pytest.raises(
        ValueError, match="a request that is refused does not become passed; next is deployed or rolled_back"
    ):
        lifecycle.refuse_jump("request", "refused", "passed")
    with pytest.raises(ValueError, match="a request has no state 'opn'; it has open, claimed"):
        lifecycle.refuse_jump("request", "opn", "claimed")


def test_deadlines():
    assert lifecycle.deadline("request", "claimed", AT) == AT + lifecycle.LEASE
    assert lifecycle.deadline("request", "failed", AT) is None
    with pytest.raises(ValueError, match="the deadline of a rollout that is trying is the policy's patience"):
        lifecycle.deadline("rollout", "trying", AT)


def test_pauses_double_and_end_at_a_longest():
    minutes = [lifecycle.pause(n) / timedelta(minutes=1) for n in (1, 2, 3, 4, 5, 6, 1000)]
    assert minutes == [15, 30, 60, 120, 240, 240, 240]
    assert [lifecycle.cooldown(timedelta(days=1), n).days for n in (0, 1, 2, 3, 4, 5, 1000)] == [1, 1, 2, 4, 8, 8, 8]


def test_the_page_is_what_the_table_says():
    assert (REPOSITORY / "docs" / "lifecycle.md").read_text() == page(), "make docs"
