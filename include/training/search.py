"""Hyper-parameter search with Optuna. The SQL store has one study for each request and candidate.

Trials run concurrently, and may be killed and run again. This is safe for these reasons:

* A trial is identified by its place (0, 1, ...). A process that begins a place first checks the
  study and reuses an existing proposal for it.
* A proposal is added to the study in one transaction, with its place, so every trial is recorded.
* A trial's result is stored in its manifest. The next process that reads the study copies it from
  there. So a kill after the manifest loses nothing.
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
from include.projects.base import Candidate, Choices, Project, Range, Search
from include.settings import get_settings
from include.training import manifest

# The schema on Postgres. It keeps Optuna's table alembic_version apart from Airflow's and MLflow's.
SCHEMA = "airloop_studies"
PLACE_ATTRIBUTE = "place"
TRIES = 5

optuna.logging.set_verbosity(optuna.logging.WARNING)


class EmptySearchError(ValueError):
    """Raised when no trial of a search has a value."""


def trial_uri(project: Project, request: str, candidate: str, place: int | str) -> UPath:
    """Return the URI of a trial's manifest."""
    return layout.training(project, request) / f"trial-{candidate}-{place}.json"


def propose(project: Project, request: str, candidate: Candidate, place: int) -> dict[str, Any]:
    """Return all parameters of a trial.

    These are the ones that were proposed for this place before. Otherwise they are new ones, based
    on all trials that have ended.
    """
    study = _study(project, request, candidate)
    _tell(study, project, request, candidate)
    trials = study.get_trials(deepcopy=False)
    if place not in _by_place(trials):
        proposed = _proposed(project, candidate, trials, place)
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=proposed,
                distributions=_distributions(_search(candidate)),
                user_attrs={PLACE_ATTRIBUTE: place},
            )
        )
    # Read again: if two processes began this place concurrently, the first proposal counts for
    # both.
    return {**candidate.parameters, **_by_place(study.get_trials(deepcopy=False))[place].params}


def write_proposal(project: Project, request: str, candidate: Candidate, place: int) -> str:
    """Write the result of ``propose`` to a file for the trial's step. Return its URI."""
    target = trial_uri(project, request, candidate.name, place).with_suffix(".parameters.json")
    manifest.write(target, {"parameters": propose(project, request, candidate, place)})
    return str(target)


def conclude(project: Project, request: str, candidate: Candidate) -> str:
    """Write all trials and the winning parameters, after all trials have ended. Return the URI.

    Raises:
        EmptySearchError: no trial has a value. The message contains the first one's reason.
    """
    study, search = _study(project, request, candidate), _search(candidate)
    _tell(study, project, request, candidate)
    trials = []
    for place in range(search.trials):
        made = _made(project, request, candidate.name, place)
        # If it is None, a user went on without this trial.
        if made is not None:
            trials.append({k: made[k] for k in ("trial", "parameters", "value", "error", "fit_s")})
    sign = 1 if project.metric.higher_is_better else -1
    judged = [t for t in trials if t["value"] is not None]
    if not judged:
        why = trials[0]["error"] if trials else "none has ended"
        raise EmptySearchError(
            f"none of the {search.trials} trials of '{candidate.name}' has a figure; the first one's reason: {why}"
        )
    winner = max(judged, key=lambda t: (sign * t["value"], -t["trial"]))
    target = layout.training(project, request) / f"search-{candidate.name}.json"
    manifest.write(
        target,
        {
            "schema": 1,
            "step": "search",
            "request": request,
            "candidate": candidate.name,
            "study": study.study_name,
            "metric": project.metric.name,
            "trials": trials,
            "winner": winner["trial"],
            "parameters": winner["parameters"],
        },
    )
    print(
        f"{candidate.name}: trial {winner['trial']} won with {project.metric.name} {winner['value']:.4f} of"
        f" {len(judged)}: {winner['parameters']}",
        flush=True,
    )
    return str(target)


