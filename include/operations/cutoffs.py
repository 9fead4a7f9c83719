"""Detect wrong cutoffs and remove their effects.

Each stage treats a run for an earlier cutoff than its last one as outdated. Therefore one wrong
cutoff, such as a date in the future, stops features, predictions and monitoring until that date.
New ones are refused (``ledger.check_cutoff``). This module removes those of older versions, and
those of a replay whose clock was moved too far.
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
from include.outages import outage_of
from include.projects.base import Project
from include.registry import versions
from include.scoring import batch
from include.settings import get_settings
from include.times import iso


class RewindError(ValueError):
    """Raised when nothing was rewound. The message contains the reason and the fix."""


@dataclass(frozen=True)
class Traces:
    """The effects of cutoffs after a time.

    Attributes:
        blocking: Effects that stop later runs, one sentence each. A rewind removes them.
        lasting: Effects that stay after a rewind, each with the fix.
    """

    blocking: list[str] = field(default_factory=list)
    lasting: list[str] = field(default_factory=list)


def present(project: Project) -> datetime:
    """Return the latest time that a cutoff of the project may have.

    A replay's clock that is ahead of the current time is treated as wrong.
    """
    return min(ledger.now(project.name), times.utc_now()) + CLOCK_SKEW


def traces(project: Project, until: datetime) -> Traces:
    """Return the effects of cutoffs after ``until``. Changes nothing."""
    effects, seen = Traces(), ledger.later_than(project.name, until)
    effects.blocking.extend(
        f"stage {stage} is recorded up to {cutoff}" for stage, cutoff in sorted(seen.stages.items())
    )
    effects.blocking.extend(
        f"features: {what} goes up to {cutoff}" for what, cutoff in build.later_than(project, until).items()
    )
    if mark := batch.later_than(project, until):
        effects.blocking.append(f"predictions were made up to {mark}")
    if seen.decisions:
        effects.blocking.append(
            f"{seen.decisions} decisions of monitor are for later cutoffs, so that nothing asks for a retraining"
        )
    if seen.episodes:
        effects.blocking.append(f"{seen.episodes} drift episodes were opened or closed at later cutoffs")
    if seen.runs:
        effects.blocking.append(f"{seen.runs} DAG runs keep a later cutoff")
    if seen.clock:
        effects.blocking.append(f"the clock of the replay stands at {seen.clock}")
    for one in seen.requests:
        if one.state == "deploying":
            effects.lasting.append(f"{one}: `airloop rollback {project.name} --reason ...` ends its rollout")
        else:
            effects.blocking.append(str(one))
    effects.lasting.extend(_rows(project, until))
    effects.lasting.extend(_models(project, until))
    return effects


def rewind(project: Project, until: datetime, *, by: str, why: str) -> Traces:
    """Remove what stops later runs. If this is killed, it can be run again.

    Returns:
        The completed steps, as ``blocking``, and the remaining effects.

    Raises:
        RewindError: The reason is missing, or ``until`` is after the present.
    """
    if not why.strip():
        raise RewindError("state the reason: the record shows it")
    if until > times.utc_now() + CLOCK_SKEW:
        raise RewindError(f"{iso(until)} is in the future: cutoffs are taken back to a time that has passed")
    if not traces(project, until).blocking:
        return Traces([], traces(project, until).lasting)
    stages = ledger.later_than(project.name, until).stages
    done = [*build.rewind(project, until), *batch.rewind(project, until)]
    left = build.published_until(project)
    # The record is written last. After a kill, the next try sees the remaining work.
    ledger.rewind(project.name, until, features_until=iso(left) if left else None, by=by, why=why.strip(), also=done)
    done += [
        f"ledger: stage {stage} was recorded up to {cutoff}, and is not any more"
        for stage, cutoff in sorted(stages.items())
    ]
    return Traces(
        [*done, f"ledger: what monitor decided, asked and opened after {iso(until)} is taken back"],
        traces(project, until).lasting,
    )


def _rows(project: Project, until: datetime) -> list[str]:
    """Describe the rows that are known only after ``until``.

    They stay: a file is ingested once, and no run reads the rows before that time.
    """
    descriptions = []
    for source in project.sources:
        table = tables.open_table(layout.table(project, source.name))
        if table is None:
            continue
        count = table.to_pyarrow_dataset().count_rows(filter=tables.known_after(source, until))
        if count:
            descriptions.append(
                f"{count} rows of source {source.name} are known only after {iso(until)}: no run reads them before. If"
                f" their {source.known_at} is wrong, have them sent again under other keys, or restore the table"
            )
    return descriptions


def _mlflow_answers(seconds: float = 3.0) -> bool:
    """Check MLflow with a short timeout, because its client retries for minutes."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or get_settings().mlflow_url
    if not address.startswith(("http://", "https://")):
        # The store is a file.
        return True
    try:
        return httpx.get(f"{address}/health", timeout=seconds, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _models(project: Project, until: datetime) -> list[str]:
    """Describe the versions with an alias that were trained for a later cutoff."""
    unknown = "MLflow does not answer, so that models with a later cutoff are not known: `airloop doctor` says more"
    if not _mlflow_answers():
        return [unknown]
    try:
        aliases = versions.aliases(project)
        cutoffs = {
            alias: (version, versions.get_version(project, version).tags.get("cutoff") or "")
            for alias, version in aliases.items()
        }
    except Exception as error:
        if outage_of(error) is None and not isinstance(error, MlflowException):
            raise
        return [unknown]
    return [
        f"version {version} ({alias}) was trained for cutoff {cutoff}, so nothing before is predicted with it: `airloop"
        f" rollback {project.name} --reason ...`, or `airloop retrain {project.name}` and deploy what passes"
        for alias, (version, cutoff) in cutoffs.items()
        if cutoff > iso(until)
    ]
