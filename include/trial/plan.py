"""Plan a try: the sample, the stages before the tried one, and the inputs of each step."""

import ast
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from include.ledger import iso
from include.projects import file_name, file_of, shown
from include.projects.base import STAGES, Project
from include.settings import REPOSITORY, get_settings

FEED = "feed"
TO_CHAMPION = (FEED, "ingest", "build_features", "train", "deploy")
# Amount of data if a project's feed does not define a sample.
FALLBACK = timedelta(days=28)

# Files that a step's result depends on, in addition to those of earlier steps. {p} is the folder of
# the project.
OWN = "{p}/"
MADE_OF = {
    # __init__.py counts without the arguments in TRAINING.
    FEED: (
        "include/settings/*.py",
        "include/projects/base.py",
        "{p}/*.py",
        "include/data/layout.py",
        "include/data/feed.py",
    ),
    "ingest": (
        "include/assets.py",
        "include/times.py",
        "include/ledger/**/*.py",
        "include/dag_kit/*.py",
        "include/data/*.py",
        "{p}/expectations.py",
    ),
    "build_features": (
        "include/features/*.py",
        "feature_repo/shared.py",
        "feature_repo/offline_store.py",
        "feature_repo/*.yaml",
        "{p}/feast.py",
        "{p}/features.py",
    ),
    "train": ("include/training/**/*.py", "include/registry/*.py", "{p}/__init__.py"),
    "deploy": ("include/rollout/*.py", "serving/**/*.py", "serving/*.yaml"),
    "score": ("include/scoring/*.py",),
    "monitor": ("include/monitoring/*.py",),
}
# Arguments of Project(...) that no stage before train reads.
TRAINING = frozenset({"candidates", "gate", "metric", "retrain", "rollout", "compute", "refit"})
# Files of a project's folder that its feed does not use.
LATER = ("expectations.py", "features.py", "feast.py")


class UnknownStageError(ValueError):
    """Raised when the stage does not exist. The message lists the stages."""


@dataclass(frozen=True)
class Sample:
    """A sample of about ``rows`` examples: the data published in (since, until].

    Score and monitor try a model that was trained at ``middle``.
    """

    rows: int
    since: datetime
    middle: datetime
    until: datetime

    @property
    def days(self) -> float:
        return (self.until - self.since) / timedelta(days=1)


@dataclass(frozen=True)
class TrialStep:
    """One stage up to a cutoff, or the feed's files published in (since, cutoff].

    ``key`` identifies the result: steps with equal keys have equal results.
    """

    stage: str
    cutoff: str
    since: str | None = None
    key: str = ""


class Made(NamedTuple):
    """One result of a stage: its kind, name and details, and its path or URI."""

    kind: str
    name: str
    detail: str
    where: str


def sample_of(project: Project, rows: int) -> Sample:
    """Return the sample that the project's feed provides for about this number of rows.

    Raises:
        ValueError: The feed's window is empty.
    """
    feed = project.module("feed")
    first = feed.first_moment()
    since, until = (
        feed.sample_window(rows)
        if hasattr(feed, "sample_window")
        else (first, min(first + FALLBACK, feed.last_moment()))
    )
    if until <= since:
        raise ValueError(
            f"{file_name(project.name, 'feed')}: sample_window({rows}) ends ({iso(until)}) before it begins"
            f" ({iso(since)})"
        )
    middle = (since + (until - since) * 2 / 3).astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return Sample(rows, since, middle, until)


def steps_to(stage: str, project: Project, sample: Sample) -> list[TrialStep]:
    """Return the steps of a try with their keys. The tried stage comes last.

    Raises:
        UnknownStageError: The stage does not exist.
    """
    if stage not in STAGES:
        raise UnknownStageError(f"no stage '{stage}'; there is {', '.join(STAGES)}")
    if stage in TO_CHAMPION:
        steps = _up_to(TO_CHAMPION[: TO_CHAMPION.index(stage) + 1], sample.since, sample.until)
    # These stages evaluate a champion on later data.
    else:
        later = (FEED, "ingest", "build_features", "score", "monitor")
        steps = [
            *_up_to(TO_CHAMPION, sample.since, sample.middle),
            *_up_to(later[: later.index(stage) + 1], sample.middle, sample.until),
        ]
    return _with_keys(steps, project, sample)


def chain_of(stage: str) -> str:
    """Return the name of the chain of steps that a stage shares with others.

    ``whole`` leads to a champion on the whole sample. ``parts`` leads to a champion on the first
    part, and continues on the rest.
    """
    return "whole" if stage in TO_CHAMPION else "parts"


def dag_file(stage: str, folder: Path) -> Path:
    return folder / f"{stage}.py"


def _up_to(stages: Iterable[str], since: datetime, cutoff: datetime) -> list[TrialStep]:
    return [TrialStep(stage, iso(cutoff), iso(since) if stage == FEED else None) for stage in stages]


def _with_keys(steps: list[TrialStep], project: Project, sample: Sample) -> list[TrialStep]:
    key, keyed = f"{sample.rows}|{sample.days}", []
    for step in steps:
        key = hashlib.sha256(
            f"{key}|{step.stage}|{step.since}|{step.cutoff}|{_made_of(step.stage, project)}".encode()
        ).hexdigest()[:24]
        keyed.append(replace(step, key=key))
    return keyed


def _made_of(stage: str, project: Project) -> str:
    files = {path for pattern in MADE_OF[stage] for path in _matching(pattern, project)}
    if stage == FEED:
        files = {path for path in files if path.name not in LATER}
    else:
        files |= {dag_file(stage, get_settings().dags_folder), REPOSITORY / f"include/dag_kit/tasks/{stage}.py"}
    # A copy of the DAG folder has the same names, so unchanged files in it change nothing.
    names = {dag_file(stage, get_settings().dags_folder): f"dags/{stage}.py"}
    digest = hashlib.sha256()
    for name, path in sorted((names.get(path, shown(path)), path) for path in files):
        digest.update(f"{name}\0".encode())
        content = path.read_bytes() if path.exists() else b""
        digest.update(_before_training(content) if stage == FEED and path.name == "__init__.py" else content)
    return digest.hexdigest()


def _matching(pattern: str, project: Project) -> Iterable[Path]:
    """Return the files that match a pattern of ``MADE_OF``."""
    if pattern == f"{OWN}feast.py":
        # It may be in feature_repo.
        paths = iter([file_of(project.name, "feast")])
    elif pattern.startswith(OWN):
        paths = file_of(project.name, "__init__").parent.glob(pattern.removeprefix(OWN))
    else:
        paths = REPOSITORY.glob(pattern)
    return (path for path in paths if path.is_file())


def _before_training(content: bytes) -> bytes:
    """Return the content of a project's ``__init__.py`` that stages before train depend on.

    This is its syntax tree without the arguments that only training reads.
    """
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return content
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Project":
            call.keywords = [one for one in call.keywords if one.arg not in TRAINING]
    return ast.dump(tree).encode()
