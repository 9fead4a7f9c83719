"""Terminal output of a check."""

from collections.abc import Callable

from include.checks.check import Report


def show(name: str, report: Report, say: Callable[[str], None]) -> None:
    """Print each finding, the checked parts, and the skipped parts."""
    for one in report.findings:
        say(f"{'warning' if one.warning else 'fault'}  {one}")
    for words in report.skipped:
        say(f"not looked at: {words}.")
    count = len(report.faults)
    result = f"{count} fault{'' if count == 1 else 's'}" if count else "no fault"
    say(f"{name}: {result} in {' and '.join(report.looked_at) or 'what can be looked at'}.")
