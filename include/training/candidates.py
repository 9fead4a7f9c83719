"""Candidates by name.

This module does not import ML libraries, because Airflow's tasks use it and their image does not
have them. ``include.training.trainers`` needs them.
"""

from typing import Any

from include.projects.base import Candidate, Project
from include.training import manifest

BASELINE = Candidate(name="baseline_rule", trainer="baseline_rule")
DISTRIBUTED = frozenset({"torch_mlp"})  # trainers that several workers may fit together


def candidate_of(project: Project, name: str, parameters: dict[str, Any] | None = None) -> Candidate:
    """Return a candidate of the project by name, with other parameters if given.

    The rule-based baseline is always a candidate.

    Raises:
        ValueError: there is none of that name.
    """
    known = {c.name: c for c in (*project.candidates, BASELINE)}
    if name not in known:
        raise ValueError(f"project '{project.name}' has no candidate '{name}'; it has {', '.join(known)}")
    return known[name] if parameters is None else known[name].model_copy(update={"parameters": parameters})


def fitted_candidate(project: Project, command: str, given: dict[str, Any]) -> Candidate | None:
    """Return the candidate that a step fits, or None if it fits nothing.

    Raises:
        ValueError: there is no such candidate, or it has several workers and its trainer does not
            support them.
    """
    if command == "evaluate" or (
        command == "refit" and not (project.refit and manifest.read(given["verdict"])["passed"])
    ):
        return None
    candidate = candidate_of(
        project, given["candidate"] if "candidate" in given else manifest.read(given["evaluation"])["candidate"]
    )
    if candidate.workers > 1 and candidate.trainer not in DISTRIBUTED:
        raise ValueError(
            f"candidate '{candidate.name}' asks for {candidate.workers} workers, but its trainer '{candidate.trainer}'"
            f" has one only; several have {', '.join(sorted(DISTRIBUTED))}"
        )
    return candidate
