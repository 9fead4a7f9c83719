"""The whole check of a project."""

from pathlib import Path
from typing import NamedTuple

from include.checks import declaration
from include.checks.finding import Finding
from include.outages import away
from include.projects import BrokenProject, get_project
from include.projects.base import Project
from include.settings import Settings


class Report(NamedTuple):
    """What was found, and what could not be looked at (``skipped``)."""

    findings: list[Finding]
    looked_at: list[str]
    skipped: list[str]

    @property
    def faults(self) -> list[Finding]:
        return [one for one in self.findings if not one.warning]


def check(settings: Settings, name: str) -> Report:
    """Check a project's declaration, and its code on the newest ingested rows: those of the store, else those that `airloop try` has made.

    Raises:
        UnknownProject: there is no such folder.
    """
    try:
        project = get_project(name)
    except BrokenProject as error:
        file, _, line = error.place.partition(", line ")
        return Report([Finding(file, int(line) if line else None, "project", name, error.reason, stage="ingest")], [], [])
    findings = declaration.findings(project)
    if any(one.stage != "train" for one in findings):
        return Report(findings, ["the declaration"], ["the data: what is found above comes first"])
    try:
        report, waiting = on_data(project, roots(settings, project)), _landed(settings, project)
    except Exception as error:
        if (what := away(error)) is None:
            raise
        return Report(findings, ["the declaration"], [f"the data: the store does not answer ({what})"])
    looked_at = ["the declaration", *report.looked_at, *waiting.looked_at]
    return Report([*findings, *report.findings, *waiting.findings], looked_at, report.skipped)


def _landed(settings: Settings, project: Project) -> Report:
    """Check files that wait to be ingested."""
    root = f"{settings.store}/{project.name}/landing"
    if "://" not in root and not Path(root).is_dir():
        return Report([], [], [])  # without the libraries that read files
    from include.checks import landed

    found = landed.waiting(project)
    if not found:
        return Report([], [], [])
    looked_at = f"the first files that wait in the landing zone ({', '.join(f'{name} {len(entries)}' for name, entries in found.items())})"
    return Report(landed.findings(project, found), [looked_at], [])


def roots(settings: Settings, project: Project) -> list[str]:
    """Return the folders where the project's data may be: the store, and the scratch store of `airloop try`."""
    return [f"{settings.store}/{project.name}", str(settings.home / "try" / project.name / "work" / "store" / project.name)]


def on_data(project: Project, folders: list[str]) -> Report:
    """Check a project's code on the first of these folders that has data."""
    if not any(_may_have_tables(folder) for folder in folders):
        return _without_data(project)
    from include.checks import sample

    for folder in folders:
        if (rows := sample.sample_of(project, folder)) is not None:
            return Report(sample.findings(project, rows), [f"the data below {folder}: {rows}"], [])
    return _without_data(project)


def _may_have_tables(folder: str) -> bool:
    """Look without the libraries that read tables, whose import takes longer than all the rest."""
    return "://" in folder or (Path(folder) / "tables").is_dir()


def _without_data(project: Project) -> Report:
    words = f"the data: nothing is ingested yet; `airloop try {project.name} ingest` makes a sample, and known_at, examples and features are looked at too"
    return Report([], [], [words])
