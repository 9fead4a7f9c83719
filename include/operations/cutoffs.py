"""A cutoff that was wrong, and the way back from it.

Each stage takes a run for an earlier cutoff than its last one for an old run. So one wrong cutoff, such as a date in the future, stops features,
predictions and monitoring until that date. New ones are refused (``ledger.check_cutoff``). Those of older versions, and those of a replay whose clock was
moved too far, are taken back here.
"""

import os
from dataclasses import dataclass, field
from datetime import datetime

import httpx
from mlflow.exceptions import MlflowException

from include import ledger, times
from include.data import layout, tables
from include.features import build
from include.ledger.records import CLOCK_SKEW
from include.outages import away
from include.projects.base import Project
from include.registry import versions
from include.scoring import batch
from include.settings import get_settings
from include.times import iso


class RewindError(ValueError):
    """Nothing was taken back; the message says why and what to do."""


@dataclass(frozen=True)
class Traces:
    """What is there of cutoffs after a time.

    Attributes:
        blocking: what stops later runs, a sentence each. A rewind takes it back.
        lasting: what stays after a rewind, each with what to do.
    """

    blocking: list[str] = field(default_factory=list)
    lasting: list[str] = field(default_factory=list)


def present(project: Project) -> datetime:
    """The latest time that a cutoff of the project may have. The clock of a replay counts as wrong where it is ahead of the time of day."""
    return min(ledger.now(project.name), times.utc_now()) + CLOCK_SKEW


def traces(project: Project, until: datetime) -> Traces:
    """Find what there is of cutoffs after ``until``; changes nothing."""
    found, seen = Traces(), ledger.later_than(project.name, until)
    found.blocking.extend(f"stage {stage} is recorded up to {cutoff}" for stage, cutoff in sorted(seen.stages.items()))
    found.blocking.extend(f"features: {what} goes up to {cutoff}" for what, cutoff in build.later_than(project, until).items())
    if mark := batch.later_than(project, until):
        found.blocking.append(f"predictions were made up to {mark}")
    if seen.decisions:
        found.blocking.append(f"{seen.decisions} decisions of monitor are for later cutoffs, so that nothing asks for a retraining")
    if seen.episodes:
        found.blocking.append(f"{seen.episodes} drift episodes were opened or closed at later cutoffs")
    if seen.runs:
        found.blocking.append(f"{seen.runs} DAG runs keep a later cutoff")
    if seen.clock:
        found.blocking.append(f"the clock of the replay stands at {seen.clock}")
    for one in seen.requests:
        if one.state == "deploying":
            found.lasting.append(f"{one}: `airloop rollback {project.name} --reason ...` ends its rollout")
        else:
            found.blocking.append(str(one))
    found.lasting.extend(_rows(project, until))
    found.lasting.extend(_models(project, until))
    return found


def rewind(project: Project, until: datetime, *, by: str, why: str) -> Traces:
    """Take back what stops later runs. Killed in the middle, it can be done again.

    Returns:
        What was done, as ``blocking``, and what is left.

    Raises:
        RewindError: no reason was given, or ``until`` is after the present.
    """
    if not why.strip():
        raise RewindError("say why: whoever looks at the record reads it")
    if until > times.utc_now() + CLOCK_SKEW:
        raise RewindError(f"{iso(until)} is in the future: cutoffs are taken back to a time that has passed")
    if not traces(project, until).blocking:
        return Traces([], traces(project, until).lasting)
    stages = ledger.later_than(project.name, until).stages
    done = [*build.rewind(project, until), *batch.rewind(project, until)]
    left = build.published_until(project)
    # The record comes last: what was not done before a kill is seen by the next try.
    ledger.rewind(project.name, until, features_until=iso(left) if left else None, by=by, why=why.strip(), also=done)
    done += [f"ledger: stage {stage} was recorded up to {cutoff}, and is not any more" for stage, cutoff in sorted(stages.items())]
    return Traces([*done, f"ledger: what monitor decided, asked and opened after {iso(until)} is taken back"], traces(project, until).lasting)


def _rows(project: Project, until: datetime) -> list[str]:
    """Rows that were taken in as known later. They stay: a file is ingested once, and nothing reads them before that time."""
    found = []
    for source in project.sources:
        table = tables.open_table(layout.table(project, source.name))
        if table is None:
            continue
        count = table.to_pyarrow_dataset().count_rows(filter=tables.known_after(source, until))
        if count:
            found.append(
                f"{count} rows of source {source.name} are known only after {iso(until)}: no run reads them before. If their {source.known_at} is wrong, "
                "have them sent again under other keys, or restore the table"
            )
    return found


def _mlflow_answers(seconds: float = 3.0) -> bool:
    """Ask first: MLflow's client tries for minutes."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or get_settings().mlflow_url
    if not address.startswith(("http://", "https://")):
        return True  # a store in a file
    try:
        return httpx.get(f"{address}/health", timeout=seconds, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _models(project: Project, until: datetime) -> list[str]:
    """Versions that were trained for a later cutoff and may answer."""
    unknown = "MLflow does not answer, so that models with a later cutoff are not known: `airloop doctor` says more"
    if not _mlflow_answers():
        return [unknown]
    try:
        aliases = versions.aliases(project)
        cutoffs = {alias: (version, versions.get_version(project, version).tags.get("cutoff") or "") for alias, version in aliases.items()}
    except Exception as error:
        if away(error) is None and not isinstance(error, MlflowException):
            raise
        return [unknown]
    return [
        f"version {version} ({alias}) was trained for cutoff {cutoff}, so nothing before is predicted with it: `airloop rollback {project.name} --reason ...`, "
        f"or `airloop request {project.name}` and deploy what passes"
        for alias, (version, cutoff) in cutoffs.items()
        if cutoff > iso(until)
    ]
