"""Terminal output of `airloop up|down|status`."""

import time

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from include import ledger
from include.data.storage import StorageUnavailableError
from include.printable import printable
from include.projects import broken_projects
from include.settings import Settings
from include.stack import lifecycle
from include.stack.environment import ADMIN, admin_password
from include.stack.services import services

LOOKS = {
    "answering": "green",
    "running": "green",
    "done": "green",
    "starting": "yellow",
    "not answering": "yellow",
    "died": "red",
    "stopped": "dim",
}


def up(settings: Settings, console: Console) -> bool:
    """Start the stack with live progress and print the addresses. Return whether it started."""
    began = time.monotonic()
    board = _Board([service.name for service in services(settings)], console)
    try:
        with board:
            started = lifecycle.up(settings, board.note)
    except (lifecycle.PortTakenError, lifecycle.StackError, StorageUnavailableError) as error:
        console.print(Text(str(error), style="red"), soft_wrap=True)
        return False
    took = f"up after {time.monotonic() - began:.1f} s" if started else "all was up already"
    console.print(Text(f"Airloop is up ({took}).", style="bold green"))
    print_addresses(settings, console)
    return True


def down(settings: Settings, console: Console) -> None:
    with console.status("ending the stack ..."):
        ended = lifecycle.down(settings)
    console.print(f"Ended: {', '.join(ended)}." if ended else "Nothing was running.")


def status(settings: Settings, console: Console) -> bool:
    """Print a line for each service and each broken project.

    Return True if all services answer and all projects can be loaded.
    """
    lines = lifecycle.status(settings)
    table = Table("service", "state", "process", "up for", "address", box=None, header_style="bold")
    for line in lines:
        uptime = "" if line.uptime is None else _duration(line.uptime)
        table.add_row(line.name, Text(line.state, LOOKS[line.state]), str(line.pid or ""), uptime, line.address)
    console.print(table)
    for line in lines:
        if line.restarts:
            console.print(
                f"{line.name}: died and was restarted {line.restarts} time{'' if line.restarts == 1 else 's'}; its log"
                f" is {line.log}",
                soft_wrap=True,
            )
        elif line.state in {"died", "not answering"}:
            console.print(f"{line.name}: its log is {line.log}", soft_wrap=True)
    print_freezes(console)
    broken = broken_projects()
    for one in broken:
        console.print(Text(printable(str(one)), style="bold red"), soft_wrap=True)
    all_up = all(line.state == "answering" for line in lines)
    if all_up:
        print_addresses(settings, console)
    return all_up and not broken


def print_freezes(console: Console) -> None:
    """Print each freeze with its author and reason. Print nothing if nothing is frozen."""
    try:
        held = ledger.freezes()
    # The error comes from the database. The remaining status must be printed anyway.
    except Exception as error:
        console.print(
            Text(f"whether something is frozen is not known, the ledger cannot be read: {error}", style="yellow"),
            soft_wrap=True,
        )
        return
    for one in held:
        console.print(Text(f"{one}", style="bold yellow"), soft_wrap=True)


def print_addresses(settings: Settings, console: Console) -> None:
    """Print the services' addresses and how to log in."""
    table = Table.grid(padding=(0, 2))
    table.add_row("Airflow", settings.airflow_url, f"user {ADMIN}, password {admin_password(settings)}")
    table.add_row("MLflow", settings.mlflow_url, "")
    table.add_row("serving", f"{settings.serving_url}/docs", "")
    table.add_row("logs", str(settings.home / "logs"), "")
    console.print(table, soft_wrap=True)


class _Board:
    """Show the services and their states.

    On a terminal this is a live table, otherwise a line per change.
    """

    def __init__(self, names: list[str], console: Console):
        self._console = console
        self._began = time.monotonic()
        self._rows: dict[str, tuple[str, float]] = dict.fromkeys(names, ("waiting", 0.0))
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4, transient=True)

    def __enter__(self) -> "_Board":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def note(self, name: str, state: str) -> None:
        after = time.monotonic() - self._began
        self._rows[name] = state, after
        if not self._console.is_terminal:
            self._console.print(f"{after:6.1f} s  {name}: {state}")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, (state, after) in self._rows.items():
            table.add_row(
                name,
                Text(state, LOOKS.get(state, "dim")),
                f"after {after:.1f} s" if state in {"answering", "done"} else "",
            )
        table.add_row("", "", f"{time.monotonic() - self._began:.0f} s")
        return table


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
