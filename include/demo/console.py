"""`airloop demo` in the terminal: progress, durations and next steps; at the end the results.

The results are a table, a page and the addresses.
"""

import json
import shutil
import time
from contextlib import nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from include import ledger
from include.demo import outcome, page
from include.demo.replay import Replay, ReplayFailedError, ReplayStep, StepRecord, year
from include.printable import printable
from include.projects import get_project
from include.projects.base import STAGES
from include.settings import Settings
from include.stack import console as stack_console
from include.stack.api import AirflowApi

PROJECT = "flights"
NEW_LINE = "\n"


def demo(settings: Settings, terminal: Console, *, months: int, restart: bool) -> bool:
    """Run the demo. Return True if it succeeded. The stack stays up in both cases."""
    project = get_project(PROJECT)
    if restart:
        stack_console.down(settings, terminal)
        for state in ("store", "demo", "feast", "mlflow", "airflow", "serving", "cache", "ledger.db"):
            target = settings.home / state
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    steps = year(months)
    if not (settings.home / "demo" / "steps.json").exists():
        # Set before Airflow runs. Otherwise its daily runs would ingest the data of 2013 at the
        # current time.
        ledger.set_clock(PROJECT, steps[0].since)
    if not stack_console.up(settings, terminal):
        return False
    api = AirflowApi.from_settings(settings)
    api.wait_for_dags([f"{PROJECT}__{stage}" for stage in STAGES], timeout=120)

    board = Board(steps, terminal)
    replay = Replay(project, api, board)
    if replay.records and len(replay.records) < len(steps):
        terminal.print(
            f"Going on after {replay.records[-1].name}: {len(replay.records)} of {len(steps)} steps were done before."
        )
    try:
        board.records = replay.records
        with Live(board, console=terminal, refresh_per_second=4) if terminal.is_terminal else nullcontext():
            replay.run(steps)
            board.finish()
    except ReplayFailedError as error:
        terminal.print(
            Text.assemble("\n", ("The demo stopped:", "bold red"), f" {printable(error, keep=NEW_LINE)}"),
            soft_wrap=True,
        )
        terminal.print("Nothing is lost: mend it and run `airloop demo` again, it goes on from here.")
        return False
    replay_s = sum(record.seconds for record in replay.records)
    summary = outcome.result(project, replay.records, _setup_seconds(settings), replay_s)
    json_path, html_path = outcome.write(summary), page.write(project, summary)
    terminal.print(months_table(project.metric.name, summary))
    terminal.print(_summary(summary))
    terminal.print(
        f"\nResult   {html_path}\n         {json_path}\nAirflow  {settings.airflow_url}\nMLflow  "
        f" {settings.mlflow_url}\nServing  {settings.serving_url}/docs"
    )
    terminal.print("The stack is up: `airloop status` shows it and how to log in, `airloop down` stops it.")
    return True


