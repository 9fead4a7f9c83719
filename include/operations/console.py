"""Terminal output of `airloop status <project>`."""

from collections.abc import Callable

from include.operations.project_status import ProjectStatus
from include.projects.base import STAGES


def show_project(status: ProjectStatus, say: Callable[[str], None]) -> None:
    """Print one or more lines for each part of the status."""
    clock = "the clock of its replay" if status.replay else "the time of day"
    say(f"{status.project}  (its present is {status.present}, {clock})")
    if status.frozen:
        say(f"  frozen     {status.frozen}")
    if status.champion:
        say(f"  champion   {', '.join(f'{name} {value}' for name, value in status.champion.items())}")
    else:
        say(
            "  champion  "
            f" {status.lost or 'none: nothing is deployed yet' if not _no_registry(status) else 'not known'}"
        )
    if status.rollout:
        say(f"  rollout    {status.rollout}")
    if status.episode:
        say(f"  drift      {status.episode}")
    say("  stages     " + ("none has ended yet" if not status.stages else "last cutoff and when it ended"))
    for stage in (stage for stage in STAGES if stage in status.stages):
        record = status.stages[stage]
        say(f"    {stage:15} {record['cutoff']}  ended {record['recorded_at']}, run {record['dag_run']}")
    _lines(say, "requests", status.waiting or ["none waits"])
    _lines(say, "ended", status.ended)
    if status.runs:
        _lines(
            say, "paused", [f"{dag_id}: its events are kept by monitor, nothing runs" for dag_id in status.runs.paused]
        )
        _lines(say, "failed", [str(run) for run in status.runs.failed])
        _lines(say, "hanging", list(status.runs.long))
        _lines(
            say,
            "missing",
            [f"{dag_id}: Airflow does not know it; `airloop doctor` says why" for dag_id in status.runs.missing],
        )
    _lines(say, "untold", status.untold)
    _lines(say, "not known", status.gaps)


def _no_registry(status: ProjectStatus) -> bool:
    return any(gap.startswith("champion") for gap in status.gaps)


def _lines(say: Callable[[str], None], head: str, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        say(f"  {head if number == 0 else '':10} {line}")
