"""What a look at a step looks at: the answers of the new version and of the champion beside it, and the outcomes that are known of them."""

from datetime import datetime
from typing import Any

import pandas as pd

from include import ledger
from include.data import tables
from include.monitoring.answers import CHAMPION, answers, entity_of, shadowed
from include.projects.base import Project
from include.projects.rollout import Analysis, Step
from include.rollout.analysis import Check, Side, compare, outcomes


def look(project: Project, step: Step, version: str, *, since: datetime, until: datetime, tried_since: datetime) -> list[Check]:
    """Every rule of the project's analysis on one step.

    Args:
        version: the new one.
        since: start of what was answered (wall clock), exclusive; ``until`` its end.
        tried_since: start of the rollout: outcomes of everything that was answered in it count, as they are known at the project's present.
    """
    analysis = project.rollout.analysis
    mine, theirs = sides(project, step, version, since=since, until=until)
    checks = compare(analysis, mine, theirs)
    if analysis.labels is not None:
        checks.append(_outcomes(project, analysis, step, version, tried_since, until))
    return checks


def sides(project: Project, step: Step, version: str, *, since: datetime, until: datetime) -> tuple[Side, Side]:
    """What the version and the champion answered in a step."""
    given = answers(project, since=since, until=until)
    if step.shadow is not None:
        asked = shadowed(project, since=since, until=until)
        asked = asked[(asked["arm"] == step.name) & (asked["model_version"] == version)]
        answered = asked[asked["prediction"].notna()]
        failed = _requests(asked)["failed"].sum()
        return _side(project, answered, int(failed)), _side(project, given[given["prediction_id"].isin(set(answered["prediction_id"]))], 0)
    alone = given[given.groupby("predicted_at")["arm"].transform("nunique") == 1] if len(given) else given  # a request that two arms share is slower for it
    mine, theirs = given["arm"] == step.name, given["arm"] == (step.control or CHAMPION)
    failed = given.loc[given["failed_arm"] == step.name, "predicted_at"].nunique()
    return _side(project, given[mine], failed, alone), _side(project, given[theirs & (given["failed_arm"] == "")], 0, alone)


def _side(project: Project, rows: pd.DataFrame, failed: int, timed: pd.DataFrame | None = None) -> Side:
    requests = rows if timed is None else rows[rows["predicted_at"].isin(timed["predicted_at"])]
    entities = tuple(entity_of(project, key) for key in rows["key"])
    return Side(requests.drop_duplicates("predicted_at")[["latency_ms"]], failed, rows["prediction"].to_numpy("float64"), entities)


def _requests(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a request: whether it ``failed``."""
    return rows.assign(failed=rows["prediction"].isna()).groupby("predicted_at", as_index=False)["failed"].any()


def _outcomes(project: Project, analysis: Analysis, step: Step, version: str, since: datetime, until: datetime) -> Check:
    policy = analysis.labels
    assert policy is not None
    known = tables.read(project, policy.source, known_by=ledger.now(project.name), columns=["prediction_id", "label"])
    known = known.set_index("prediction_id", verify_integrity=True)["label"]  # the source's key: ingest took one label a prediction
    given = _labelled(project, answers(project, since=since, until=until), known)
    theirs = given[given["arm"] == (step.control or CHAMPION)]
    if step.shadow is not None:
        asked = _labelled(project, shadowed(project, since=since, until=until), known)
        asked = asked[(asked["model_version"] == version) & asked["prediction"].notna()]
        both = asked.merge(theirs[["prediction_id", "prediction"]], on="prediction_id", suffixes=("", "_champion"))
        mine, theirs = both, both.assign(prediction=both["prediction_champion"])
    else:
        arms = {one.name for one in project.rollout.steps if one.weight is not None}  # not the baseline, which answers where the look-up lacks something
        mine = given[given["arm"].isin(arms) & (given["model_version"] == version)]
    return outcomes(policy, step.metric or project.metric.name, mine, theirs, paired=step.shadow is not None)


def _labelled(project: Project, rows: pd.DataFrame, known: Any) -> pd.DataFrame:
    """The rows with an outcome: ``label`` and ``entity`` beside what they have."""
    found = rows[rows["prediction_id"].isin(known.index)]
    return found.assign(label=found["prediction_id"].map(known).astype("float64"), entity=[entity_of(project, key) for key in found["key"]])
