"""The states of requests, drift episodes and rollouts: owners, transitions and deadlines.

This table is the only list of states. The ledger, ``deploy`` and the sweep of ``monitor`` read
their deadlines and their allowed transitions from it. docs/lifecycle.md is generated from it
(``make docs``).

Deadlines are real time, because processes and users must meet them. Cool-downs of drift are the
project's time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

Kind = Literal["request", "episode", "rollout"]

# A training step or a look of deploy renews the lease, and so does each sweep that finds the run
# alive. So the lease alone decides only for a run that Airflow does not know: it was deleted, or it
# ran elsewhere.
LEASE = timedelta(hours=6)
# A run that Airflow reports as running loses its request after this time. It is longer than a
# rollout's default patience and its approval together (7 + 3 days).
LONGEST_HOLD = timedelta(days=14)
# How long a request may wait although its DAG is not paused. Each sweep sends the event again. A
# day allows for a busy DAG.
PICKED_UP_WITHIN = timedelta(days=1)
# How long an alias may wait: one task of deploy with its retries, and the wait for serving.
ALIAS_WITHIN = timedelta(hours=2)
ATTEMPTS = 3  # of training, and again of deployment
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=15), timedelta(hours=4)
# Number of requests of one lasting drift before an operator is notified. Further requests follow,
# at increasing intervals.
MAX_REQUESTS = 3
LONGEST_COOLDOWN = 8  # times the policy's cool-down


@dataclass(frozen=True)
class State:
    """One state.

    Attributes:
        owner: the DAG or the person that takes the next step.
        next: the states that may follow. For a final state: those that a user's own deployment or
            rollback leads to.
        within: the owner's deadline. It is text if the project's policy defines it, and None if the
            state is final.
        expiry: the action of ``monitor``'s sweep after the deadline.
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
        "request",
        "open",
        "train",
        ("claimed", "failed", *_BY_PERSON),
        PICKED_UP_WITHIN,
        "sends the event again; after 3 deadlines with train not paused: failed",
    ),
    State(
        "request",
        "claimed",
        "train",
        ("passed", "refused", "open", "failed", *_BY_PERSON),
        LEASE,
        _AGAIN.format(ATTEMPTS),
    ),
    State(
        "request",
        "passed",
        "deploy",
        ("deploying", "superseded", "failed", *_BY_PERSON),
        PICKED_UP_WITHIN,
        "sends the event again; after 3 deadlines with deploy not paused: failed",
    ),
    State(
        "request",
        "deploying",
        "deploy",
        ("deployed", "rolled_back", "superseded", "passed", "failed"),
        LEASE,
        _AGAIN.format(ATTEMPTS),
    ),
    State("request", "refused", "nobody", _BY_PERSON, None),
    State("request", "deployed", "nobody", ("rolled_back",), None),
    State("request", "rolled_back", "nobody", ("deployed",), None),
    State("request", "superseded", "nobody", _BY_PERSON, None),
    State("request", "failed", "nobody", _BY_PERSON, None),
    State(
        "episode",
        "cooling",
        "monitor",
        ("asking", "closed"),
        "the policy's cool-down, doubled by each request in vain",
        "asks",
    ),
    State(
        "episode",
        "asking",
        "train and deploy",
        ("cooling", "closed"),
        "its request's deadlines",
        "goes on with a new episode, which asks again",
    ),
    State("episode", "closed", "nobody", (), None),
    State(
        "rollout",
        "trying",
        "deploy",
        ("promoting", "paused", "rolling_back", "overtaken"),
        "the policy's patience",
        "takes it back",
    ),
    State(
        "rollout",
        "paused",
        "a person",
        ("trying", "rolling_back", "overtaken"),
        "the policy's patience",
        "takes it back",
    ),
    State("rollout", "promoting", "deploy", ("promoted", "rolling_back", "overtaken"), ALIAS_WITHIN, "takes it back"),
    State("rollout", "promoted", "deploy", ("serving", "rolling_back", "overtaken"), ALIAS_WITHIN, "takes it back"),
    State("rollout", "rolling_back", "deploy", ("rolled_back", "overtaken"), ALIAS_WITHIN, "brings it to its end"),
    State("rollout", "serving", "nobody", ("rolling_back",), None),
    State("rollout", "rolled_back", "nobody", (), None),
    State("rollout", "overtaken", "nobody", (), None),
)
_BY_NAME = {(state.kind, state.name): state for state in STATES}


def state(kind: Kind, name: str) -> State:
    """Return the state of that name.

    Raises:
        ValueError: there is none. The message lists the existing ones.
    """
    match = _BY_NAME.get((kind, name))
    if match is None:
        raise ValueError(
            f"a {kind} has no state '{name}'; it has {', '.join(s.name for s in STATES if s.kind == kind)}"
        )
    return match


def live(kind: Kind) -> tuple[str, ...]:
    """Return the states that are not final."""
    return tuple(state.name for state in STATES if state.kind == kind and not state.final)


def deadline(kind: Kind, name: str, at: datetime) -> datetime | None:
    """Return the owner's deadline for a state that begins at ``at``, or None if it is final.

    Raises:
        ValueError: the project's policy defines the deadline, not this table.
    """
    within = state(kind, name).within
    if isinstance(within, str):
        raise ValueError(f"the deadline of a {kind} that is {name} is {within}")
    return None if within is None else at + within


def pause(attempts: int) -> timedelta:
    """Return the delay before the next attempt, given the number of failed ones."""
    pause: timedelta = min(FIRST_PAUSE * 2 ** (min(attempts, 10) - 1), LONGEST_PAUSE)
    return pause


def cooldown(usual: timedelta, asked: int) -> timedelta:
    """Return how long a drift waits before its next request, after ``asked`` unsuccessful ones."""
    cooldown: timedelta = usual * min(2 ** max(asked - 1, 0), LONGEST_COOLDOWN)
    return cooldown


def refuse_jump(kind: Kind, now: str, to: str) -> None:
    """Raise ValueError if the table has no transition from one state to the other.

    Staying in a state is allowed, because writes are repeated.
    """
    if to != now and to not in state(kind, now).next:
        raise ValueError(
            f"a {kind} that is {now} does not become {to}; next is {' or '.join(state(kind, now).next) or 'nothing'}"
        )
    state(kind, to)


def page() -> str:
    """Return the generated part of docs/lifecycle.md.

    It has a diagram (Mermaid) and a table for each kind.
    """
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
