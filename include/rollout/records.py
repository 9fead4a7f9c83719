"""The ledger entries of deploy: the request's end, the decision, the episode, the stage."""

from typing import Any

from include import ledger
from include.projects.base import Project
from include.registry import versions

WAITING = ("passed", "deploying")  # states of a request whose version is not deployed yet
# How a rollout ends -> the request's state.
REQUEST_STATE = {
    "deployed": "deployed",
    "rolled_back": "rolled_back",
    "overtaken": "rolled_back",
    "refused": "rolled_back",
    "superseded": "superseded",
}


def chosen_version(project: Project, events: list[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    """Return the version that a run of deploy is about.

    It is the version that a user named, else the newest version of the events, else the challenger.

    Returns:
        ``version``, ``by_person``, and the version's ``cutoff``, ``request`` and ``gate``.

    Raises:
        ValueError: there is nothing to deploy.
    """
    announced = max((str(e["version"]) for e in events if e.get("version")), key=int, default=None)
    version = wanted or announced or versions.aliases(project).get(versions.CHALLENGER)
    if version is None:
        raise ValueError(f"{project.name} has no challenger: train one, or name a version")
    tags = versions.get_version(project, version).tags
    return {
        "version": str(version),
        "by_person": bool(wanted),
        **{key: tags.get(key) for key in ("cutoff", "request", "gate")},
    }


def hold_request(chosen: dict[str, Any], *, dag_run: str) -> None:
    """Hold the request of this run's version, or renew its lease. Call it at each step."""
    if chosen.get("request"):
        ledger.keep_deployment(chosen["request"], dag_run)


def record_end(project: Project, chosen: dict[str, Any], state: str, reason: str, *, cutoff: str, dag_run: str) -> None:
    """Record the end of a rollout: deployed, rolled_back, overtaken, refused, superseded.

    ``frozen`` is recorded too, but it does not end the rollout. Safe to repeat.
    """
    ledger.decide(project.name, "deploy", _subject(chosen, dag_run), verdict=state, reasons=[reason], cutoff=cutoff)
    if chosen.get("request"):
        known = ledger.get_request(chosen["request"]).state
        if state == "frozen":
            # The request waits and records the reason; see held_deployment.
            if known in WAITING:
                ledger.settle_request(chosen["request"], "passed", deploy=state, deploy_reason=reason)
        # A deployed request keeps its state when its deployment is run again.
        elif state != "superseded" or known in WAITING:
            ledger.settle_request(chosen["request"], REQUEST_STATE[state], deploy=state, deploy_reason=reason)
    if state == "frozen":
        return
    if state == "deployed":
        _close_episode(project, chosen, cutoff)
    if state != "superseded" or ledger.stage_record(project.name, "deploy", cutoff) is None:
        summary = {"version": chosen["version"], "state": state, "reason": reason, "request": chosen.get("request")}
        ledger.record_stage(project.name, "deploy", cutoff, dag_run=dag_run, summary=summary)


def on_record(project: Project, chosen: dict[str, Any], dag_run: str) -> bool:
    """Return whether the end of this run's rollout of the version is recorded."""
    return any(
        d["subject"] == _subject(chosen, dag_run) and d["verdict"] != "frozen"
        for d in ledger.decisions(project.name, "deploy")
    )


def _subject(chosen: dict[str, Any], dag_run: str) -> str:
    return f"version {chosen['version']}, {dag_run}"[:100]


def held_deployment(project: Project) -> ledger.Request | None:
    """Return the newest request whose passed model was not deployed because of a freeze.

    Return None if there is none.
    """
    waiting = [r for r in ledger.requests(project.name) if r.state == "passed" and r.outcome.get("deploy") == "frozen"]
    return max(waiting, key=lambda r: int(r.outcome["version"]), default=None)


def _close_episode(project: Project, chosen: dict[str, Any], cutoff: str) -> None:
    """Close the drift episode if the champion was trained on data from it.

    A rollback to an older version does not close an episode.
    """
    episode = ledger.current_episode(project.name)
    if episode and chosen.get("cutoff") and chosen["cutoff"] >= episode["opened"]:
        ledger.close_episode(project.name, at=cutoff)
