"""What a try runs: the sample, the stages before the tried one, and what each of them is made of."""

import ast
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from include.ledger import iso
from include.projects.base import STAGES, Project
from include.settings import REPOSITORY, get_settings

FEED = "feed"
TO_CHAMPION = (FEED, "ingest", "build_features", "train", "deploy")
FALLBACK = timedelta(days=28)  # of data, where a project's feed does not say what a sample is

# What a step's result depends on, beside what the steps before it depend on. {p} is the project.
MADE_OF = {
    FEED: ("include/settings.py", "include/projects/base.py", "include/projects/{p}/*.py", "include/data/layout.py"),  # of __init__.py without TRAINING
    "ingest": (
        "include/assets.py",
        "include/times.py",
        "include/ledger/**/*.py",
        "include/dag_kit/*.py",
        "include/data/*.py",
        "include/projects/{p}/expectations.py",
    ),
    "build_features": (
        "include/features/*.py",
        "feature_repo/shared.py",
        "feature_repo/offline_store.py",
        "feature_repo/*.yaml",
        "feature_repo/{p}.py",
        "include/projects/{p}/features.py",
    ),
    "train": ("include/training/*.py", "include/registry/*.py", "include/projects/{p}/__init__.py"),
    "deploy": ("include/rollout/*.py", "serving/*"),
    "score": ("include/scoring/*.py",),
    "monitor": ("include/monitoring/*.py",),
}
# Arguments of Project(...) that no stage before train reads.
TRAINING = frozenset({"candidates", "gate", "metric", "retrain", "rollout", "compute", "refit"})
LATER = ("expectations.py", "features.py")  # files of a project's folder that its feed does not use


class NoSuchStage(ValueError):
    """There is no stage of that name; the message lists them."""


@dataclass(frozen=True)
class Sample:
    """About ``rows`` examples: what was published in (since, until]. Score and monitor try a model that was trained at ``middle``."""

    rows: int
    since: datetime
    middle: datetime
    until: datetime

    @property
    def days(self) -> float:
        return (self.until - self.since) / timedelta(days=1)


@dataclass(frozen=True)
class Step:
    """One stage up to a cutoff, or the feed's files published in (since, cutoff]. ``key`` names its result: equal keys, equal results."""

    stage: str
    cutoff: str
    since: str | None = None
    key: str = ""


class Made(NamedTuple):
    """One thing that a stage made: what it is, in figures, and its path or URI."""

    kind: str
    name: str
    detail: str
    where: str


def sample_of(project: Project, rows: int) -> Sample:
    """The sample that the project's feed gives for about so many rows.

    Raises:
        ValueError: the feed's window is empty.
    """
    feed = project.module("feed")
    first = feed.first_moment()
    since, until = feed.sample_window(rows) if hasattr(feed, "sample_window") else (first, min(first + FALLBACK, feed.last_moment()))
    if until <= since:
        raise ValueError(f"include/projects/{project.name}/feed.py: sample_window({rows}) ends ({iso(until)}) before it begins ({iso(since)})")
    middle = (since + (until - since) * 2 / 3).astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return Sample(rows, since, middle, until)


def steps_to(stage: str, project: Project, sample: Sample) -> list[Step]:
    """The steps of a try, the tried stage last, with their keys.

    Raises:
        NoSuchStage.
    """
    if stage not in STAGES:
        raise NoSuchStage(f"no stage '{stage}'; there is {', '.join(STAGES)}")
    if stage in TO_CHAMPION:
        steps = _up_to(TO_CHAMPION[: TO_CHAMPION.index(stage) + 1], sample.since, sample.until)
    else:  # these look at what a champion does afterwards
        later = (FEED, "ingest", "build_features", "score", "monitor")
        steps = [*_up_to(TO_CHAMPION, sample.since, sample.middle), *_up_to(later[: later.index(stage) + 1], sample.middle, sample.until)]
    return _with_keys(steps, project, sample)


def chain_of(stage: str) -> str:
    """Return the name of the steps that a stage shares with others: up to a champion on the whole sample, or on its first part and then beyond."""
    return "whole" if stage in TO_CHAMPION else "parts"


def dag_file(stage: str, folder: Path) -> Path:
    return folder / f"{stage}.py"


def _up_to(stages: Iterable[str], since: datetime, cutoff: datetime) -> list[Step]:
    return [Step(stage, iso(cutoff), iso(since) if stage == FEED else None) for stage in stages]


def _with_keys(steps: list[Step], project: Project, sample: Sample) -> list[Step]:
    key, keyed = f"{sample.rows}|{sample.days}", []
    for step in steps:
        key = hashlib.sha256(f"{key}|{step.stage}|{step.since}|{step.cutoff}|{_made_of(step.stage, project)}".encode()).hexdigest()[:24]
        keyed.append(replace(step, key=key))
    return keyed


def _made_of(stage: str, project: Project) -> str:
    files = {
        path.relative_to(REPOSITORY).as_posix(): path
        for pattern in MADE_OF[stage]
        for path in REPOSITORY.glob(pattern.format(p=project.name))
        if path.is_file()
    }
    if stage == FEED:
        files = {name: path for name, path in files.items() if path.name not in LATER}
    else:
        files[f"dags/{stage}.py"] = dag_file(stage, get_settings().dags_folder)
    found = hashlib.sha256()
    for name, path in sorted(files.items()):
        found.update(f"{name}\0".encode())
        content = path.read_bytes() if path.exists() else b""
        found.update(_before_training(content) if stage == FEED and path.name == "__init__.py" else content)
    return found.hexdigest()


def _before_training(content: bytes) -> bytes:
    """Return what the stages before train read of a project's ``__init__.py``: its syntax tree without the arguments that only training reads."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return content
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Project":
            call.keywords = [one for one in call.keywords if one.arg not in TRAINING]
    return ast.dump(tree).encode()
