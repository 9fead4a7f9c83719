"""The data of a look: the answers of the new version and the champion, and their known outcomes."""

from datetime import datetime
from typing import Any

import pandas as pd

from include import ledger
from include.data import tables
from include.monitoring.answers import CHAMPION, answers, entity_of, shadowed
from include.projects.base import Project
from include.projects.rollout import Analysis, Step
from include.rollout.analysis import ArmObservations, Check, compare, outcomes


def look(
    project: Project, step: Step, version: str, *, since: datetime, until: datetime, tried_since: datetime
) -> list[Check]:
    """Apply every rule of the project's analysis to one step.

    Args:
        version: the new version.
        since: start of the answers' time range (wall clock), exclusive. ``until`` is its end.
        tried_since: start of the rollout. The outcomes of all its answers count, as known at the
            project's present.
    """
    analysis = project.rollout.analysis
    candidate, control = sides(project, step, version, since=since, until=until)
    checks = compare(analysis, candidate, control)
    if analysis.labels is not None:
        checks.append(_outcomes(project, analysis, step, version, tried_since, until))
    return checks


def sides(
    project: Project, step: Step, version: str, *, since: datetime, until: datetime
) -> tuple[ArmObservations, ArmObservations]:
    """Return the answers of the version and of the champion in a step."""
    rows = answers(project, since=since, until=until)
    if step.shadow is not None:
        shadow = shadowed(project, since=since, until=until)
        shadow = shadow[(shadow["arm"] == step.name) & (shadow["model_version"] == version)]
        answered = shadow[shadow["prediction"].notna()]
        failed = _requests(shadow)["failed"].sum()
        return _side(project, answered, int(failed)), _side(
            project, rows[rows["prediction_id"].isin(set(answered["prediction_id"]))], 0
        )
    # A request that is split between two arms takes longer, so it is not used for latencies.
    alone = rows[rows.groupby("predicted_at")["arm"].transform("nunique") == 1] if len(rows) else rows
    candidate, control = rows["arm"] == step.name, rows["arm"] == (step.control or CHAMPION)
    failed = rows.loc[rows["failed_arm"] == step.name, "predicted_at"].nunique()
    return _side(project, rows[candidate], failed, alone), _side(
        project, rows[control & (rows["failed_arm"] == "")], 0, alone
    )


def _side(project: Project, rows: pd.DataFrame, failed: int, timed: pd.DataFrame | None = None) -> ArmObservations:
    requests = rows if timed is None else rows[rows["predicted_at"].isin(timed["predicted_at"])]
    entities = tuple(entity_of(project, key) for key in rows["key"])
    return ArmObservations(
        requests.drop_duplicates("predicted_at")[["latency_ms"]],
        failed,
        rows["prediction"].to_numpy("float64"),
        entities,
    )


def _requests(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each request: whether it ``failed``."""
    return rows.assign(failed=rows["prediction"].isna()).groupby("predicted_at", as_index=False)["failed"].any()


def _outcomes(
    project: Project, analysis: Analysis, step: Step, version: str, since: datetime, until: datetime
) -> Check:
    policy = analysis.labels
    assert policy is not None
    known = tables.read(project, policy.source, known_by=ledger.now(project.name), columns=["prediction_id", "label"])
    # Ingest accepts one label for each prediction, because the ID is the source's key.
    known = known.set_index("prediction_id", verify_integrity=True)["label"]
    labelled = _labelled(project, answers(project, since=since, until=until), known)
    control = labelled[labelled["arm"] == (step.control or CHAMPION)]
    if step.shadow is not None:
        shadow = _labelled(project, shadowed(project, since=since, until=until), known)
        shadow = shadow[(shadow["model_version"] == version) & shadow["prediction"].notna()]
        both = shadow.merge(control[["prediction_id", "prediction"]], on="prediction_id", suffixes=("", "_champion"))
        candidate, control = both, both.assign(prediction=both["prediction_champion"])
    else:
        # Excludes the baseline, which answers when the feature look-up is incomplete.
        arms = {one.name for one in project.rollout.steps if one.weight is not None}
        candidate = labelled[labelled["arm"].isin(arms) & (labelled["model_version"] == version)]
    return outcomes(policy, step.metric or project.metric.name, candidate, control, paired=step.shadow is not None)


def _labelled(project: Project, rows: pd.DataFrame, known: Any) -> pd.DataFrame:
    """Return the rows that have an outcome, with the columns ``label`` and ``entity`` added."""
    labelled = rows[rows["prediction_id"].isin(known.index)]
    return labelled.assign(
        label=labelled["prediction_id"].map(known).astype("float64"),
        entity=[entity_of(project, key) for key in labelled["key"]],
    )
