"""Apply the project's look-up policy to batch predictions, as serving does.

A test compares both. The terms are those of ``include/projects/lookup.py``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureView


@dataclass(frozen=True)
class Completed:
    """Rows as inputs of the model, and the rows that the model does not predict."""

    rows: pd.DataFrame
    by_rule: np.ndarray  # bool [n]: the baseline rule answers
    refused: np.ndarray  # bool [n]: not answered


def complete(contract: dict[str, Any], views: list[FeatureView], rows: pd.DataFrame) -> Completed:
    """Find missing features in each row, insert defaults, and apply the policy's actions.

    Args:
        contract: the model's contract. A model without a policy gets nulls.
        rows: the result of ``historical_features``: join keys, features, ``event_timestamp`` and
            ``feature_time_<view>``.
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
                filled[feature] = rows[feature].mask(
                    (unknown | stale | missing) & rows[feature].isna(), policy["defaults"][feature]
                )
    return Completed(rows.assign(**filled), done["baseline"] & ~done["refuse"], done["refuse"])
