"""Replay one project on a running stack (run by test_two_projects.py in a repository copy).

    python two_projects.py <project>

Prints one line of JSON: what the replay recorded, and what the project has in the ledger and the
registry.
"""

import json
import sys
from dataclasses import asdict
from datetime import timedelta

from include import ledger
from include.demo.replay import Replay, ReplayStep
from include.projects import get_project
from include.registry.client import registry_client
from include.settings import get_settings
from include.stack.api import AirflowApi


class Silent:
    step = stage = note = staticmethod(lambda _: None)


def main(name: str) -> dict:
    project = get_project(name)
    first = project.module("feed").first_moment()
    history, more = first + timedelta(days=42, hours=10), first + timedelta(days=45, hours=10)
    replay = Replay(project, AirflowApi.from_settings(), Silent())
    # Records of concurrent replays are kept in separate files.
    replay.home = get_settings().home / "demo" / name
    replay.home.mkdir(parents=True, exist_ok=True)
    records = replay.run(
        [ReplayStep("history", first, history, first_model=True), ReplayStep("three days", history, more)]
    )
    return {
        "cutoffs": [ledger.iso(history), ledger.iso(more)],
        "records": [asdict(record) for record in records],
        "requests": [(one.reason, one.state) for one in ledger.requests(name)],
        "stages": {stage: record["cutoff"] for stage, record in ledger.last_cutoffs(name).items()},
        "versions": [
            (str(one.version), one.tags["gate"], one.tags["request"])
            for one in registry_client().search_model_versions(f"name = '{name}'")
        ],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1]), default=str))
