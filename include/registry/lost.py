"""Detect a lost champion: a version was deployed, but no version has the alias ``champion``.

MLflow deletes the aliases of a version together with the version. Serving continues with the loaded
version. Without this check, the loop would treat the project like a new one and judge the next
model against the baseline only.
"""

import json
from dataclasses import dataclass
from typing import Any

from include import ledger
from include.projects.base import Project
from include.registry import versions

# States of the rollout document in which its version is champion. In all other states the previous
# version is.
PROMOTED = ("promoted", "serving")
GIVEN_UP = "given_up"


class ChampionLostError(ValueError):
    """Raised when the champion is lost, so a new model cannot be judged.

    The message names the command that restores it.
    """


@dataclass(frozen=True)
class Lost:
    """A lost champion.

    Attributes:
        version: number of the version in the registry.
        deleted: True if the version was deleted, False if only its alias was.
    """

    project: str
    version: str
    deleted: bool

    def __str__(self) -> str:
        how = "was deleted from MLflow" if self.deleted else f"has lost its alias '{versions.CHAMPION}' in MLflow"
        return (
            f"champion lost: version {self.version} of {self.project} {how}, so no version is champion. Serving"
            f" continues with the version that it has loaded. `airloop restore-champion {self.project} --reason ...`"
            " restores it"
        )


def lost_champion(project: Project) -> Lost | None:
    """Return the lost champion, or None if the project has a champion or never had one."""
    named = versions.aliases(project).get(versions.CHAMPION)
    if named is not None:
        return None if versions.find_version(project, named) else Lost(project.name, named, deleted=True)
    document = _document(project)
    version = _by_ledger(project) if document is None else _by_document(document)
    if version is None or given_up(project, version):
        return None
    return Lost(project.name, version, deleted=versions.find_version(project, version) is None)


def refuse_lost(project: Project) -> None:
    """Raise ChampionLostError if the champion is lost."""
    if lost := lost_champion(project):
        raise ChampionLostError(str(lost))


def given_up(project: Project, version: str) -> bool:
    """Return whether an operator has decided to continue without this champion."""
    return any(
        one["verdict"] == GIVEN_UP and one["subject"] == f"champion {version}"
        for one in ledger.decisions(project.name, "champion")
    )


def give_up(project: Project, lost: Lost, *, by: str, reason: str) -> None:
    """Record the decision to continue without the lost champion, as in a new project."""
    ledger.decide(
        project.name,
        "champion",
        f"champion {lost.version}",
        verdict=GIVEN_UP,
        reasons=[f"{by}: {reason}"],
        cutoff=ledger.now(project.name),
    )


def _document(project: Project) -> dict[str, Any] | None:
    """Return the rollout document, which is written before an alias moves.

    Return None if it does not exist or cannot be read.
    """
    try:
        document = json.loads(versions.model_tag(project, versions.ROLLOUT) or "null")
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _by_document(document: dict[str, Any]) -> str | None:
    version = document.get("version") if document.get("state") in PROMOTED else document.get("previous")
    return str(version) if version else None


def _by_ledger(project: Project) -> str | None:
    """Return the champion according to the decisions of ``deploy``.

    Used if there is no rollout document, for example after the registered model was deleted.
    """
    standing: list[str] = []
    for one in sorted(ledger.decisions(project.name, "deploy"), key=lambda one: one["recorded_at"]):
        version = one["subject"].partition(",")[0].removeprefix("version ")
        if one["verdict"] == "deployed":
            standing = [*(other for other in standing if other != version), version]
        elif one["verdict"] == "rolled_back":
            standing = [other for other in standing if other != version]
    return standing[-1] if standing else None
