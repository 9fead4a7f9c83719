"""Parse DAG files in a new interpreter, as Airflow's DAG processor does, and print JSON.

    python fresh_parse.py <DAG file or folder> <module that must not be imported> ...

The JSON has these keys:

- ``imported``: those modules that parsing the file imported.
- ``before``: those modules that Airflow itself imports to parse any file (with the amazon provider
  installed, boto3).
- ``dags``: DAG id -> serialized DAG.
- ``versions``: DAG id -> the hash that distinguishes versions of a DAG in Airflow.
"""

import json
import logging
import sys
import tempfile


def main(file: str, forbidden: set[str]) -> None:
    from airflow.dag_processing.dagbag import DagBag

    with tempfile.NamedTemporaryFile("w", suffix=".py") as empty:
        # It includes an asset: the first asset of a process makes Airflow import the URI handlers
        # of all providers (amazon's: boto3).
        empty.write("from airflow.sdk import Asset\n\nAsset(name='any', uri='airloop://any')\n")
        empty.flush()
        DagBag(empty.name, safe_mode=False)
    before = loaded(forbidden)
    bag = DagBag(file, safe_mode=False)
    imported = sorted(set(loaded(forbidden)) - set(before))

    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.serialized_objects import DagSerialization

    dags = {dag_id: DagSerialization.to_dict(dag) for dag_id, dag in sorted(bag.dags.items())}
    versions = {dag_id: SerializedDagModel.hash(dag) for dag_id, dag in dags.items()}
    print(
        json.dumps(
            {"before": before, "imported": imported, "errors": bag.import_errors, "dags": dags, "versions": versions}
        )
    )


def loaded(modules: set[str]) -> list[str]:
    return sorted(modules & {name.partition(".")[0] for name in sys.modules})


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main(sys.argv[1], set(sys.argv[2:]))
