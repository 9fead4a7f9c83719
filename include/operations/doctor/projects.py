"""Check that each project can be loaded, and run `airloop check` on it."""

from collections.abc import Iterator

from include.checks.check import check
from include.operations.doctor.finding import Finding, fault, note, ok
from include.projects import all_projects, broken_projects
from include.settings import Settings


def projects(_: Settings) -> Iterator[Finding]:
    """Find projects whose code cannot be imported. Only their DAGs are missing."""
    broken = broken_projects()
    for one in broken:
        yield fault("projects", str(one), "mend that line; Airflow reads the project again within seconds")
    if not broken:
        yield ok("projects", f"{', '.join(project.name for project in all_projects()) or 'none'}")


def checked(settings: Settings) -> Iterator[Finding]:
    """Report the findings of `airloop check` for each project that can be loaded."""
    for project in all_projects():
        report = check(settings, project.name)
        for one in report.findings:
            yield (
                note(project.name, str(one))
                if one.warning
                else fault(project.name, str(one), f"mend it; `airloop check {project.name}` looks again in a second")
            )
        if not report.findings:
            yield ok(project.name, f"nothing wrong with {' and '.join(report.looked_at)}")
