"""The states of requests, drift episodes and rollouts: who owns each, what comes next, by when, and what happens when that time has passed.

This table is the only list of states. The ledger, ``deploy`` and the sweep of ``monitor`` read their deadlines and their allowed changes from it.
docs/lifecycle.md is made from it (``make docs``). Deadlines are real time: they wait for processes and people. Cool-downs of drift are the project's time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

Kind = Literal["request", "episode", "rollout"]

# A training step or a look of deploy renews the lease, and so does each sweep that finds the run alive. So the lease alone decides only for a run that
# Airflow does not know: it was deleted, or it ran elsewhere.
LEASE = timedelta(hours=6)
# A run that Airflow calls running loses its request after this time. Longer than a rollout's default patience and its approval together (7 + 3 days).
LONGEST_HOLD = timedelta(days=14)
# A request that nobody takes up although its DAG is not paused. The event is sent again by each sweep; a day allows for a busy DAG.
PICKED_UP_WITHIN = timedelta(days=1)
# What an alias waits for: one task of deploy with its retries, beside the wait for serving.
ALIAS_WITHIN = timedelta(hours=2)
ATTEMPTS = 3  # of training, and again of deployment
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=15), timedelta(hours=4)
ASKS = 3  # requests of one lasting drift before a person is told; it goes on asking, ever more seldom
LONGEST_COOLDOWN = 8  # times the policy's cool-down


@dataclass(frozen=True)
class State:
    """One state.

    Attributes:
        owner: who takes the next step: a DAG, or a person.
        next: the states that may follow; for a final state those that a person's own deployment or rollback leads to.
        within: how long the owner has, or in words where the project's policy says it; None: the state is final.
        expiry: what the sweep of ``monitor`` does when the time has passed.
    """

    kind: Kind
    name: str
    owner: str
    next: tuple[str, ...]
    within: timedelta | str | None
    expiry: str = ""

    @property
    def final(self) -> bool:
        return self.within is None


_AGAIN = "gives it back with a pause; after {0} attempts: failed"
_BY_PERSON = ("deployed", "rolled_back")
STATES = (
    State(
        "request", "open", "train", ("claimed", "failed", *_BY_PERSON), PICKED_UP_WITHIN,
        "sends the event again; after 3 deadlines with train not paused: failed",
    ),
    State("request", "claimed", "train", ("passed", "refused", "open", "failed", *_BY_PERSON), LEASE, _AGAIN.format(ATTEMPTS)),
    State(
        "request", "passed", "deploy", ("deploying", "superseded", "failed", *_BY_PERSON), PICKED_UP_WITHIN,
        "sends the event again; after 3 deadlines with deploy not paused: failed",
    ),
    State("request", "deploying", "deploy", ("deployed", "rolled_back", "superseded", "passed", "failed"), LEASE, _AGAIN.format(ATTEMPTS)),
    State("request", "refused", "nobody", _BY_PERSON, None),
    State("request", "deployed", "nobody", ("rolled_back",), None),
    State("request", "rolled_back", "nobody", ("deployed",), None),
    State("request", "superseded", "nobody", _BY_PERSON, None),
    State("request", "failed", "nobody", _BY_PERSON, None),
    State("episode", "cooling", "monitor", ("asking", "closed"), "the policy's cool-down, doubled by each request in vain", "asks"),
    State("episode", "asking", "train and deploy", ("cooling", "closed"), "its request's deadlines", "goes on with a new episode, which asks again"),
    State("episode", "closed", "nobody", (), None),
    State("rollout", "trying", "deploy", ("promoting", "paused", "rolling_back", "overtaken"), "the policy's patience", "takes it back"),
    State("rollout", "paused", "a person", ("trying", "rolling_back", "overtaken"), "the policy's patience", "takes it back"),
    State("rollout", "promoting", "deploy", ("promoted", "rolling_back", "overtaken"), ALIAS_WITHIN, "takes it back"),
    State("rollout", "promoted", "deploy", ("serving", "rolling_back", "overtaken"), ALIAS_WITHIN, "takes it back"),
    State("rollout", "rolling_back", "deploy", ("rolled_back", "overtaken"), ALIAS_WITHIN, "brings it to its end"),
    State("rollout", "serving", "nobody", ("rolling_back",), None),
    State("rollout", "rolled_back", "nobody", (), None),
    State("rollout", "overtaken", "nobody", (), None),
)  # fmt: skip
_BY_NAME = {(state.kind, state.name): state for state in STATES}


def state(kind: Kind, name: str) -> State:
    """The state of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    found = _BY_NAME.get((kind, name))
    if found is None:
        raise ValueError(f"a {kind} has no state '{name}'; it has {', '.join(s.name for s in STATES if s.kind == kind)}")
    return found


def live(kind: Kind) -> tuple[str, ...]:
    """The states that wait for something."""
    return tuple(state.name for state in STATES if state.kind == kind and not state.final)


def deadline(kind: Kind, name: str, at: datetime) -> datetime | None:
    """By when the owner of a state that begins now must have taken the next step; None: it is final.

    Raises:
        ValueError: the project's policy says it, not this table.
    """
    within = state(kind, name).within
    if isinstance(within, str):
        raise ValueError(f"the deadline of a {kind} that is {name} is {within}")
    return None if within is None else at + within


def pause(attempts: int) -> timedelta:
    """How long the next attempt waits after so many that failed (1: after the first)."""
    return min(FIRST_PAUSE * 2 ** (min(attempts, 10) - 1), LONGEST_PAUSE)


def cooldown(usual: timedelta, asked: int) -> timedelta:
    """How long a drift waits before it asks again, after so many requests in vain."""
    return usual * min(2 ** max(asked - 1, 0), LONGEST_COOLDOWN)


def refuse_jump(kind: Kind, now: str, to: str) -> None:
    """Raises ValueError if the table knows no way from one state to the other. To stay is allowed: writes are repeated."""
    if to != now and to not in state(kind, now).next:
        raise ValueError(f"a {kind} that is {now} does not become {to}; next is {' or '.join(state(kind, now).next) or 'nothing'}")
    state(kind, to)


def page() -> str:
    """docs/lifecycle.md, between its head and its end: for each kind a diagram (Mermaid) and a table."""
    return "\n".join(_section(kind) for kind in ("request", "episode", "rollout"))


def _section(kind: str) -> str:
    mine = [state for state in STATES if state.kind == kind]
    arrows = "\n".join(_arrows(mine))
    rows = "\n".join(f"| `{s.name}` | {s.owner} | {_within(s.within)} | {s.expiry or '-'} |" for s in mine)
    head = "| state | owner of the next step | within | then the sweep of `monitor` |\n|---|---|---|---|"
    return f"## {kind.capitalize()}s\n\n```mermaid\nstateDiagram-v2\n{arrows}\n```\n\n{head}\n{rows}\n"


def _arrows(mine: list[State]) -> Iterator[str]:
    yield f"  [*] --> {mine[0].name}"
    for one in mine:
        yield from (f"  {one.name} --> {after}{' : a person' if one.final else ''}" for after in one.next)
        if one.final:
            yield f"  {one.name} --> [*]"


def _within(within: timedelta | str | None) -> str:
    if within is None:
        return "final"
    if isinstance(within, str):
        return within
    hours = within.total_seconds() / 3600
    return f"{hours / 24:g} days" if hours > 24 else "1 day" if hours == 24 else f"{hours:g} hours"
