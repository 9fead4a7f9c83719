"""Hyper-parameter search: Optuna proposes the parameters of each trial; its study stands in the SQL store, one for each request and candidate.

Trials run side by side, and may be killed and run again. What makes that safe:

* A trial is known by its place (0, 1, ...). Whoever begins a place asks the study first: what was proposed for it once is used again.
* A proposal is put into the study in one transaction, with its place; there is never a trial that nobody knows of.
* What a trial found stands in its manifest; the study is told from there, by whoever asks next. So a kill after the manifest loses nothing.
"""

import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from upath import UPath

from include.data import layout
from include.projects.base import Candidate, Project, Range, Search
from include.settings import get_settings
from include.training import manifest

SCHEMA = "airloop_studies"  # on Postgres; Optuna's table alembic_version is not to meet Airflow's or MLflow's
PLACE = "place"
TRIES = 5

optuna.logging.set_verbosity(optuna.logging.WARNING)


class NothingFound(ValueError):
    """No trial of a search has a figure."""


def trial_uri(project: Project, request: str, candidate: str, place: int | str) -> UPath:
    """The manifest of a trial."""
    return layout.training(project, request) / f"trial-{candidate}-{place}.json"


def propose(project: Project, request: str, candidate: Candidate, place: int) -> dict[str, Any]:
    """All parameters of a trial: those that were proposed for this place before, else new ones in the light of all trials that have ended."""
    study = _study(project, request, candidate)
    _tell(study, project, request, candidate)
    trials = study.get_trials(deepcopy=False)
    if place not in _by_place(trials):
        proposed = _proposed(project, candidate, trials, place)
        study.add_trial(
            optuna.trial.create_trial(state=TrialState.RUNNING, params=proposed, distributions=_distributions(_search(candidate)), user_attrs={PLACE: place})
        )
    # Read again: if two began this place at once, the one that came first counts for both.
    return {**candidate.parameters, **_by_place(study.get_trials(deepcopy=False))[place].params}


def write_proposal(project: Project, request: str, candidate: Candidate, place: int) -> str:
    """``propose``, kept in a file for the trial's step; gives its URI."""
    target = trial_uri(project, request, candidate.name, place).with_suffix(".parameters.json")
    manifest.write(target, {"parameters": propose(project, request, candidate, place)})
    return str(target)


def conclude(project: Project, request: str, candidate: Candidate) -> str:
    """All trials have ended: write what was tried and which parameters won; gives the URI.

    Raises:
        NothingFound: no trial has a figure; the message has the first one's reason.
    """
    study, search = _study(project, request, candidate), _search(candidate)
    _tell(study, project, request, candidate)
    trials = []
    for place in range(search.trials):
        made = _made(project, request, candidate.name, place)
        if made is not None:  # else a person went on without it
            trials.append({k: made[k] for k in ("trial", "parameters", "value", "error", "fit_s")})
    sign = 1 if project.metric.higher_is_better else -1
    judged = [t for t in trials if t["value"] is not None]
    if not judged:
        why = trials[0]["error"] if trials else "none has ended"
        raise NothingFound(f"none of the {search.trials} trials of '{candidate.name}' has a figure; the first one's reason: {why}")
    winner = max(judged, key=lambda t: (sign * t["value"], -t["trial"]))
    target = layout.training(project, request) / f"search-{candidate.name}.json"
    manifest.write(target, {
        "schema": 1, "step": "search", "request": request, "candidate": candidate.name, "study": study.study_name, "metric": project.metric.name,
        "trials": trials, "winner": winner["trial"], "parameters": winner["parameters"],
    })  # fmt: skip
    print(
        f"{candidate.name}: trial {winner['trial']} won with {project.metric.name} {winner['value']:.4f} of {len(judged)}: {winner['parameters']}", flush=True
    )
    return str(target)


