"""A champion that is lost: a version was deployed, and the registry names none any more.

In MLflow whoever deletes a version deletes its aliases too. Serving goes on answering with what it has loaded. Without this look at what was deployed, the
loop would take the project for one that never had a champion, and would judge the next model against the baseline alone.
"""

import json
from dataclasses import dataclass

from include import ledger
from include.projects.base import Project
from include.registry import versions

# States of the rollout document in which its version is champion; in the others the one before it is.
PROMOTED = ("promoted", "serving")
GIVEN_UP = "given_up"


class ChampionLost(ValueError):
    """There is nothing to judge a new model against; the message says how to bring the champion back."""


@dataclass(frozen=True)
class Lost:
    """The champion that is lost.

    Attributes:
        version: its number in the registry.
        deleted: the version itself is gone; False: only its alias is.
    """

    project: str
    version: str
    deleted: bool

    def __str__(self) -> str:
        how = "was deleted from MLflow" if self.deleted else f"has lost its alias '{versions.CHAMPION}' in MLflow"
        return (
            f"champion lost: version {self.version} of {self.project} {how}, so no version is champion. Serving goes on with what it has loaded. "
            f"`airloop restore-champion {self.project} --reason ...` brings it back"
        )


def lost_champion(project: Project) -> Lost | None:
    """Return the champion that is lost; None: there is a champion, or there rightly is none."""
    named = versions.aliases(project).get(versions.CHAMPION)
    if named is not None:
        return None if versions.find_version(project, named) else Lost(project.name, named, deleted=True)
    version = _by_document(project) or _by_ledger(project)
    if version is None or given_up(project, version):
        return None
    return Lost(project.name, version, deleted=versions.find_version(project, version) is None)


def refuse_lost(project: Project) -> None:
    """Raises ChampionLost if the champion is lost."""
    if lost := lost_champion(project):
        raise ChampionLost(str(lost))


def given_up(project: Project, version: str) -> bool:
    """Return whether a person has said that the project goes on without this champion."""
    return any(one["verdict"] == GIVEN_UP and one["subject"] == f"champion {version}" for one in ledger.decisions(project.name, "champion"))


def give_up(project: Project, lost: Lost, *, by: str, reason: str) -> None:
    """Put on record that the project goes on without its lost champion, as if it never had one."""
    ledger.decide(
        project.name, "champion", f"champion {lost.version}", verdict=GIVEN_UP, reasons=[f"{by}: {reason}"], cutoff=ledger.now(project.name)
    )  # fmt: skip


def _by_document(project: Project) -> str | None:
    """The champion by the rollout document, which is written before an alias moves."""
    text = versions.model_tag(project, versions.ROLLOUT)
    document = json.loads(text) if text else {}
    found = document.get("version") if document.get("state") in PROMOTED else document.get("previous")
    return str(found) if found else None


def _by_ledger(project: Project) -> str | None:
    """The champion by the decisions of ``deploy``: for a registered model that was deleted as a whole, with its document."""
    if versions.model_tag(project, versions.ROLLOUT):
        return None
    standing: list[str] = []
    for one in sorted(ledger.decisions(project.name, "deploy"), key=lambda one: one["recorded_at"]):
        version = one["subject"].partition(",")[0].removeprefix("version ")
        if one["verdict"] == "deployed":
            standing = [*(other for other in standing if other != version), version]
        elif one["verdict"] == "rolled_back":
            standing = [other for other in standing if other != version]
    return standing[-1] if standing else None
