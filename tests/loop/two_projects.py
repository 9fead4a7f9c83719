"""Run in a copy of the repository by test_two_projects.py: the replay of one of its projects, on a stack that is up.

    python two_projects.py <project>

Prints one line of JSON: what the replay recorded, and what the project has in the ledger and the registry.
"""

import json
import sys
from dataclasses import asdict
from datetime import timedelta

from include import ledger
from include.demo.replay import Replay, Step
from include.projects import get_project
from include.registry.client import registry_client
from include.settings import get_settings
from include.stack.api import AirflowApi


class Silent:
    step = stage = said = staticmethod(lambda _: None)


def main(name: str) -> dict:
    project = get_project(name)
    first = project.module("feed").first_moment()
    history, more = first + timedelta(days=42, hours=10), first + timedelta(days=45, hours=10)
    replay = Replay(project, AirflowApi.of(), Silent())
    # The records of two replays at once do not go into one file.
    replay.home = get_settings().home / "demo" / name
    replay.home.mkdir(parents=True, exist_ok=True)
    records = replay.run([Step("history", first, history, first_model=True), Step("three days", history, more)])
    return {
        "cutoffs": [ledger.iso(history), ledger.iso(more)],
        "records": [asdict(record) for record in records],
        "requests": [(one.reason, one.state) for one in ledger.requests(name)],
        "stages": {stage: record["cutoff"] for stage, record in ledger.last_cutoffs(name).items()},
        "versions": [(str(one.version), one.tags["gate"], one.tags["request"]) for one in registry_client().search_model_versions(f"name = '{name}'")],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1]), default=str))
