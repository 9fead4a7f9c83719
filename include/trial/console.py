"""Terminal output of `airloop try`."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from include.projects import UnknownProjectError, get_project
from include.projects.base import Project
from include.settings import Settings
from include.trial.error_summary import error_summary
from include.trial.plan import FEED, UnknownStageError
from include.trial.run import FaultyProjectError, Outcome, try_stage
from include.trial.scratch import TryRunningError

MARKS = {"success": "[green]ok[/green]", "skipped": "[yellow]skipped[/yellow]", "failed": "[red]failed[/red]"}


def try_it(settings: Settings, terminal: Console, name: str, stage: str, rows: int) -> bool:
    """Try a stage and print its work and results. Return whether it succeeded."""
    with terminal.status("reading the project and its feed") as status:
        try:
            project = get_project(name)
            outcome = try_stage(settings, project, stage, rows, _Printer(terminal, status, project))
        except (UnknownProjectError, UnknownStageError, TryRunningError) as error:
            terminal.print(f"[red]{escape(str(error))}[/red]")
            return False
        except FaultyProjectError as error:
            terminal.print(
                f"[red]{escape(str(error))}[/red]\nNothing was run: {stage} would fail. `airloop check {name}` looks"
                " again.",
                soft_wrap=True,
            )
            return False
        # The project's own files may raise any error.
        except Exception as error:
            terminal.print(f"[red]{escape(error_summary(error))}[/red]")
            return False
    _print_outcome(terminal, settings, project, stage, outcome)
    return outcome.error is None


class _Printer:
    """Print upstream stages as one line each, and the tried stage task by task."""

    def __init__(self, terminal: Console, status: Status, project: Project):
        self._terminal, self._status, self._project = terminal, status, project
        self._tried, self._what = False, ""

    def note(self, text: str) -> None:
        self._status.update(text)

    def event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step":
            self._tried = event["tried"]
            self._what = (
                "dropping the sample's files"
                if event["stage"] == FEED
                else f"{self._project.name}__{event['stage']} up to {event['cutoff']}"
            )
            self._status.update(self._what)
            if self._tried:
                self._terminal.print(f"[bold]{self._what}[/bold]")
        elif kind == "running":
            self._status.update(f"{self._what}: {event['task']}")
        elif kind == "task" and (self._tried or event["state"] == "failed"):
            self._terminal.print(
                f"  {MARKS[event['state']]:<24} {escape(event['task'])} [dim]{event['seconds']:.1f} s[/dim]"
            )
            if event.get("error"):
                self._terminal.print(f"    [red]{escape(event['error'])}[/red]")
        elif kind == "done" and not self._tried:
            self._terminal.print(f"[dim]{self._what}: {event['seconds']:.1f} s[/dim]")


def _print_outcome(terminal: Console, settings: Settings, project: Project, stage: str, outcome: Outcome) -> None:
    sample, scratch = outcome.sample, outcome.scratch
    reused = [step.stage for step in outcome.steps[: outcome.reused]]
    terminal.print(
        f"Sample: what {project.name}'s feed publishes from {sample.since:%Y-%m-%d %H:%M} to"
        f" {sample.until:%Y-%m-%d %H:%M} UTC (--rows {sample.rows})"
    )
    if reused:
        terminal.print(
            f"Taken over from an earlier try, as nothing that they are made of has changed: {', '.join(reused)}"
        )
    if outcome.made:
        table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
        for column in ("made", "", "", "where (below the scratch store)"):
            table.add_column(column, overflow="fold")
        for thing in outcome.made:
            table.add_row(
                thing.kind,
                escape(thing.name),
                escape(thing.detail),
                escape(thing.where.removeprefix(f"{scratch.work}/")),
            )
        terminal.print(table)
    if outcome.error:
        terminal.print(f"[red]{escape(outcome.error)}[/red]")
        terminal.print(f"What the tasks said: {scratch.log}; what to do: docs/runbooks/{stage}.md")
    seconds = outcome.seconds.get(stage)
    terminal.print(
        f"{f'{stage} took {seconds:.1f} s, ' if seconds else ''}all together {outcome.seconds['all']:.1f} s. Scratch"
        f" store: {scratch.work}\nIt has its own tables, Feast, MLflow, ledger and Airflow; policies that count days or"
        " rows were cut down to the sample's size. Nothing of it reached the tables, the registry or the aliases of"
        f" {settings.home}."
    )