class Board:
    """The live view of the replay (a rich renderable), to which ``Replay`` reports its progress."""

    def __init__(self, steps: list[ReplayStep], terminal: Console):
        self.steps, self.terminal = steps, terminal
        self.records: list[StepRecord] = []
        self.began = self.stage_began = time.monotonic()
        self.current: ReplayStep | None = None
        self.current_stage = ""
        self.notes: list[str] = []

    def step(self, step: ReplayStep) -> None:
        self.current = step
        self._line(f"{step.name}: until {step.cutoff:%Y-%m-%d}")

    def stage(self, name: str) -> None:
        self.current_stage, self.stage_began = name, time.monotonic()
        self._line(f"  {name}")

    def note(self, text: str) -> None:
        self.notes.append(f"{self.current.name if self.current else ''}: {text}")
        self._line(f"  {text}")

    def _line(self, text: str) -> None:
        """Print one line for each event if a live view cannot be shown."""
        if not self.terminal.is_terminal:
            self.terminal.print(f"{time.monotonic() - self.began:6.1f} s  {text}", soft_wrap=True)

    def finish(self) -> None:
        self.current = None

    def __rich__(self) -> Group:
        done = len(self.records)
        table = Table(box=None, pad_edge=False)
        for heading in ("", "until", "seconds", "monitor", "model"):
            table.add_column(heading, justify="right" if heading == "seconds" else "left", overflow="fold")
        for record in self.records:
            table.add_row(
                f"[green]✓[/green] {record.name}",
                record.cutoff[:10],
                f"{record.seconds:.0f}",
                _monitor_line(record),
                _training_line(record),
            )
        if self.current and done < len(self.steps):
            running = time.monotonic() - self.stage_began
            table.add_row(
                f"… {self.current.name}",
                self.current.cutoff.strftime("%Y-%m-%d"),
                "",
                f"{self.current_stage} ({running:.0f} s)",
                "",
            )
        lines: list[RenderableType] = [table, *(Text(note, style="dim") for note in self.notes[-6:])]
        elapsed = time.monotonic() - self.began
        if self.current:
            following = self.steps[done + 1].name if done + 1 < len(self.steps) else "the result"
            left = f", about {elapsed / done * (len(self.steps) - done) / 60:.0f} min left" if done else ""
            lines.append(
                Text(
                    f"{done} of {len(self.steps)} steps, {elapsed / 60:.1f} min{left}; next: {following}", style="bold"
                )
            )
        return Group(*lines)


def months_table(metric: str, summary: dict[str, Any]) -> Table:
    """Return a table by month: served versions, metrics, the monitor's state, trainings."""
    second = next(name for name in summary["months"][0]["served"] if name != metric)
    table = Table(
        title=f"{metric.upper()} and {second} by month, of what was served, of the first model and of the baseline",
        pad_edge=False,
    )
    for heading in ("month", "version", "served", "first model", "baseline", "monitor", "trained"):
        table.add_column(heading, no_wrap=heading == "month", overflow="fold")
    for month in summary["months"]:
        figures = [f"{month[model][metric]:.3f} {month[model][second]:.3f}" for model in outcome.MODELS]
        versions = "v" + ", v".join(month["model_versions"])
        table.add_row(
            month["month"], versions, *figures, month["monitor"].get("state", ""), _trained(month["trainings"])
        )
    return table


def _summary(summary: dict[str, Any]) -> str:
    lines = [
        f"Replay {summary['replay_s'] / 60:.1f} min"
        + (f", set-up {summary['setup_s']:.0f} s" if summary["setup_s"] else "")
    ]
    if summary["auc_served_may_dec"]:
        lines.append(
            f"AUC May to December: served {summary['auc_served_may_dec']:.4f}, first model left alone"
            f" {summary['auc_first_model_may_dec']:.4f}, baseline {summary['auc_baseline_may_dec']:.4f}"
        )
    lines.append(
        f"{summary['requests']} retrain requests, {summary['promotions']} promotions after the first model,"
        f" {len(summary['refused'])} refused"
    )
    for refused in summary["refused"]:
        lines.append(
            f"  refused {refused['cutoff'][:10]} ({refused['injected'] or refused['reason']}):"
            f" {'; '.join(refused['reasons'])}"
        )
    lines.append(f"Serving: {summary['serving']['agreed_with_batch']} answers compared with the batch, all equal")
    return "\n".join(lines)


def _monitor_line(record: StepRecord) -> str:
    state: str = record.monitor.get("state", "")
    return state


def _training_line(record: StepRecord) -> str:
    return _trained(record.trainings)


def _trained(trainings: list[dict[str, Any]]) -> str:
    """Return trainings with reasons in a few words. The page has the full reasons."""
    return ", ".join(
        f"v{t.get('version')} {t['state']} ({'injected' if t.get('injected') else t['reason'].partition(':')[0]})"
        for t in trainings
    )


def _setup_seconds(settings: Settings) -> float | None:
    """Return the set-up time of the machine, as recorded by `make`, or None."""
    path = settings.home / "setup.json"
    return json.loads(path.read_text()).get("setup_s") if path.exists() else None
