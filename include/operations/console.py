"""How `airloop status <project>` looks."""

from collections.abc import Callable

from include.operations.project_status import ProjectStatus
from include.projects.base import STAGES


def show_project(found: ProjectStatus, say: Callable[[str], None]) -> None:
    """A line or a few for each thing that there is to tell."""
    clock = "the clock of its replay" if found.replay else "the time of day"
    say(f"{found.project}  (its present is {found.present}, {clock})")
    if found.frozen:
        say(f"  frozen     {found.frozen}")
    if found.champion:
        say(f"  champion   {', '.join(f'{name} {value}' for name, value in found.champion.items())}")
    else:
        say(f"  champion   {found.lost or 'none: nothing is deployed yet' if not _no_registry(found) else 'not known'}")
    if found.rollout:
        say(f"  rollout    {found.rollout}")
    if found.episode:
        say(f"  drift      {found.episode}")
    say("  stages     " + ("none has ended yet" if not found.stages else "last cutoff and when it ended"))
    for stage in (stage for stage in STAGES if stage in found.stages):
        record = found.stages[stage]
        say(f"    {stage:15} {record['cutoff']}  ended {record['recorded_at']}, run {record['dag_run']}")
    _lines(say, "requests", found.waiting or ["none waits"])
    _lines(say, "ended", found.ended)
    if found.runs:
        _lines(say, "paused", [f"{dag_id}: its events are kept by monitor, nothing runs" for dag_id in found.runs.paused])
        _lines(say, "failed", [str(run) for run in found.runs.failed])
        _lines(say, "hanging", list(found.runs.long))
        _lines(say, "missing", [f"{dag_id}: Airflow does not know it; `airloop doctor` says why" for dag_id in found.runs.missing])
    _lines(say, "untold", found.untold)
    _lines(say, "not known", found.gaps)


def _no_registry(found: ProjectStatus) -> bool:
    return any(gap.startswith("champion") for gap in found.gaps)


def _lines(say: Callable[[str], None], head: str, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        say(f"  {head if number == 0 else '':10} {line}")
