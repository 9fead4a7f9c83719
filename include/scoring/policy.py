"""The project's look-up policy in the batch: what serving does for an entity of which the store lacks something is done here too.

The two are held to each other by a test; the words are those of ``include/projects/lookup.py``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureView


@dataclass(frozen=True)
class Completed:
    """Rows as the model is given them, and which of them it is not given."""

    rows: pd.DataFrame
    by_rule: np.ndarray  # bool [n]: the baseline rule answers
    refused: np.ndarray  # bool [n]: nobody does


def complete(contract: dict[str, Any], views: list[FeatureView], rows: pd.DataFrame) -> Completed:
    """Find what lacks in each row, put defaults in its place, and say who answers.

    Args:
        contract: of the model; one without a policy is given nulls.
        rows: of ``historical_features``: join keys, features, ``event_timestamp`` and ``feature_time_<view>``.
    """
    policy = contract.get("lookup") or {}
    inputs = {*contract["numeric"], *contract["categorical"]} - {*contract["request_features"], *contract["join_keys"]}
    done = {action: np.zeros(len(rows), dtype=bool) for action in ("refuse", "default", "baseline")}
    filled: dict[str, pd.Series] = {}
    for view in views if policy else []:
        features = [feature.name for feature in view.features if feature.name in inputs]
        if not features:
            continue
        at = rows[f"feature_time_{view.name}"]
        unknown = at.isna() & rows[list(view.join_keys)].notna().all(axis=1)
        stale = (rows["event_timestamp"] - at > view.ttl) if view.ttl else pd.Series(False, index=rows.index)
        missing = at.notna() & ~stale & rows[features].isna().any(axis=1)
        for kind, lacks in (("unknown_entity", unknown), ("stale_feature", stale), ("missing_feature", missing)):
            done[policy["views"].get(view.name, {}).get(kind) or policy[kind]] |= lacks.to_numpy()
        for feature in features:
            if policy["defaults"].get(feature) is not None:
                filled[feature] = rows[feature].mask((unknown | stale | missing) & rows[feature].isna(), policy["defaults"][feature])
    return Completed(rows.assign(**filled), done["baseline"] & ~done["refuse"], done["refuse"])
