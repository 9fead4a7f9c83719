"""The result of a check."""

from typing import Literal, NamedTuple

State = Literal["ok", "note", "fault"]
# Tokens and object store requests are refused when two clocks differ by more than minutes. A user
# should know long before that.
CLOCK_S = 5.0


class Finding(NamedTuple):
    """The result ``what`` for the part ``name``. A fault has a ``fix``."""

    name: str
    state: State
    what: str
    fix: str = ""


def ok(name: str, what: str) -> Finding:
    return Finding(name, "ok", what)


def note(name: str, what: str) -> Finding:
    """Return a finding that is worth reporting but is not a fault."""
    return Finding(name, "note", what)


def fault(name: str, what: str, fix: str) -> Finding:
    return Finding(name, "fault", what, fix)


def clock(name: str, theirs: float, before: float, after: float) -> list[Finding]:
    """Return a fault if the clocks of a server and of this machine differ.

    Times are in seconds since 1970. ``before`` and ``after`` are this machine's times around the
    request.
    """
    off = theirs - (before if theirs < before else min(theirs, after))
    if abs(off) <= CLOCK_S:
        return []
    how = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'}"
    return [
        fault(
            name,
            f"its clock is {how} this machine's",
            "let both follow a time server (chrony, systemd-timesyncd): tokens and signatures expire by it",
        )
    ]
