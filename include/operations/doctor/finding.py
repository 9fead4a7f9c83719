"""What a check found."""

from typing import Literal, NamedTuple

State = Literal["ok", "note", "fault"]
CLOCK_S = 5.0  # tokens and requests to an object store are refused when two clocks differ by more than minutes; long before that somebody should know


class Finding(NamedTuple):
    """``what`` is right or wrong with ``name``; of a fault ``fix`` is what to do."""

    name: str
    state: State
    what: str
    fix: str = ""


def ok(name: str, what: str) -> Finding:
    return Finding(name, "ok", what)


def note(name: str, what: str) -> Finding:
    """Worth saying, and no fault."""
    return Finding(name, "note", what)


def fault(name: str, what: str, fix: str) -> Finding:
    return Finding(name, "fault", what, fix)


def clock(name: str, theirs: float, before: float, after: float) -> list[Finding]:
    """A fault if a server's clock and this machine's differ; seconds since 1970, here before and after it was asked."""
    off = theirs - (before if theirs < before else min(theirs, after))
    if abs(off) <= CLOCK_S:
        return []
    how = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'}"
    return [fault(name, f"its clock is {how} this machine's", "let both follow a time server (chrony, systemd-timesyncd): tokens and signatures expire by it")]
