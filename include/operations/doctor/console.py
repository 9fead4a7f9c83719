"""Terminal output of a finding."""

from rich.console import Console
from rich.text import Text

from include.operations.doctor.finding import Finding

LOOKS = {"ok": "green", "note": "yellow", "fault": "bold red"}


def show(console: Console, finding: Finding) -> None:
    """Print one line, and for a fault a second line with the fix."""
    line = Text.assemble((f"{finding.state:>5}", LOOKS[finding.state]), f"  {finding.name}: {finding.what}")
    console.print(line, soft_wrap=True)
    if finding.fix:
        console.print(Text(f"       to do: {finding.fix}", style="bold"), soft_wrap=True)