def _proposed(project: Project, candidate: Candidate, history: list[FrozenTrial], place: int) -> dict[str, Any]:
    """Return parameters by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

    Trials that still run count as bad ones, so that they are not repeated. The parameters depend
    only on the seed, the place and the ended trials. The first ten (Optuna's default) depend only
    on the seed and the place.
    """
    search = _search(candidate)
    seed = int(np.random.SeedSequence([search.seed, place]).generate_state(1)[0])
    scratch = optuna.create_study(
        direction=_direction(project), sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    )
    scratch.add_trials(history)
    distributions = _distributions(search)
    if place == 0:
        scratch.enqueue_trial(
            {
                k: candidate.parameters[k]
                for k, d in distributions.items()
                if k in candidate.parameters and _holds(d, candidate.parameters[k])
            }
        )
    return scratch.ask(distributions).params


def _tell(study: optuna.Study, project: Project, request: str, candidate: Candidate) -> None:
    """Add the results of trials that have ended since the last call to the study."""
    # Read once. A trial that is added in between would seem not to count.
    trials = study.get_trials(deepcopy=False)
    counted = {trial.number for trial in _by_place(trials).values()}
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        result = _made(project, request, candidate.name, trial.user_attrs[PLACE_ATTRIBUTE])
        if trial.number not in counted:
            # The later one of two that were proposed for one place.
            _end(study, trial, None)
        elif result is not None and result["parameters"] == {**candidate.parameters, **trial.params}:
            _end(study, trial, result["value"])


def _end(study: optuna.Study, trial: FrozenTrial, value: float | None) -> None:
    """Record in the study how a trial ended; ``value`` is None if it has no value.

    All processes that do so have read the same result, so the first one may write.
    """
    # Another process was faster, within the time that skip_if_finished does not detect.
    with suppress(optuna.exceptions.UpdateFinishedTrialError):
        study.tell(
            trial.number, value, TrialState.FAIL if value is None else TrialState.COMPLETE, skip_if_finished=True
        )


def _by_place(trials: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the trial that counts for each place: the first."""
    by_place: dict[int, FrozenTrial] = {}
    for trial in trials:
        by_place.setdefault(trial.user_attrs[PLACE_ATTRIBUTE], trial)
    return by_place


def _made(project: Project, request: str, candidate: str, place: int) -> dict[str, Any] | None:
    try:
        return manifest.read(trial_uri(project, request, candidate, place))
    except FileNotFoundError:
        return None


def _study(project: Project, request: str, candidate: Candidate) -> optuna.Study:
    """Return the study of this request and candidate.

    If the candidate was changed in between, it is another study, because the earlier trials do not
    apply.
    """
    name = f"{project.name}/{request}/{candidate.name}/{manifest.fingerprint(candidate.model_dump(mode='json'))}"
    for tries in range(1, TRIES + 1):
        try:
            return optuna.create_study(
                storage=storage(get_settings().studies),
                study_name=name,
                direction=_direction(project),
                load_if_exists=True,
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError):
            if tries == TRIES:
                raise
            # If several processes begin concurrently on an empty database, each creates the tables
            # and one succeeds.
            time.sleep(0.2 * tries)
    raise AssertionError


def storage(url: str) -> optuna.storages.RDBStorage:
    """Return Optuna's storage in that database. Create its tables if needed."""
    arguments: dict[str, Any] = {}
    place = make_url(url)
    if place.get_backend_name() == "sqlite":
        Path(place.database or "").parent.mkdir(parents=True, exist_ok=True)
        # Writers wait for each other. A transaction that begins as a reader would be refused
        # immediately when it wants to write.
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
    def distribution(tried: Range | Choices) -> BaseDistribution:
        if not isinstance(tried, Range):
            return CategoricalDistribution(tried.options)
        return (
            IntDistribution(int(tried.low), int(tried.high), tried.log)
            if tried.whole
            else FloatDistribution(tried.low, tried.high, tried.log)
        )

    return {name: distribution(tried) for name, tried in search.space.items()}


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether the search space contains a candidate's own value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return (
        number
        and distribution.low <= value <= distribution.high
        and (isinstance(distribution, FloatDistribution) or float(value).is_integer())
    )
