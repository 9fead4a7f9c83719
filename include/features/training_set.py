"""Training sets: labelled examples with the features as of each one's prediction time.

The features come from Feast's historical retrieval.
"""

import hashlib
import json
from datetime import timedelta
from typing import Any

import pyarrow as pa

from include.data import layout, storage
from include.features import store
from include.features.known import KnownTables
from include.features.times import stored
from include.features.values import check_labels, warn_of_merged
from include.ledger import moment
from include.projects.base import Project


def build(project: Project, request: dict[str, Any]) -> str:
    """Build the training set of a retrain request.

    It is named by the cutoff and the versions of its tables, so it can be rebuilt and is not built
    twice: ``training_set-<name>.parquet``, and next to it a ``.json`` with its description.

    Args:
        project: the project.
        request: an entry of the ledger. ``cutoff`` bounds everything, ``parameters.last_days``
            excludes older examples, ``parameters.table_versions`` (source -> version) rebuilds an
            old set.

    Returns:
        URI of the parquet file: example key, entities, ``event_timestamp``, the inputs, ``label``,
            ``label_known_at``.

    Raises:
        ValueError: no example has a label that was known by the cutoff, a label does not match the
            project's kind, or a time does not have a time zone.
    """
    cutoff, parameters = moment(request["cutoff"]), request.get("parameters") or {}
    known = KnownTables(project, cutoff, versions=parameters.get("table_versions") or {})
    versions = {**known.current_versions(), **known.versions}
    # Fix the versions, so that a concurrent run of ingest changes nothing.
    known = KnownTables(project, cutoff, versions=versions)
    since = cutoff - timedelta(days=float(parameters["last_days"])) if parameters.get("last_days") else None
    identity = {
        "cutoff": request["cutoff"],
        "table_versions": versions,
        "last_days": parameters.get("last_days"),
        "feature_service": project.feature_service,
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = layout.training(project, request["id"])
    target = folder / f"training_set-{name}.parquet"
    if target.with_suffix(".json").exists():
        return str(target)

    examples = project.module("features").examples(known, since=since, until=cutoff, cutoff=cutoff)
    examples = stored(project, examples, "examples()")
    labelled = examples[examples["label"].notna()]
    if labelled.empty:
        raise ValueError(
            f"project {project.name} has no example whose label was known by {request['cutoff']}: ingest labels first"
            f" (source '{project.label_source}')"
        )
    check_labels(project, labelled["label"])
    rows = store.historical_features(project, labelled)
    merged = warn_of_merged(project, rows)
    columns = list(
        dict.fromkeys(
            [
                *project.example_key,
                *project.entities,
                "event_timestamp",
                *project.input_columns,
                "label",
                "label_known_at",
            ]
        )
    )
    table = pa.Table.from_pandas(rows[columns], preserve_index=False)
    content = storage.write_parquet(target, table)
    description = {
        **identity,
        "rows": table.num_rows,
        "merged_by_float32": merged,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    # Written last, so that a training set with a description is complete.
    storage.write(target.with_suffix(".json"), json.dumps(description, indent=1, sort_keys=True))
    return str(target)
