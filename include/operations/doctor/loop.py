"""The loop itself: whether something that it waits for never comes."""

from collections.abc import Iterator

from include import ledger
from include.data import age
from include.operations import cutoffs
from include.operations.doctor.finding import Finding, fault, note, ok
from include.outages import away
from include.projects import all_projects
from include.registry.lost import lost_champion
from include.settings import Settings


def future_cutoffs(_: Settings) -> Iterator[Finding]:
    """Find what is of a cutoff in the future. It stops features, predictions and monitoring until that date."""
    wrong = False
    for project in all_projects():
        try:
            found = cutoffs.traces(project, cutoffs.present(project))
        except Exception as error:  # a store's own; its check reports the fault
            yield note("cutoffs", f"{project.name}: not known, since {_line(error)}")
            return
        if found.blocking:
            wrong = True
            seen = f"{project.name}: a cutoff in the future stops later runs: {'; '.join(found.blocking)}"
            yield fault("cutoffs", seen, f"`airloop rewind {project.name} --reason ...` takes it back")
        for line in found.lasting:
            if line.startswith("MLflow"):
                continue  # its own check says so
            yield fault("cutoffs", f"{project.name}: {line}", 'see docs/runbooks/build_features.md, "A wrong cutoff"')
    if not wrong:
        yield ok("cutoffs", "none is in the future")


def data_age(_: Settings) -> Iterator[Finding]:
    """Compare the newest row of each project with its present."""
    for project in all_projects():
        try:
            newest = age.newest_row(project)
            late = age.warning(project, ledger.now(project.name)) if newest else None
        except Exception as error:
            yield note("data", f"{project.name}: not known, since {_line(error)}")
            return
        if newest is None:
            yield note("data", f"{project.name}: nothing was ingested yet")
        elif late:
            yield note("data", f"{project.name}: {late}")  # no fault: of some projects the data rightly ended long ago
        else:
            yield ok("data", f"{project.name}: the newest row was known at {ledger.iso(newest)}")


def champions(_: Settings) -> Iterator[Finding]:
    """Find the projects whose champion was deleted in MLflow, or has lost its alias there."""
    for project in all_projects():
        try:
            gone = lost_champion(project)
        except Exception as error:  # MLflow's or the ledger's own; their checks report the fault
            yield note("champion", f"{project.name}: not known, since {_line(error)}")
            return
        if gone:
            yield fault("champion", str(gone), f"`airloop restore-champion {project.name} --reason ...`")


def _line(error: Exception) -> str:
    if away(error):
        return "a server does not answer; see above"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