def _proposed(project: Project, candidate: Candidate, history: list[FrozenTrial], place: int) -> dict[str, Any]:
    """Parameters by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011); trials that still run count as bad ones, so that nobody repeats them.

    They depend on the seed, the place and what has ended alone; the first ten (Optuna's default) on the first two.
    """
    search = _search(candidate)
    seed = int(np.random.SeedSequence([search.seed, place]).generate_state(1)[0])
    scratch = optuna.create_study(direction=_direction(project), sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True))
    scratch.add_trials(history)
    distributions = _distributions(search)
    if place == 0:
        scratch.enqueue_trial(
            {k: candidate.parameters[k] for k, d in distributions.items() if k in candidate.parameters and _holds(d, candidate.parameters[k])}
        )
    return scratch.ask(distributions).params


def _tell(study: optuna.Study, project: Project, request: str, candidate: Candidate) -> None:
    """Tell the study of all trials that have ended since somebody looked last."""
    trials = study.get_trials(deepcopy=False)  # read once: one that came in between would look as if it did not count
    counted = {trial.number for trial in _by_place(trials).values()}
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        made = _made(project, request, candidate.name, trial.user_attrs[PLACE])
        if trial.number not in counted:
            _end(study, trial, None)  # of two that were proposed for one place, the later one
        elif made is not None and made["parameters"] == {**candidate.parameters, **trial.params}:
            _end(study, trial, made["value"])


def _end(study: optuna.Study, trial: FrozenTrial, value: float | None) -> None:
    """Tell the study how a trial ended; None: without a figure. All who do so have read the same, so whoever comes first may."""
    with suppress(optuna.exceptions.UpdateFinishedTrialError):  # somebody else was faster, by less than what skip_if_finished sees
        study.tell(trial.number, value, TrialState.FAIL if value is None else TrialState.COMPLETE, skip_if_finished=True)


def _by_place(trials: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that counts for each place: the first."""
    found: dict[int, FrozenTrial] = {}
    for trial in trials:
        found.setdefault(trial.user_attrs[PLACE], trial)
    return found


def _made(project: Project, request: str, candidate: str, place: int) -> dict[str, Any] | None:
    try:
        return manifest.read(trial_uri(project, request, candidate, place))
    except FileNotFoundError:
        return None


def _study(project: Project, request: str, candidate: Candidate) -> optuna.Study:
    """The study of this request and candidate; another one if the candidate was changed in between, since its trials say nothing of this one."""
    name = f"{project.name}/{request}/{candidate.name}/{manifest.fingerprint(candidate.model_dump(mode='json'))}"
    for tries in range(1, TRIES + 1):
        try:
            return optuna.create_study(storage=storage(get_settings().studies), study_name=name, direction=_direction(project), load_if_exists=True)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError):
            if tries == TRIES:
                raise
            time.sleep(0.2 * tries)  # several begin at once on an empty database: each makes the tables, one succeeds
    raise AssertionError


def storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage in that database, its tables made if they are not there."""
    arguments: dict[str, Any] = {}
    place = make_url(url)
    if place.get_backend_name() == "sqlite":
        Path(place.database or "").parent.mkdir(parents=True, exist_ok=True)
        # Writers wait for each other; a transaction that begins as a reader would be refused at once when it wants to write.
        arguments = {"timeout": 60, "isolation_level": "IMMEDIATE"}
    elif place.get_backend_name() == "postgresql":
        arguments = {"options": f"-c search_path={SCHEMA}"}
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        engine.dispose()
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": arguments})


def _search(candidate: Candidate) -> Search:
    if candidate.search is None:
        raise ValueError(f"candidate '{candidate.name}' has no search")
    return candidate.search


def _direction(project: Project) -> StudyDirection:
    return StudyDirection.MAXIMIZE if project.metric.higher_is_better else StudyDirection.MINIMIZE


def _distributions(search: Search) -> dict[str, BaseDistribution]:
    def of(tried) -> BaseDistribution:
        if not isinstance(tried, Range):
            return CategoricalDistribution(tried.options)
        return IntDistribution(int(tried.low), int(tried.high), tried.log) if tried.whole else FloatDistribution(tried.low, tried.high, tried.log)

    return {name: of(tried) for name, tried in search.space.items()}


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a candidate's own value is one that its search may try."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return number and distribution.low <= value <= distribution.high and (isinstance(distribution, FloatDistribution) or float(value).is_integer())
