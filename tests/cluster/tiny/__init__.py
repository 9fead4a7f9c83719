"""A test project whose candidates differ in the number of workers and in their failures.

Tests copy it next to the real projects.
"""

from datetime import timedelta

from include.projects.base import Candidate
from include.projects.compute import ComputeClass
from include.projects.flights import project as flights

parameters = {"hidden": 16, "epochs": 150, "batch_size": 250, "dropout": 0.2}
networks = [Candidate(name=f"network_{n}", trainer="torch_mlp", workers=n, parameters=parameters) for n in (1, 2)]
others = [
    Candidate(name="broken", trainer="torch_mlp", workers=2, parameters=parameters | {"hidden": -1}),
    Candidate(name="big", trainer="torch_mlp", workers=2, parameters=parameters, compute="tight"),
    Candidate(
        name="endless", trainer="torch_mlp", workers=2, parameters=parameters | {"epochs": 1_000_000}, compute="hasty"
    ),
    Candidate(
        name="on_a_bad_node",
        trainer="torch_mlp",
        workers=2,
        parameters=parameters | {"epochs": 1_000_000},
        compute="shaky",
    ),
]
room = ComputeClass(
    cpu=0.25,
    memory="1Gi",
    memory_max="1Gi",
    ephemeral_storage="256Mi",
    timeout=timedelta(minutes=20),
    schedule_timeout=timedelta(minutes=2),
    start_timeout=timedelta(minutes=3),
    node_lost_after=timedelta(minutes=5),
)
classes = {
    "cpu": room,
    "tight": room.model_copy(update={"memory": "300Mi"}),
    "hasty": room.model_copy(update={"timeout": timedelta(seconds=30)}),
    "shaky": room.model_copy(update={"node_lost_after": timedelta(seconds=15)}),
}
project = flights.model_copy(update={"name": "tiny", "candidates": (*networks, *others), "compute": classes})
