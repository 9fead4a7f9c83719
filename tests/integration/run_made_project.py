"""Run a project's DAGs in sequence until its model answers a request.

test_new_project.py runs this in a copy of the repository.

    python run_made_project.py <project> <home>

Prints one line of JSON with the results.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import httpx

from include.projects import get_project
from include.settings import Settings
from include.trial.plan import Sample, steps_to
from include.trial.run import free_port, run_dags, serving
from include.trial.scratch import Scratch


def main(name: str, home: str) -> dict:
    project = get_project(name)
    first = project.module("feed").first_moment()
    # Six weeks, a model, and nearly three more weeks. In the last one the made-up world changes.
    # The last day is half over: some of the orders that are predicted last use the current features
    # of the online store.
    sample = Sample(0, first, first + timedelta(days=42, hours=10), first + timedelta(days=61, hours=10))
    scratch = Scratch(Settings(home=Path(home)), project, "monitor", sample)
    # Nothing is sampled here, and all projects exist next to each other.
    scratch.settings = scratch.settings.model_copy(update={"sample_days": None, "projects": None})
    steps = steps_to("monitor", project, sample)
    scratch.root.mkdir(parents=True, exist_ok=True)
    scratch.prepare(steps[:0], lambda text: None)
    port = free_port(scratch.settings.host)
    with serving(scratch, port):
        events = list(run_dags(scratch, project, steps, 0, port))
        batch = newest_predictions(scratch, project)
        answer = ask(
            f"http://{scratch.settings.host}:{port}/models/{name}",
            batch[[*project.entities, *project.request_features]],
        )
    return {
        "tasks": [(e["task"], e["state"], e.get("error")) for e in events if e["event"] == "task"],
        "errors": [e["error"] for e in events if e["event"] in ("failed", "error")],
        "stages": {f"{row['stage']} {row['cutoff']}": json.loads(row["summary"]) for row in ledger_rows(scratch)},
        "made": [thing for e in events if e["event"] == "made" for thing in e["things"]],
        "batch": {
            "version": str(batch["model_version"].iloc[0]),
            "predictions": batch["prediction"].tolist(),
            "feature_times": [str(time) for time in batch[feature_times(batch)].stack().unique()],
        },
        "answer": answer,
    }


def newest_predictions(scratch, project, count: int = 20):
    """Return the batch's last predictions, which used the features in the online store."""
    from deltalake import DeltaTable

    rows = DeltaTable(str(scratch.work / "store" / project.name / "predictions")).to_pandas()
    times = feature_times(rows)
    return rows[(rows[times] == rows[times].max()).all(axis=1)].sort_values("predicted_at").tail(count)


def feature_times(rows) -> list[str]:
    return [c for c in rows if c.startswith("feature_time_")]


def ask(url: str, rows) -> dict:
    # The service rereads Feast's registry every few seconds.
    deadline = time.monotonic() + 30
    while True:
        answer = httpx.post(
            f"{url}/predict",
            json={"instances": json.loads(rows.to_json(orient="records"))},
            timeout=30,
            trust_env=False,
        )
        if answer.status_code != 503 or time.monotonic() > deadline:
            return {"status": answer.status_code, **answer.json()}
        time.sleep(1)


def ledger_rows(scratch) -> list:
    import sqlite3

    with sqlite3.connect(scratch.work / "ledger.db") as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT stage, cutoff, summary FROM stages")]


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), default=str))
