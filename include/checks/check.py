"""The complete check of a project."""

from pathlib import Path
from typing import NamedTuple

from include.checks import declaration
from include.checks.finding import Finding
from include.outages import outage_of
from include.projects import BrokenProjectError, get_project
from include.projects.base import Project
from include.settings import Settings


class Report(NamedTuple):
    """The findings, the checked parts, and the parts that could not be checked (``skipped``)."""

    findings: list[Finding]
    looked_at: list[str]
    skipped: list[str]

    @property
    def faults(self) -> list[Finding]:
        return [one for one in self.findings if not one.warning]


def check(settings: Settings, name: str) -> Report:
    """Check a project's declaration, and its code on the newest ingested rows.

    The rows come from the store, or else from an earlier `airloop try`.

    Raises:
        UnknownProjectError: The project's folder does not exist.
    """
    try:
        project = get_project(name)
    except BrokenProjectError as error:
        file, _, line = error.place.partition(", line ")
        return Report(
            [Finding(file, int(line) if line else None, "project", name, error.reason, stage="ingest")], [], []
        )
    findings = declaration.findings(project)
    if any(one.stage != "train" for one in findings):
        return Report(findings, ["the declaration"], ["the data: what is found above comes first"])
    try:
        report, waiting = on_data(project, roots(settings, project)), _landed(settings, project)
    except Exception as error:
        if (what := outage_of(error)) is None:
            raise
        return Report(findings, ["the declaration"], [f"the data: the store does not answer ({what})"])
    looked_at = ["the declaration", *report.looked_at, *waiting.looked_at]
    return Report([*findings, *report.findings, *waiting.findings], looked_at, report.skipped)


def _landed(settings: Settings, project: Project) -> Report:
    """Check files that wait to be ingested."""
    root = f"{settings.store}/{project.name}/landing"
    if "://" not in root and not Path(root).is_dir():
        # Return before importing the libraries that read files.
        return Report([], [], [])
    from include.checks import landed

    files = landed.waiting(project)
    if not files:
        return Report([], [], [])
    looked_at = (
        "the first files that wait in the landing zone"
        f" ({', '.join(f'{name} {len(entries)}' for name, entries in files.items())})"
    )
    return Report(landed.findings(project, files), [looked_at], [])


def roots(settings: Settings, project: Project) -> list[str]:
    """Return the folders that may contain the project's data.

    These are the store, and the scratch store of `airloop try`.
    """
    return [
        f"{settings.store}/{project.name}",
        str(settings.home / "try" / project.name / "work" / "store" / project.name),
    ]


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
    """Check without the libraries that read tables, because importing them is slow."""
    return "://" in folder or (Path(folder) / "tables").is_dir()


def _without_data(project: Project) -> Report:
    words = (
        f"the data: nothing is ingested yet; `airloop try {project.name} ingest` makes a sample, and known_at, examples"
        " and features are looked at too"
    )
    return Report([], [], [words])
