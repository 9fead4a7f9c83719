"""A test project: trees with a search on ``cpu``, and a network on ``gpu_small``.

It has no folder under include/projects. Importing this module registers it (with
AIRLOOP_PROJECTS=two_classes). A training step registers it by ``python -m
tests.integration.two_classes include.training fit ...``.
"""

import runpy
import sys
from datetime import timedelta

from include.projects.base import Candidate, GatePolicy, Range, Search
from include.projects.compute import ComputeClass
from include.projects.flights import project as flights

SPACE = {"max_leaf_nodes": Range(low=3, high=31, whole=True), "learning_rate": Range(low=0.05, high=0.5, log=True)}

project = flights.model_copy(
    update={
        "name": "two_classes",
        "candidates": (
            Candidate(
                name="trees",
                trainer="hist_gradient_boosting",
                parameters={"max_iter": 10, "max_leaf_nodes": 7},
                search=Search(trials=4, at_once=2, space=SPACE),
            ),
            # It learns almost nothing, so the trees always win if both are requested.
            Candidate(
                name="network",
                trainer="torch_mlp",
                compute="gpu_small",
                parameters={"hidden": 4, "epochs": 1, "learning_rate": 1e-6},
            ),
        ),
        "compute": {"gpu_small": ComputeClass(gpus=1)},
        "gate": GatePolicy(min_rows=300, holdout=timedelta(days=10)),
    }
)
sys.modules["include.projects.two_classes"] = sys.modules[__name__]

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
